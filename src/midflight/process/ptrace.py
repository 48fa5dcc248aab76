"""The ``ptrace`` system call and its neighbours through ctypes, bound once (ptrace(2), process_vm_readv(2), kcmp(2)).

The bindings hold the interpreter lock (``PyDLL``): none of these calls blocks, and letting go of the lock inside a stop
would make the target wait for our other threads. Register sets are plain buffers in the kernel's ``user_regs_struct``
order; the ``R_`` constants are indices into it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from operator import itemgetter

GETREGS, SETREGS = 12, 13
POKEUSER, PEEKUSER = 6, 3
CONT, SYSCALL = 7, 24
DETACH = 17
GETREGSET, SETREGSET = 0x4204, 0x4205
SEIZE, INTERRUPT = 0x4206, 0x4207
GETSIGINFO = 0x4202
GETSIGMASK, SETSIGMASK = 0x420A, 0x420B
GET_RSEQ_CONFIGURATION = 0x420F
GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4210

O_TRACESYSGOOD = 0x01
O_TRACEEXEC = 0x10
O_SUSPEND_SECCOMP = 1 << 21

EVENT_EXEC = 4
EVENT_STOP = 128

NT_X86_XSTATE = 0x202
WALL = 0x40000000
WNOHANG_WALL = WALL | os.WNOHANG

# Indices into user_regs_struct (sys/user.h).
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP, SS = range(21)
FS_BASE = 21
REGS_SIZE = 27 * 8
REGS = struct.Struct("<27Q")

to_dwarf = itemgetter(RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, RIP)
"""Registers in DWARF order (System V AMD64 ABI, figure 3.36) out of the kernel's order."""

# What the kernel leaves in rax of an interrupted system call (include/linux/errno.h), as unsigned 64-bit values.
_U64 = 1 << 64
EINTR = _U64 - errno.EINTR
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND = _U64 - 512, _U64 - 513, _U64 - 514
ERESTART_RESTARTBLOCK = _U64 - 516
RESTARTABLE = frozenset((ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK))

EINTR_CALLS = frozenset(
    (
        0,  # read, with SO_RCVTIMEO or on FUSE
        1,  # write, with SO_SNDTIMEO
        19,  # readv
        20,  # writev
        42,  # connect, with SO_SNDTIMEO
        43,  # accept, with SO_RCVTIMEO
        44,  # sendto
        45,  # recvfrom
        46,  # sendmsg
        47,  # recvmsg
        65,  # semop
        128,  # rt_sigtimedwait
        208,  # io_getevents
        220,  # semtimedop
        232,  # epoll_wait
        281,  # epoll_pwait
        288,  # accept4
        299,  # recvmmsg
        307,  # sendmmsg
        333,  # io_pgetevents
        426,  # io_uring_enter
        441,  # epoll_pwait2
        449,  # futex_waitv
    )
)
"""System calls that answer EINTR after any stop (signal(7)) and have then done nothing, so that they may run again.
``close`` is not among them: it has closed."""

_held = ctypes.PyDLL(None, use_errno=True)

ptrace = _held.ptrace
ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_size_t, ctypes.c_size_t)
ptrace.restype = ctypes.c_long

quick = ctypes.PyDLL(None).ptrace
"""The same for inside the clock: no errno, no conversion of arguments (small integers and buffer objects only), which
halves the cost of a request."""

process_vm_readv = _held.process_vm_readv
process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.c_ulong,
    ctypes.c_size_t,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
process_vm_readv.restype = ctypes.c_ssize_t

_syscall = _held.syscall
_syscall.restype = ctypes.c_long


def request(number: int, tid: int, address: int = 0, data: int = 0) -> int:
    """One ptrace request; raises OSError (ESRCH: the thread is gone or not stopped)."""
    result: int = ptrace(number, tid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def get_registers(tid: int) -> list[int]:
    """All general registers of a stopped thread, in the kernel's order."""
    buffer = ctypes.create_string_buffer(REGS_SIZE)
    request(GETREGS, tid, 0, ctypes.addressof(buffer))
    return list(REGS.unpack(buffer.raw))


def set_registers(tid: int, registers: list[int]) -> None:
    """Set all general registers of a stopped thread at once."""
    buffer = ctypes.create_string_buffer(REGS.pack(*registers), REGS_SIZE)
    request(SETREGS, tid, 0, ctypes.addressof(buffer))


def get_xstate(tid: int) -> bytes:
    """The extended state (x87, SSE, AVX ...) in the layout of XSAVE (Intel SDM volume 1, 13.4)."""
    size = 16384
    while True:
        buffer = ctypes.create_string_buffer(size)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
        request(GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(vector))
        if vector[1] < size:
            return buffer.raw[: vector[1]]
        size *= 2


def set_xstate(tid: int, state: bytes) -> None:
    """Put back what :func:`get_xstate` gave."""
    buffer = ctypes.create_string_buffer(state, len(state))
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(state))
    request(SETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(vector))


def get_signal_mask(tid: int) -> int:
    """The blocked signals (bit 0 is signal 1); of a call such as ppoll the mask that will be in force after it."""
    value = ctypes.c_uint64()
    request(GETSIGMASK, tid, 8, ctypes.addressof(value))
    return value.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the blocked signals."""
    value = ctypes.c_uint64(mask)
    request(SETSIGMASK, tid, 8, ctypes.addressof(value))


def rseq_area(tid: int) -> int:
    """The address of the thread's restartable-sequence area; 0: none (or the kernel does not tell, before 5.13)."""
    buffer = (ctypes.c_uint64 * 3)()
    if ptrace(GET_RSEQ_CONFIGURATION, tid, 24, ctypes.addressof(buffer)) < 0:
        return 0
    return int(buffer[0])


def dispatches_syscalls(tid: int) -> bool:
    """True when the thread has its system calls redirected (prctl PR_SET_SYSCALL_USER_DISPATCH); since Linux 6.4."""
    buffer = (ctypes.c_uint64 * 4)()
    if ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, ctypes.addressof(buffer)) < 0:
        return False
    return bool(buffer[0])


def same_memory(first: int, second: int) -> bool | None:
    """Whether two processes share one address space (kcmp KCMP_VM); None: the kernel does not say."""
    result: int = _syscall(ctypes.c_long(312), ctypes.c_long(first), ctypes.c_long(second), ctypes.c_long(1), 0, 0)
    if result < 0:
        return None
    return result == 0


def perf_event_open(attributes: bytes, tid: int) -> int:
    """A performance event of one thread (perf_event_open(2)); its file descriptor, negative when refused."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _syscall(ctypes.c_long(298), buffer, ctypes.c_long(tid), ctypes.c_long(-1), ctypes.c_long(-1), 8)
    return result


def restart_later(registers: list[int]) -> list[int]:
    """Registers with which the kernel restarts an interrupted call that would have answered EINTR.

    With ERESTARTNOHAND the call runs again when no handler runs, and answers EINTR when one does.
    """
    if registers[RAX] == EINTR and registers[ORIG_RAX] in EINTR_CALLS:
        registers = list(registers)
        registers[RAX] = ERESTARTNOHAND
    return registers
