"""When to look at a process again: several times soon after it began, since its libraries come one after the other.
Pure: time is given."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

SOON = (0.001, 0.002, 0.004, 0.007, 0.012, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.6, 5.0)
"""Seconds after the exec of a process of Linux, until its loader is done."""
LATER = 5
"""The first of these for a program that had nothing of interest when it was seen before: a machine that compiles starts
hundreds of them a second, most of which have ended by then."""
SOON_COMPARED = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The same where one look must be compared with the next (Windows)."""
RETRIES = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
"""Seconds until a patch that could not be applied is tried again; the last one for ever."""


@dataclass(slots=True)
class Look:
    """One look that is to be taken: the number of the process, and how many were taken before."""

    pid: int
    number: int
    began: float
    retry: bool = False
    program: tuple[int, int, int] | None = None
    """What it runs, where that is known."""


class Looks:
    """The looks that are to be taken, in the order of their times. One a process: the newest counts."""

    def __init__(self, soon: Sequence[float] = SOON) -> None:
        self._soon = soon
        self._heap: list[tuple[float, int, int]] = []
        self._looks: dict[int, tuple[int, Look]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._looks)

    def _put(self, due: float, look: Look) -> None:
        self._count += 1
        self._looks[look.pid] = (self._count, look)
        heapq.heappush(self._heap, (due, self._count, look.pid))

    def begin(self, pid: int, at: float, program: tuple[int, int, int] | None = None, later: bool = False) -> None:
        """A process runs a new program since ``at``; ``later``: nothing is expected of it."""
        number = LATER if later else 0
        self._put(at + self._soon[number], Look(pid, number, at, program=program))

    def again(self, look: Look) -> bool:
        """Take the look that follows; False when enough were taken."""
        number = look.number + 1
        if look.retry:
            self.retry(look.pid, number, look.began)
            return True
        if number >= len(self._soon):
            return False
        self._put(look.began + self._soon[number], Look(look.pid, number, look.began, program=look.program))
        return True

    def retry(self, pid: int, number: int, now: float) -> None:
        """Try again later, the ``number``-th time (from 0)."""
        self._put(now + RETRIES[min(number, len(RETRIES) - 1)], Look(pid, number, now, True))

    def waits_for(self, pid: int) -> bool:
        """Whether a look at this process is to be taken anyway."""
        return pid in self._looks

    def forget(self, pid: int) -> None:
        """The process ended."""
        self._looks.pop(pid, None)

    def due(self, now: float) -> Look | None:
        """The next look whose time has come."""
        while self._heap and self._heap[0][0] <= now:
            _, count, pid = heapq.heappop(self._heap)
            found = self._looks.get(pid)
            if found is not None and found[0] == count:
                del self._looks[pid]
                return found[1]
        return None

    def next_due(self) -> float | None:
        """When the next one is due."""
        while self._heap:
            due, count, pid = self._heap[0]
            found = self._looks.get(pid)
            if found is not None and found[0] == count:
                return due
            heapq.heappop(self._heap)
        return None
