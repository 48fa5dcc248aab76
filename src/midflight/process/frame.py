"""The kernel's signal frame (``struct rt_sigframe``, arch/x86/include/asm/sigframe.h): written by us, read from stacks.

A frame below the red zone of a thread, with rt_sigreturn as its return address, puts the thread back into the state
that the frame holds, whoever is there to watch. That is what makes an injected call survive our death.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from midflight.process import ptrace as pt

RED_ZONE = 128  # System V AMD64 ABI, 3.2.2
FRAME_SIZE = 8 + 304 + 128  # return address, ucontext, siginfo
INFO = 8 + 304  # siginfo: of no use to rt_sigreturn, so our scratch space
SAVED_RSP = 8 + 40 + 15 * 8
SAVED_CS = 8 + 40 + 18 * 8
FP_XSTATE_MAGIC1 = 0x46505853
FP_XSTATE_MAGIC2 = 0x46505845
UC_FLAGS = 0x1 | 0x2 | 0x4  # UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
# An alternate-stack mode that sigaltstack refuses: rt_sigreturn then leaves the thread's own setting as it is
# (do_sigaltstack and restore_altstack, kernel/signal.c). ptrace cannot read that setting, so it cannot be written back.
KEEP_ALTERNATE_STACK = 3
_AMX_TILES = 1 << 18
_AMX_OFFSET = 2816

_CONTEXT = struct.Struct("<QQ QiiQ 18Q 4H 4Q Q 8Q Q")
_SW_RESERVED = struct.Struct("<IIQI")
RESTART_CALLS = frozenset((7, 35, 202, 230))  # poll, nanosleep, futex, clock_nanosleep: users of the restart block
RESTART_SYSCALL = 219


@dataclass(frozen=True, slots=True)
class Frame:
    """A signal frame ready to be written: ``data`` at ``address``; ``scratch`` is an address for a result."""

    address: int
    data: bytes

    @property
    def scratch(self) -> int:
        """Sixteen bytes inside the frame that rt_sigreturn does not read."""
        return self.address + INFO


def _signal_xstate(xstate: bytes) -> bytes:
    """The extended state as a signal frame has it: software-reserved bytes filled in, closing magic added."""
    state = bytearray(xstate)
    features = struct.unpack_from("<Q", state, 464)[0]
    used = struct.unpack_from("<Q", state, 512)[0]
    if features & _AMX_TILES and not used & _AMX_TILES and len(state) > _AMX_OFFSET:
        # ptrace hands out the largest state, rt_sigreturn takes no more than the thread's permitted one.
        del state[_AMX_OFFSET:]
        features &= ~_AMX_TILES
    state[464:512] = bytes(48)
    _SW_RESERVED.pack_into(state, 464, FP_XSTATE_MAGIC1, len(state) + 4, features, len(state))
    return bytes(state) + struct.pack("<I", FP_XSTATE_MAGIC2)


def original_call(registers: list[int], code_before: bytes) -> int:
    """The number of the interrupted system call; for restart_syscall the one that it continues.

    ``code_before`` is the code up to and including the ``syscall`` instruction: compiled C loads the number with
    ``mov $n,%eax`` shortly before it. Returns restart_syscall itself when it cannot be told.
    """
    number = registers[pt.ORIG_RAX]
    if number != RESTART_SYSCALL:
        return number
    for at in range(len(code_before) - 7, -1, -1):
        if code_before[at] == 0xB8:
            found: int = struct.unpack_from("<I", code_before, at + 1)[0]
            if found in RESTART_CALLS:
                return found
    return number


def build(registers: list[int], xstate: bytes, mask: int, restorer: int, code_before: bytes) -> Frame:
    """The frame that puts a thread back into the given state; an interrupted system call is entered again.

    Args:
        registers: of the stopped thread, in the kernel's order.
        xstate: of the stopped thread, as ptrace gives it.
        mask: blocked signals.
        restorer: address of the target's own ``rt_sigreturn`` sequence.
        code_before: the code just before the instruction pointer, see :func:`original_call`.
    """
    back = list(registers)
    if back[pt.ORIG_RAX] < 1 << 63 and back[pt.RAX] in pt.RESTARTABLE:
        back[pt.RAX] = original_call(back, code_before)
        back[pt.RIP] -= 2
    extended = _signal_xstate(xstate)
    fpstate = (registers[pt.RSP] - RED_ZONE - len(extended)) & ~63
    address = ((fpstate - FRAME_SIZE) & ~15) - 8
    general = [
        back[index]
        for index in (
            *(pt.R8, pt.R9, pt.R10, pt.R11, pt.R12, pt.R13, pt.R14, pt.R15, pt.RDI, pt.RSI, pt.RBP, pt.RBX),
            *(pt.RDX, pt.RAX, pt.RCX, pt.RSP, pt.RIP, pt.EFLAGS),
        )
    ]
    context = _CONTEXT.pack(
        *(UC_FLAGS, 0),
        *(0, KEEP_ALTERNATE_STACK, 0, 0),
        *general,
        *(back[pt.CS], 0, 0, back[pt.SS]),
        *(0, 0, 0, 0),
        fpstate,
        *([0] * 8),
        mask,
    )
    head = struct.pack("<Q", restorer) + context + bytes(128)
    return Frame(address, head + bytes(fpstate - address - len(head)) + extended)


def interrupted_stack_pointer(stack: bytes, at: int) -> int | None:
    """The stack pointer that the kernel saved in a signal frame whose return address stands at offset ``at``.

    None when what stands there is not a signal frame (a stale or chance value).
    """
    if at + FRAME_SIZE > len(stack):
        return None
    if struct.unpack_from("<H", stack, at + SAVED_CS)[0] != 0x33:
        return None
    pointer: int = struct.unpack_from("<Q", stack, at + SAVED_RSP)[0]
    return pointer
