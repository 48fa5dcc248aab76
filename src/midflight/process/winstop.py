"""The stop on Windows: every thread of a process suspended, with its registers and live stack read.

Handles are opened and the record of suspensions is laid out before the clock runs. Inside, per thread: SuspendThread,
GetThreadContext (which waits until the thread really stands), its stack; then threads are listed again until nothing
new is there.
"""

from __future__ import annotations

import ctypes
import gc
import time
from types import TracebackType
from typing import TYPE_CHECKING

from midflight.errors import ProcessError
from midflight.process import guardian
from midflight.process.faults import point
from midflight.process.model import RSP, Stack, Thread
from midflight.process.suspended import Suspensions, owner_of_this
from midflight.process.win32 import (
    ACCESS_DENIED,
    CONTEXT_CONTROL_INTEGER,
    FAILED,
    GENERAL_TO_DWARF,
    NO_MORE_ENTRIES,
    THREAD_STOP,
    Context,
    ThreadInformation,
    api,
    describe,
    last_error,
)

if TYPE_CHECKING:
    from midflight.process.windows import WindowsProcess

STACK_LIMIT = 64 << 20
_STACK_BASE = 8  # NT_TIB: StackBase, StackLimit


class WindowsStop:
    """One stop of one process; a context manager whose ``__enter__`` stops. Implements the Stopped protocol."""

    def __init__(self, process: WindowsProcess, timeout: float) -> None:
        self.process = process
        self.timeout = timeout
        self.threads: list[Thread] = []
        self.seconds = 0.0
        self._handles: dict[int, int] = {}
        self._held: dict[int, int] = {}
        """Suspended thread: its handle."""
        self._dead: set[int] = set()
        self._tebs: dict[int, int] = {}
        self._record: Suspensions | None = None
        self._began = 0.0
        self._gc = False
        self._context_memory = ctypes.create_string_buffer(ctypes.sizeof(Context) + 16)
        self._context_at = (ctypes.addressof(self._context_memory) + 15) & ~15
        self._context = Context.from_address(self._context_at)

    # -- stopping --------------------------------------------------------------------------------------------------

    def __enter__(self) -> WindowsStop:
        guardian.watch_over_us()
        self._record = Suspensions(self.process.pid, self.process.start_time, owner_of_this())
        self._gc = gc.isenabled()
        gc.disable()
        try:
            self._open_new()
            self.process.check_alive()
            self._record.about_to([tid for tid in self._handles if tid not in self._dead])
            point("stop.recorded")
            self._began = time.perf_counter()
            self._stop_all()
            point("stop.stopped")
            self.threads[:] = [self._snapshot(tid, handle) for tid, handle in self._held.items()]
            point("stop.snapshot")
        except BaseException:
            self._release()
            raise
        return self

    def _open_new(self) -> list[int]:
        """Open every thread that is not known yet; those that ended are noted as such."""
        fresh = []
        for tid, handle in self.process.thread_handles(THREAD_STOP):
            if tid in self._handles:
                api().CloseHandle(handle)
                continue
            self._handles[tid] = handle
            fresh.append(tid)
            if self._ended(handle):
                self._dead.add(tid)
            else:
                self._tebs[tid] = _teb(handle)
        return fresh

    @staticmethod
    def _ended(handle: int) -> bool:
        return bool(api().WaitForSingleObject(handle, 0) == 0)

    def _stop_all(self) -> None:
        deadline = self._began + self.timeout
        fresh = list(self._handles)
        while fresh:
            for tid in fresh:
                if tid not in self._dead:
                    self._suspend(tid)
            if time.perf_counter() > deadline:
                raise ProcessError(
                    f"the threads of process {self.process.pid} could not be stopped within {self.timeout:g} s: "
                    "they come and go too fast; try again"
                )
            # A thread that appeared meanwhile; it may have made others before it was suspended itself.
            fresh = self._open_new()
            if fresh:
                assert self._record is not None
                self._record.about_to([tid for tid in fresh if tid not in self._dead])

    def _suspend(self, tid: int) -> None:
        handle = self._handles[tid]
        before = api().SuspendThread(handle)
        if before == FAILED:
            number = last_error()
            if self._ended(handle) or number == ACCESS_DENIED:
                # A thread that is on its way out cannot be suspended, and runs no code of the program any more.
                self._dead.add(tid)
                self.process.check_alive()
                return
            raise ProcessError(f"thread {tid} of process {self.process.pid} cannot be stopped: {describe(number)}")
        self._held[tid] = handle
        if before:
            assert self._record is not None
            self._record.was_suspended(tid, before)

    # -- looking ---------------------------------------------------------------------------------------------------

    def _registers(self, tid: int, handle: int) -> tuple[int, ...] | None:
        """By DWARF number; None when the thread ended although it was suspended (TerminateThread)."""
        self._context.flags = CONTEXT_CONTROL_INTEGER
        if not api().GetThreadContext(handle, self._context_at):
            if self._ended(handle):
                return None
            raise ProcessError(
                f"the registers of thread {tid} of process {self.process.pid} cannot be read: {describe(last_error())}"
            )
        general = list(self._context.general)
        return (*[general[index] for index in GENERAL_TO_DWARF], self._context.rip)

    def _snapshot(self, tid: int, handle: int) -> Thread:
        registers = self._registers(tid, handle)
        if registers is None:
            self.process.check_alive()
            return Thread(tid, (0,) * 17)
        thread = Thread(tid, registers)
        low, end = registers[RSP], self._stack_end(tid, registers[RSP])
        size = min(end - low, STACK_LIMIT)
        try:
            thread.stacks.append(Stack(low, self.process.read(low, size)) if size > 0 else Stack(low, b""))
            thread.complete = 0 < size == end - low
        except ProcessError:
            self.process.check_alive()
            thread.complete = False
        return thread

    def _stack_end(self, tid: int, pointer: int) -> int:
        """Where the stack ends that the thread is on now: as its environment block says (fibers switch that, too)."""
        teb = self._tebs.get(tid, 0)
        if teb:
            words = self.process.read(teb + _STACK_BASE, 16)
            base, limit = int.from_bytes(words[:8], "little"), int.from_bytes(words[8:], "little")
            if limit - 0x10000 <= pointer < base:
                return base
        return self.process.region_end(pointer)

    # -- leading out -----------------------------------------------------------------------------------------------

    def step_out(self, exits: dict[int, tuple[int, int]], timeout: float) -> bool:
        """See :class:`~midflight.process.model.Stopped`: each thread runs in short bursts until a burst ends with its
        stack pointer above the frame. There is no breakpoint that would be gone with us, as Linux has."""
        deadline = time.perf_counter() + timeout
        pending = dict(exits)
        burst = 0.0
        while pending and time.perf_counter() < deadline:
            for tid in list(pending):
                api().ResumeThread(self._held[tid])
            if burst:
                time.sleep(burst)
            for tid in list(pending):
                if api().SuspendThread(self._held[tid]) == FAILED:
                    self._held.pop(tid)
                    pending.pop(tid)
            for tid in list(pending):
                registers = self._registers(tid, self._held[tid])
                if registers is None or registers[RSP] >= exits[tid][1]:
                    pending.pop(tid)
            burst = min(0.002, burst + 0.00005)
        self.threads[:] = [
            self._snapshot(thread.tid, self._held[thread.tid]) if thread.tid in exits else thread
            for thread in self.threads
            if thread.tid in self._held
        ]
        # Whoever ran may have started threads, which nobody holds.
        fresh = self._open_new()
        if fresh and self._record is not None:
            self._record.about_to([tid for tid in fresh if tid not in self._dead])
            for tid in fresh:
                if tid not in self._dead:
                    self._suspend(tid)
                    if tid in self._held:
                        self.threads.append(self._snapshot(tid, self._held[tid]))
        return not pending

    # -- the way out -----------------------------------------------------------------------------------------------

    def resume(self) -> float:
        """See :class:`~midflight.process.model.Stopped`."""
        if self._record is not None:
            point("stop.resume")
            self._release()
        return self.seconds

    def _release(self) -> None:
        """Resume everything that we suspended, once; never raises for what the target did."""
        win = api()
        for handle in self._held.values():
            win.ResumeThread(handle)
        self._held.clear()
        if self._record is not None:
            self._record.all_resumed()
            if self._began:
                self.seconds = time.perf_counter() - self._began
            self._record.close()
            self._record = None
        for handle in self._handles.values():
            win.CloseHandle(handle)
        self._handles.clear()
        if self._gc:
            gc.enable()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def _teb(handle: int) -> int:
    """The address of a thread's environment block, 0 when it is not told."""
    information = ThreadInformation()
    status = api().NtQueryInformationThread(
        handle, 0, ctypes.byref(information), ctypes.sizeof(information), None
    )  # fmt: skip
    return int(information.teb) if status == 0 else 0


def next_threads(process: int, access: int) -> list[tuple[int, int]] | None:
    """(thread, handle) of all threads of a process, by NtGetNextThread; None where it does not do that."""
    win = api()
    found: list[tuple[int, int]] = []
    current = 0
    while True:
        following = ctypes.c_void_p()
        status = win.NtGetNextThread(process, current, access, 0, 0, ctypes.byref(following))
        if status == NO_MORE_ENTRIES:
            return found
        if status != 0 or not following.value:
            for _, handle in found:
                win.CloseHandle(handle)
            return None
        current = following.value
        found.append((int(win.GetThreadId(current)), current))
