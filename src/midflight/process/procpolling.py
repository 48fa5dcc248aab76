"""Process events by looking at /proc, where the kernel does not tell them: many times a second, and never how one
ended: that is for whoever holds it open (``live.hold``)."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence

from midflight.errors import ProcessError
from midflight.process.events import Event
from midflight.process.maps import read_stat

INTERVAL = 0.25
"""Seconds between two looks: a compromise between the age of what is found and the load of listing /proc."""


class ProcPolling:
    """See :class:`midflight.process.events.ProcessEvents`. A process that calls exec without a new pid is told as
    started by a change of its program file."""

    tells_how_processes_end = False

    def __init__(self, why: str = "", interval: float = INTERVAL) -> None:
        self.source = f"looking at /proc every {interval * 1000:.0f} ms" + (f", since {why}" if why else "")
        self._interval = interval
        self._next = 0.0
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._seen = _look()

    def wait(self, timeout: float) -> Sequence[Event]:
        """See the protocol."""
        now = time.monotonic()
        until = min(max(self._next, now), now + timeout)
        ready, _, _ = select.select([self._read], [], [], max(0.0, until - now))
        if ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        now = time.monotonic()
        if now < self._next:
            return ()
        self._next = now + self._interval
        found = _look()
        began = [Event("started", pid, now) for pid, what in found.items() if self._seen.get(pid) != what]
        ended = [
            Event("ended", pid, now) for pid, (start, _) in self._seen.items() if found.get(pid, (-1,))[0] != start
        ]
        self._seen = found
        return [*ended, *began]

    def wake(self) -> None:
        """See the protocol."""
        with contextlib.suppress(OSError):
            os.write(self._write, b"w")

    def close(self) -> None:
        """See the protocol."""
        for handle in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(handle)


def _look() -> dict[int, tuple[int, str]]:
    """What runs: start time and program by pid."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                start = read_stat(int(name)).start_time
                found[int(name)] = (start, os.readlink(f"/proc/{name}/exe"))
            except (ProcessError, OSError):
                continue  # it ended, is a thread of the kernel, or another user's
    return found
