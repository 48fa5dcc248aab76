"""Waiting for traced threads: one by one, never blocking, never taking a status that belongs to somebody else."""

from __future__ import annotations

import errno
import os

from midflight.process import ptrace as pt
from midflight.process.maps import read_stat

SYSCALL_STOP = 0x85  # SIGTRAP with the mark of PTRACE_O_TRACESYSGOOD
_stuck: set[tuple[int, int]] = set()


def sweep_stuck() -> None:
    """Let go of threads that would not stop when we gave up on them, as soon as they have stopped.

    ptrace lets only the (operating system) thread that attached detach, and only from a stopped thread; a thread in
    uninterruptible sleep can therefore not be released at once. It is released here, or by the kernel when we end.
    """
    for entry in list(_stuck):
        _pid, tid = entry
        try:
            got, status = os.waitpid(tid, pt.WNOHANG_WALL)
        except ChildProcessError:
            _stuck.discard(entry)
            continue
        if got == 0:
            continue
        if status & 0xFF == 0x7F:
            pt.ptrace(pt.DETACH, tid, 0, pending_signal(status))
        _stuck.discard(entry)


def give_up_on(pid: int, tid: int) -> None:
    """Leave a thread that does not stop to :func:`sweep_stuck`."""
    _stuck.add((pid, tid))


def pending_signal(status: int) -> int:
    """The signal of a signal-delivery-stop, to be passed on when the thread goes on; 0 for every other stop."""
    number = (status >> 8) & 0xFF
    return 0 if status >> 16 or number == SYSCALL_STOP else number


class Waiter:
    """Waits for single threads without ever blocking and without taking a status that is not ours.

    When the target is our own child, the exit of its leader belongs to whoever made it (``subprocess`` for instance):
    the leader is then waited for with waitid(WSTOPPED), which leaves exits alone.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._own_child = read_stat(pid).parent == os.getpid()

    def wait(self, tid: int) -> int | None:
        """The wait status of a thread that stopped or died, None while it runs. Raises ChildProcessError: no more."""
        if tid == self._pid and self._own_child:
            result = os.waitid(os.P_PID, tid, os.WSTOPPED | pt.WNOHANG_WALL)
            if result is None:
                if read_stat(tid).state in "ZX":
                    raise ChildProcessError(errno.ECHILD, "the leader exited")
                return None
            return (result.si_status << 8) | 0x7F
        got, status = os.waitpid(tid, pt.WNOHANG_WALL)
        return status if got else None
