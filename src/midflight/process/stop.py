"""The stop: every thread of a process stands still, with its registers and live stack read.

Everything that can be done before the clock runs is done before: the threads are seized, the mappings are read, the
buffers are allocated. Inside, per thread: interrupt, wait, registers; then one batched read of all stacks; and on
:meth:`Stop.resume` one detach each. See ptrace(2) for the kinds of stops told apart here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import time
from bisect import bisect_right
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from midflight.errors import ProcessError, ProcessGone
from midflight.process import frame, gadgets, step
from midflight.process import ptrace as pt
from midflight.process.faults import point
from midflight.process.maps import list_threads, read_file, read_stat
from midflight.process.model import Mapping, Stack, Thread
from midflight.process.wait import Waiter, give_up_on, pending_signal, sweep_stuck

if TYPE_CHECKING:
    from midflight.process.linux import LinuxProcess

STACK_LIMIT = 64 << 20
"""Bytes of one stack that are read at most; a thread with a larger live stack is reported as incomplete."""

_STUCK_PATIENCE = 2.0
_SCRATCH_SIZE = 4 << 20
_scratch = bytearray(b"\1") * _SCRATCH_SIZE  # written, so that no page of it is faulted in while a target stands still
_scratch_address = ctypes.addressof(ctypes.c_char.from_buffer(_scratch))
_scratch_busy = False
_IOV_MAX = 1024
_POSTPONED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Stop:
    """One stop of one process; a context manager whose ``__enter__`` stops. Implements the Stopped protocol."""

    def __init__(self, process: LinuxProcess, timeout: float) -> None:
        self.process = process
        self.timeout = timeout
        self.threads: list[Thread] = []
        self.signals: dict[int, int] = {}
        """Stopped thread: signal to be delivered when it goes on."""
        self.seconds = 0.0
        self._seized: list[int] = []
        self._dead: set[int] = set()
        self._starts: list[int] = []
        self._mappings: list[Mapping] = []
        self._restorers: list[bytes] = []
        self._began = 0.0
        self._resumed = False
        self._nice = 0
        self._left: list[int] = []
        self._own_mask: set[int] = set()
        self._gc = False
        self._task_fd = -1
        self._view = process.pid
        self._registers: dict[int, tuple[int, ...]] = {}

    # -- before the clock ------------------------------------------------------------------------------------------

    def __enter__(self) -> Stop:
        sweep_stuck()
        pid = self.process.pid
        self._waiter = Waiter(pid)
        self._gc = gc.isenabled()
        gc.disable()
        self._hurry()
        # An interrupt from the keyboard waits until the target runs again.
        self._own_mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, _POSTPONED))
        try:
            try:
                self._task_fd = os.open(f"/proc/{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, ProcessLookupError):
                raise ProcessGone(f"process {pid} ended; nothing left to do") from None
            self._refuse_unstoppable()
            self._seize_all()
            self.process.check_same()
            found = gadgets.find(self.process.maps(), self.process.read)
            self._restorers = [_needle(address) for address in found.restorers]
            self._buffer = ctypes.create_string_buffer(pt.REGS_SIZE)
            self._view = self.process.view()
            self._read_mappings()
            point("stop.seized")
            self._began = time.perf_counter()
            self._stop_all()
            point("stop.stopped")
            self._snapshot(self._registers)
            point("stop.snapshot")
        except BaseException:
            self._release()
            raise
        return self

    def _hurry(self) -> None:
        """Take the highest ordinary priority: hundreds of busy threads would leave us a sliver of the processor."""
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)

    def _seize_all(self) -> None:
        """Seize every thread, listing again until nothing new appears."""
        pid = self.process.pid
        known: set[int] = set()
        while True:
            new = [tid for tid in list_threads(pid) if tid not in known]
            if not new:
                return
            for tid in new:
                known.add(tid)
                self._seize(tid)

    def _seize(self, tid: int) -> bool:
        if pt.ptrace(pt.SEIZE, tid, 0, pt.O_TRACEEXEC) >= 0:
            self._seized.append(tid)
            return True
        code = ctypes.get_errno()
        pid = self.process.pid
        if code == errno.ESRCH:
            return False
        try:
            stat = read_stat(pid, tid)
        except ProcessGone:
            return False
        if stat.state in "ZX":
            self._dead.add(tid)
            if tid == pid and len(list_threads(pid)) == 1:
                raise ProcessGone(f"process {pid} ended; nothing left to do")
            return False
        if stat.exiting:
            return False  # gone, or a zombie, when the threads are listed again
        reason = self.process.untouchable() or os.strerror(code)
        raise self.process.refusal(f"cannot be stopped (thread {tid})", reason)

    def _refuse_unstoppable(self) -> None:
        """Wait outside the clock for threads in uninterruptible sleep: they cannot be interrupted, nor released."""
        pid = self.process.pid
        deadline = time.monotonic() + self.timeout
        suspects = list_threads(pid)
        while True:
            suspects = [tid for tid in suspects if _state(pid, tid) == "D"]
            if not suspects:
                return
            if time.monotonic() > deadline:
                raise self._not_stopping(suspects[0])
            time.sleep(0.001)

    def _not_stopping(self, tid: int) -> ProcessError:
        pid = self.process.pid
        try:
            stat = read_stat(pid, tid)
            name, state = stat.comm, stat.state
            where = read_file(f"/proc/{pid}/task/{tid}/wchan").decode("ascii", "replace")
        except ProcessError:
            name, state, where = "?", "?", ""
        what = "waits for a vfork child" if _has_vfork_child(pid) else f"is in state {state}"
        return ProcessError(
            f"thread {tid} ({name}) of process {pid} did not stop within {self.timeout:g} s: it {what}"
            f"{' in ' + where if where not in ('', '0') else ''}; try again later"
        )

    def _read_mappings(self) -> None:
        self._mappings = [m for m in self.process.maps() if m.readable]
        self._starts = [m.start for m in self._mappings]

    # -- inside the clock ------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Interrupt and wait for everything, then for what appeared meanwhile, until nothing new is there."""
        deadline = self._began + self.timeout
        fresh = list(self._seized)
        listed_again = False
        while True:
            quick, interrupt = pt.quick, pt.INTERRUPT
            for tid in fresh:
                quick(interrupt, tid, 0, 0)
            self._wait_stopped(fresh, deadline)
            if os.fstat(self._task_fd).st_nlink - 2 == len(self._registers) + len(self._dead):
                break
            if time.perf_counter() > deadline:
                raise ProcessError(
                    f"the threads of process {self.process.pid} could not be counted within {self.timeout:g} s: "
                    "they come and go too fast; try again"
                )
            before = len(self._seized)
            self._dead.clear()
            for tid in list_threads(self.process.pid):
                if tid not in self._registers:
                    self._seize(tid)
            fresh = self._seized[before:]
            listed_again = True
        if listed_again:
            self._read_mappings()  # a new thread may have a new stack

    def _wait_stopped(self, tids: Sequence[int], deadline: float) -> None:
        """Wait until each thread has stopped (its registers are then read) or died."""
        pending = list(tids)
        raw = self._buffer
        quick, wait, getregs, unpack = pt.quick, self._waiter.wait, pt.GETREGS, pt.REGS.unpack
        registers = self._registers
        idle = 0
        while pending:
            still = []
            for tid in pending:
                try:
                    status = wait(tid)
                except ChildProcessError:
                    self._gone(tid)
                    continue
                if status is None:
                    still.append(tid)
                    continue
                if status & 0xFF != 0x7F:
                    self._gone(tid)
                    continue
                if status >> 16 != pt.EVENT_STOP:
                    if status >> 16 == pt.EVENT_EXEC:
                        registers[tid] = ()
                        raise ProcessGone(f"process {self.process.pid} became another program; look at it again")
                    self.signals[tid] = (status >> 8) & 0xFF
                if quick(getregs, tid, 0, raw) < 0:
                    still.append(tid)  # killed in this instant: the next wait tells
                    continue
                values = unpack(raw)
                registers[tid] = values
                if values[10] == pt.EINTR and values[15] in pt.EINTR_CALLS:
                    pt.ptrace(pt.POKEUSER, tid, 8 * pt.RAX, pt.ERESTARTNOHAND)
            if len(still) == len(pending):
                idle += 1
                if idle < 8:
                    os.sched_yield()
                else:
                    time.sleep(0.00002)  # the threads that we wait for may need this very processor
                if idle % 16 == 0 and self.process.pid in still and _state(self.process.pid, self.process.pid) in "ZX":
                    self._leader_left(still)
                if still and time.perf_counter() > deadline:
                    raise self._not_stopping(still[0])
            pending = still

    def _leader_left(self, waiting: list[int]) -> None:
        """The main thread ended while others live on: it stays a zombie until the last is gone."""
        pid = self.process.pid
        waiting.remove(pid)
        self._seized.remove(pid)
        self._dead.add(pid)
        give_up_on(pid, pid)

    def _gone(self, tid: int) -> None:
        """A thread died while we waited for it."""
        self._seized.remove(tid)
        self.signals.pop(tid, None)
        if tid != self.process.pid:
            return
        try:
            others = len(list_threads(tid)) > 1
        except ProcessGone:
            others = False
        if not others:
            raise ProcessGone(f"process {tid} ended while it was being stopped; nothing left to do")
        self._dead.add(tid)

    def _snapshot(self, registers: dict[int, tuple[int, ...]]) -> None:
        """Make a Thread of each register set, reading all live stacks in one go."""
        live, to_dwarf, rsp, red_zone = self._live, pt.to_dwarf, pt.RSP, frame.RED_ZONE
        fresh = [Thread(tid, to_dwarf(values)) for tid, values in registers.items()]
        places = [live(values[rsp] - red_zone) for values in registers.values()]
        if None in places:
            self._read_mappings()
            places = [live(values[rsp] - red_zone) for values in registers.values()]
        owners = [thread for thread, place in zip(fresh, places, strict=True) if place is not None]
        found = [place for place in places if place is not None]
        blocks, suspects = self._read_ranges(found)
        for thread, (start, _, whole), data in zip(owners, found, blocks, strict=True):
            thread.complete = whole and data is not None
            if data is not None:
                thread.stacks.append(Stack(start, data))
        if len(found) < len(fresh):
            for thread, values, place in zip(fresh, registers.values(), places, strict=True):
                if place is None:
                    # A worker of io_uring is listed as a thread, but has no user side at all.
                    thread.complete = not (values[pt.RSP] or values[pt.RIP])
        for index in suspects:
            if owners[index].stacks:
                self._follow(owners[index])
        if self.threads:
            merged = {thread.tid: thread for thread in self.threads}
            merged.update((thread.tid, thread) for thread in fresh)
            self.threads[:] = merged.values()
        else:
            self.threads[:] = fresh

    def _live(self, low: int) -> tuple[int, int, bool] | None:
        """(start, size, whole) of the live stack that reaches down to ``low``; None: no such mapping."""
        index = bisect_right(self._starts, low) - 1
        if index < 0:
            return None
        mapping = self._mappings[index]
        if low >= mapping.end:
            # The red zone may lie just below a stack that has no more room: then from the start of that stack.
            following = index + 1
            if following < len(self._mappings) and self._mappings[following].start < low + frame.RED_ZONE:
                mapping = self._mappings[following]
                low = mapping.start
            else:
                return None
        size = mapping.end - low
        return (low, size, True) if size <= STACK_LIMIT else (low, STACK_LIMIT, False)

    def _read_ranges(self, places: list[tuple[int, int, bool]]) -> tuple[list[bytes | None], list[int]]:
        """The contents of several ranges, and the indices of those that hold the address of a signal restorer."""
        global _scratch_busy
        if not places:
            return [], []
        total = sum([place[1] for place in places])
        pooled = total <= _SCRATCH_SIZE and not _scratch_busy
        buffer = _scratch if pooled else bytearray(total)
        _scratch_busy = _scratch_busy or pooled
        try:
            blocks, offsets = self._read_into(places, buffer)
            suspects = set()
            for restorer in self._restorers:
                at = buffer.find(restorer, 0, total)
                while at >= 0:
                    suspects.add(bisect_right(offsets, at) - 1)
                    at = buffer.find(restorer, at + 1, total)
            return blocks, sorted(suspects)
        finally:
            if pooled:
                _scratch_busy = False

    def _read_into(
        self, places: list[tuple[int, int, bool]], buffer: bytearray
    ) -> tuple[list[bytes | None], list[int]]:
        """Read with one process_vm_readv for up to 1024 ranges; returns contents and offsets in the buffer."""
        blocks: list[bytes | None] = []
        offsets = []
        base = _scratch_address if buffer is _scratch else ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        with memoryview(buffer) as view:
            offset = 0
            for first in range(0, len(places), _IOV_MAX):
                group = places[first : first + _IOV_MAX]
                flat = [value for place in group for value in place[:2]]
                want = sum(flat[1::2])
                remote = (ctypes.c_uint64 * len(flat))(*flat)
                local = (ctypes.c_uint64 * 2)(base + offset, want)
                got = pt.process_vm_readv(
                    self._view, ctypes.addressof(local), 1, ctypes.addressof(remote), len(group), 0
                )
                for start, size, _ in group:
                    offsets.append(offset)
                    end = offset + size
                    blocks.append(view[offset:end].tobytes() if got == want else self._read_one(start, size))
                    if got != want:
                        view[offset:end] = blocks[-1] or bytes(size)
                    offset = end
        return blocks, offsets

    def _read_one(self, start: int, size: int) -> bytes | None:
        try:
            return self.process.read(start, size)
        except ProcessError:
            return None

    def _follow(self, thread: Thread) -> None:
        """Read the stacks that a thread left when signal handlers went to an alternate stack."""
        todo = [thread.stacks[-1]]
        while todo:
            stack = todo.pop()
            for restorer in self._restorers:
                at = stack.data.find(restorer)
                while at >= 0:
                    pointer = frame.interrupted_stack_pointer(stack.data, at)
                    if (stack.start + at) % 8 == 0 and pointer is not None and not _covered(thread, pointer):
                        todo += self._read_interrupted(thread, pointer)
                    at = stack.data.find(restorer, at + 1)

    def _read_interrupted(self, thread: Thread, pointer: int) -> list[Stack]:
        place = self._live(pointer - frame.RED_ZONE)
        if place is None:
            return []  # a stale frame of a stack that is no more
        data = self._read_ranges([place])[0][0]
        if data is None:
            thread.complete = False
            return []
        thread.complete = thread.complete and place[2]
        stack = Stack(place[0], data)
        thread.stacks.append(stack)
        return [stack]

    # -- the way out -----------------------------------------------------------------------------------------------

    def step_out(self, exits: dict[int, tuple[int, int]], timeout: float) -> bool:
        """See :class:`~midflight.process.model.Stopped`."""
        reached, moved = step.out(self, exits, timeout)
        fresh = {}
        for tid in moved:
            values = tuple(pt.get_registers(tid))
            fresh[tid] = self._registers[tid] = values
        self._snapshot(fresh)
        return reached

    def waiter(self) -> Waiter:
        """How the threads of this process are waited for."""
        return self._waiter

    def drop(self, tid: int) -> None:
        """Forget a thread that died although it was stopped (only SIGKILL does that)."""
        self._registers.pop(tid, None)
        if tid in self._seized:
            self._gone(tid)
        self.threads[:] = [thread for thread in self.threads if thread.tid != tid]

    def resume(self) -> float:
        """See :class:`~midflight.process.model.Stopped`."""
        if not self._resumed:
            point("stop.resume")
            self._release()
        return self.seconds

    def _release(self) -> None:
        """Detach everything, whatever state it is in; never raises for what the target did. May be called again."""
        if self._resumed:
            return
        quick, detach, signals, seized = pt.quick, pt.DETACH, self.signals, self._seized
        while seized:
            tid = seized[-1]
            if tid not in self._registers or quick(detach, tid, 0, signals.get(tid, 0)) < 0:
                self._left.append(tid)
            seized.pop()
        if self._began and not self.seconds:
            self.seconds = time.perf_counter() - self._began
        if self._left:
            self._release_rest(self._left)
        self._resumed = True
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)
        if self._gc:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._own_mask)
        if self._task_fd >= 0:
            os.close(self._task_fd)
            self._task_fd = -1

    def _release_rest(self, left: list[int]) -> None:
        """Threads not stopped yet, or killed while stopped: stop and detach them, or see them die."""
        pid = self.process.pid
        deadline = time.monotonic() + _STUCK_PATIENCE
        for tid in left:
            pt.ptrace(pt.INTERRUPT, tid, 0, 0)
        while left:
            still = []
            for tid in left:
                try:
                    status = self._waiter.wait(tid)
                except (ChildProcessError, ProcessGone):
                    continue
                stopped = status is not None and status & 0xFF == 0x7F
                if status is None or (stopped and pt.ptrace(pt.DETACH, tid, 0, pending_signal(status)) < 0):
                    still.append(tid)
            left = still
            if left:
                if time.monotonic() > deadline:
                    for tid in left:
                        give_up_on(pid, tid)
                    return
                time.sleep(0.0005)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def _needle(address: int) -> bytes:
    """What to search for: without the leading zero bytes, which would make the search crawl through zeroed memory."""
    return address.to_bytes(8, "little").rstrip(b"\0")


def _covered(thread: Thread, pointer: int) -> bool:
    return any(stack.start <= pointer < stack.start + len(stack.data) for stack in thread.stacks)


def _state(pid: int, tid: int) -> str:
    try:
        return read_stat(pid, tid).state
    except ProcessError:
        return "X"


def _has_vfork_child(pid: int) -> bool:
    from midflight.process.linux import shares_memory_with

    try:
        return shares_memory_with(pid) is not None
    except ProcessError:
        return False
