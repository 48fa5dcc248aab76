"""System calls and C calls in a thread of the target, such that the target survives our death at any instant.

See docs/adr/0002. One thread is seized and interrupted; a complete signal frame with its state is written below its red
zone; then its registers are set so that it makes the call and returns into rt_sigreturn, which reads that frame. While
we live we stop it at the end of the call (syscall-stops, ptrace(2)) and put the state back ourselves, more precisely
than rt_sigreturn could: the kernel then finishes or restarts an interrupted system call as if nothing had been.

The order of the steps matters: registers before signal mask on the way in, signal mask before registers on the way out,
so that at every instant in between the frame repairs everything.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from midflight.errors import ProcessError, ProcessGone
from midflight.process import frame, gadgets
from midflight.process import ptrace as pt
from midflight.process.faults import point
from midflight.process.maps import list_threads, read_stat
from midflight.process.model import Mapping, NoSafeThread
from midflight.process.wait import SYSCALL_STOP, Waiter, give_up_on, pending_signal, sweep_stuck

if TYPE_CHECKING:
    from midflight.process.linux import LinuxProcess

_DF, _TF = 0x400, 0x100
_U64 = (1 << 64) - 1
# Signals that the hardware raises for what the thread itself does; blocking them would turn them into death.
_SYNCHRONOUS = sum(1 << (number - 1) for number in (4, 5, 7, 8, 11))
_ALL_SIGNALS = _U64 & ~_SYNCHRONOUS
_PATIENCE = 0.05
_RT_SIGRETURN = 15


class Unsuitable(Exception):
    """This thread cannot be used now; another one, or a later time, may do."""


class Hijack:
    """One interrupted thread of the target with a signal frame in place; made by :func:`hijack`."""

    def __init__(self, process: LinuxProcess, tid: int, tools: gadgets.Gadgets) -> None:
        self.process = process
        self.tid = tid
        self.tools = tools
        self.registers: list[int] = []
        self.mask = 0
        self.frame = frame.Frame(0, b"")
        self.ended = False
        """The thread is gone or was let go: nothing to restore, nothing to detach."""
        self._waiter = Waiter(process.pid)
        self._xstate = b""
        self._interrupted_call = 0
        self._entered = False

    # -- stopping --------------------------------------------------------------------------------------------------

    def interrupt(self, deadline: float) -> None:
        """Stop the thread in an interrupt-stop; pending signals are delivered to it first. Raises Unsuitable."""
        pt.ptrace(pt.INTERRUPT, self.tid, 0, 0)
        while True:
            status = self._wait(deadline)
            if status >> 16 == pt.EVENT_STOP:
                return
            pt.ptrace(pt.CONT, self.tid, 0, pending_signal(status))

    def _wait(self, deadline: float) -> int:
        """The next stop of the thread. Raises Unsuitable at the deadline, ProcessGone when it died."""
        idle = 0
        while True:
            try:
                status = self._waiter.wait(self.tid)
            except ChildProcessError:
                status = 0
            if status is None:
                idle += 1
                # Not for long: the thread may be waiting for the very processor that we hold.
                if idle > 30:
                    if time.monotonic() > deadline:
                        raise Unsuitable(f"thread {self.tid} did not stop")
                    time.sleep(0.0001)
                continue
            if status & 0xFF != 0x7F:
                self.ended = True
                raise ProcessGone(f"thread {self.tid} of process {self.process.pid} ended in the middle; look again")
            if status >> 16 == pt.EVENT_EXEC:
                pt.ptrace(pt.DETACH, self.tid, 0, 0)
                self.ended = True
                raise ProcessGone(f"process {self.process.pid} became another program; look at it again")
            return status

    # -- in and out ------------------------------------------------------------------------------------------------

    def examine(self, room: int) -> None:
        """Read the state of the stopped thread and prove that it can be used. Raises Unsuitable."""
        found = pt.get_registers(self.tid)
        self.registers = pt.restart_later(found)
        if self.registers is not found:
            pt.ptrace(pt.POKEUSER, self.tid, 8 * pt.RAX, self.registers[pt.RAX])  # holds should we die from here on
        if self.registers[pt.CS] != 0x33:
            raise Unsuitable(f"thread {self.tid} runs 32-bit code")
        if pt.dispatches_syscalls(self.tid):
            raise Unsuitable(f"thread {self.tid} has its system calls redirected")
        self._refuse_restartable_sequence()
        self.mask = pt.get_signal_mask(self.tid)
        self._xstate = pt.get_xstate(self.tid)
        assert self.tools.restorer is not None
        rip = self.registers[pt.RIP]
        before = b""
        if self.registers[pt.ORIG_RAX] == frame.RESTART_SYSCALL:
            before = self.process.read_available(rip - 64, 64)
        self._interrupted_call = frame.original_call(self.registers, before)
        self.frame = frame.build(self.registers, self._xstate, self.mask, self.tools.restorer[0], before)
        self._require_room(room)

    def _refuse_restartable_sequence(self) -> None:
        """A thread inside a restartable sequence (rseq(2)) must not be moved: the kernel would forget to abort it."""
        area = pt.rseq_area(self.tid)
        if not area:
            return
        pointer = int.from_bytes(self.process.read(area + 8, 8), "little")
        if not pointer:
            return
        start, length = struct.unpack("<QQ", self.process.read(pointer + 8, 16))
        if 0 <= self.registers[pt.RIP] - start < length:
            raise Unsuitable(f"thread {self.tid} is inside a restartable sequence")

    def _require_room(self, room: int) -> None:
        """The frame must fit on a stack that is the thread's own: nothing of the target's may lie below."""
        pointer = self.registers[pt.RSP]
        mappings = self.process.maps()
        mapping = next((m for m in mappings if m.start <= pointer < m.end), None)
        if mapping is None or not (mapping.readable and mapping.writable and mapping.private):
            raise Unsuitable(f"thread {self.tid} has no usable stack at the moment")
        if not self._own_stack(mapping, mappings):
            raise Unsuitable(f"thread {self.tid} runs on a stack that is not a thread's own (a coroutine?)")
        low = self.frame.address - room
        if low >= mapping.start:
            return
        if mapping.path != "[stack]":
            raise Unsuitable(f"thread {self.tid} has no room left on its stack")
        try:
            self.process.write(low, self.process.read_available(low, 1) or b"\0")  # lets the kernel grow the stack
        except ProcessError:
            raise Unsuitable(f"thread {self.tid} has no room left on its stack") from None
        if not any(m.path == "[stack]" and m.start <= low for m in self.process.maps()):
            raise Unsuitable(f"thread {self.tid} has no room left on its stack")

    def _own_stack(self, mapping: Mapping, mappings: Sequence[Mapping]) -> bool:
        """The main stack, or a private anonymous mapping that holds the thread's TLS as the C libraries lay it out."""
        if mapping.path == "[stack]":
            return True
        if mapping.inode or mapping.path == "[heap]":
            return False
        return mapping.start <= self.registers[pt.FS_BASE] < mapping.end

    def enter(self) -> None:
        """Write the frame. From the first :meth:`_launch` on, the frame restores the thread if we die."""
        point("inject.frame")
        self.process.write(self.frame.address, self.frame.data)
        point("inject.written")

    def _launch(self, **changes: int) -> None:
        """Set the registers for a call: those of the thread, but for the changes; it will return into the frame."""
        registers = list(self.registers)
        registers[pt.EFLAGS] &= ~(_DF | _TF)
        registers[pt.ORIG_RAX] = _U64
        for name, value in changes.items():
            registers[getattr(pt, name)] = value & _U64
        pt.set_registers(self.tid, registers)
        point("inject.launched")
        if not self._entered:
            self._entered = True
            pt.set_signal_mask(self.tid, _ALL_SIGNALS | (self.mask & _SYNCHRONOUS))
            point("inject.masked")

    def _to_syscall_stop(self, deadline: float) -> None:
        """Run to the next syscall-stop. Only unblockable signals can come between; they take their course."""
        signal = 0
        while True:
            pt.request(pt.SYSCALL, self.tid, 0, signal)
            status = self._wait(deadline)
            if (status >> 8) & 0xFF == SYSCALL_STOP:
                return
            signal = pending_signal(status)

    def syscall(self, number: int, *arguments: int) -> int:
        """Make one system call in the thread; returns its result, negative errno on failure."""
        values = list(arguments) + [0] * (6 - len(arguments))
        assert self.tools.syscall_ret is not None
        self._launch(
            RIP=self.tools.syscall_ret,
            RSP=self.frame.address,
            RAX=number,
            **dict(zip(("RDI", "RSI", "RDX", "R10", "R8", "R9"), values, strict=True)),
        )
        deadline = time.monotonic() + 30.0
        self._to_syscall_stop(deadline)
        point("inject.syscall-entry")
        self._to_syscall_stop(deadline)
        point("inject.syscall-exit")
        result = pt.get_registers(self.tid)[pt.RAX]
        return result - (1 << 64) if result >> 63 else result

    def call(self, function: int, arguments: Sequence[int], deadline: float) -> int:
        """Call a C function; raises Unsuitable when it has not returned at the deadline (it then goes on alone)."""
        store = self.tools.store
        assert store is not None and self.tools.restorer is not None
        # From the return address upwards: the result store, the words that it pops, then the frame.
        bottom = self.frame.address - 8 * (store.pops + 1)
        if bottom % 16 != 8:
            raise Unsuitable("no aligned place for the call")
        self.process.write(bottom, struct.pack("<Q", store.address) + bytes(8 * store.pops))
        base = {"RBX" if store.base == pt.RBX else "RBP": self.frame.scratch - store.displacement}
        values = list(arguments) + [0] * (6 - len(arguments))
        self._launch(
            RIP=function,
            RSP=bottom,
            RAX=0,
            **base,
            **dict(zip(("RDI", "RSI", "RDX", "RCX", "R8", "R9"), values, strict=True)),
        )
        while True:
            self._to_syscall_stop(deadline)
            registers = pt.get_registers(self.tid)
            if registers[pt.ORIG_RAX] == _RT_SIGRETURN and registers[pt.RSP] == self.frame.address + 8:
                break
            if registers[pt.ORIG_RAX] in frame.RESTART_CALLS:
                self._forget_restart_block()
            self._to_syscall_stop(deadline)
        point("inject.returned")
        # Skip the rt_sigreturn that is about to happen; should we die now, the thread comes here once more.
        registers[pt.ORIG_RAX] = _U64
        registers[pt.RIP] = self.tools.restorer[0]
        pt.set_registers(self.tid, registers)
        point("inject.skipped")
        self._to_syscall_stop(time.monotonic() + _PATIENCE * 20)
        result = int.from_bytes(self.process.read(self.frame.scratch, 8), "little")
        pt.set_xstate(self.tid, self._xstate)
        point("inject.xstate")
        return result

    def _forget_restart_block(self) -> None:
        """The called code is about to overwrite what the kernel remembers of the interrupted sleep: begin it anew."""
        if self.registers[pt.RAX] == pt.ERESTART_RESTARTBLOCK:
            self.registers[pt.RAX] = pt.ERESTARTNOHAND
            self.registers[pt.ORIG_RAX] = self._interrupted_call

    def leave(self) -> None:
        """Put the thread's own state back and let it go; it may be in any stop."""
        if self.ended:
            return
        try:
            if self._entered:
                pt.set_signal_mask(self.tid, self.mask)
                point("inject.unmasked")
            if self.registers:
                pt.set_registers(self.tid, self.registers)
                point("inject.restored")
            pt.request(pt.DETACH, self.tid, 0, 0)
            self.ended = True
        except ProcessLookupError:
            self.let_go()  # it runs (we were interrupted while we waited) or was killed
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """Detach without restoring: the thread finishes the call and restores itself by its frame."""
        if self.ended:
            return
        self.ended = True
        if pt.ptrace(pt.DETACH, self.tid, 0, 0) >= 0:
            return
        pt.ptrace(pt.INTERRUPT, self.tid, 0, 0)
        try:
            status = self._wait(time.monotonic() + 2.0)
        except Unsuitable:
            give_up_on(self.process.pid, self.tid)
        except ProcessGone:
            return
        else:
            pt.ptrace(pt.DETACH, self.tid, 0, pending_signal(status))


def _candidates(process: LinuxProcess) -> Iterator[int]:
    """Threads worth trying: the leader first, none that is dead or in uninterruptible sleep."""
    tids = list_threads(process.pid)
    tids.sort(key=lambda tid: (tid != process.pid, tid))
    for tid in tids:
        try:
            if read_stat(process.pid, tid).state not in "DZX":
                yield tid
        except ProcessGone:
            continue


@contextmanager
def hijack(
    process: LinuxProcess,
    tools: gadgets.Gadgets,
    room: int,
    timeout: float,
    accept: Callable[[Hijack], bool] = lambda _: True,
) -> Iterator[Hijack]:
    """Attach to one thread that can be used, with its frame written; put it back and let it go at the end.

    Tries thread after thread until ``timeout`` seconds have passed. ``accept`` may turn a stopped thread down.
    """
    sweep_stuck()
    deadline = time.monotonic() + timeout
    reason = "no thread could be stopped"
    while True:
        candidates = list(_candidates(process))
        if not candidates:
            process.maps()  # raises ProcessGone when it has none any more
        for tid in candidates:
            taken, why = _take(process, tools, tid, room, accept)
            if taken is None:
                reason = why
                continue
            try:
                yield taken
            finally:
                if not taken.ended:
                    taken.leave()
            return
        if time.monotonic() > deadline:
            raise NoSafeThread(f"process {process.pid} has no thread to work in: {reason}; try again later")
        time.sleep(0.002)


def _take(
    process: LinuxProcess, tools: gadgets.Gadgets, tid: int, room: int, accept: Callable[[Hijack], bool]
) -> tuple[Hijack | None, str]:
    options = pt.O_TRACESYSGOOD | pt.O_TRACEEXEC
    if process.confined():
        options |= pt.O_SUSPEND_SECCOMP
    try:
        pt.request(pt.SEIZE, tid, 0, options)
    except ProcessLookupError:
        return None, f"thread {tid} ended"
    except OSError as error:
        try:
            if read_stat(process.pid, tid).exiting:
                return None, f"thread {tid} is ending"
        except ProcessGone:
            return None, f"thread {tid} ended"
        reason = process.untouchable() or f"attaching to thread {tid} failed: {error.strerror}"
        raise process.refusal("cannot be changed", reason) from None
    taken = Hijack(process, tid, tools)
    ready = False
    try:
        process.check_same()
        taken.interrupt(time.monotonic() + _PATIENCE)
        taken.examine(room)
        if not accept(taken):
            return None, "no thread was at a safe place"
        taken.enter()
        ready = True
        return taken, ""
    except Unsuitable as error:
        return None, str(error)
    finally:
        if not ready and not taken.ended:
            if taken.registers:
                taken.leave()
            else:
                taken.let_go()
