"""The processes that carry something of ours, or should: what was applied to each, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from midflight.agent.health import blamed
from midflight.agent.orders import Key
from midflight.process.live import Held, LiveProcess


@dataclass(slots=True)
class Tracked:
    """One process by pid and start time (0: not known yet, a child that was forked a moment ago)."""

    pid: int
    start_time: int
    command: str
    applied: dict[Key, float] = field(default_factory=dict)
    """When each hotpatch came into it, in seconds of CLOCK_MONOTONIC."""
    done: set[tuple[str, str]] = field(default_factory=set)
    """(digest, image) of what needs not be applied again."""
    failures: int = 0
    held: Held | None = None
    """The process, held open where only that tells how it ended."""


class Processes:
    """All of them, by pid."""

    def __init__(self) -> None:
        self._by_pid: dict[int, Tracked] = {}

    def __len__(self) -> int:
        return len(self._by_pid)

    def __iter__(self) -> Iterator[Tracked]:
        return iter(list(self._by_pid.values()))

    def get(self, pid: int) -> Tracked | None:
        """The one with this number."""
        return self._by_pid.get(pid)

    def of(self, process: LiveProcess, command: str) -> Tracked:
        """The entry of a process; a new one for a process that has the number of another that is gone."""
        found = self._by_pid.get(process.pid)
        if found is not None and found.start_time == 0:
            found.start_time = process.start_time
        if found is None or found.start_time != process.start_time:
            found = self._by_pid[process.pid] = Tracked(process.pid, process.start_time, command)
        return found

    def forked(self, parent: int, child: int, at: float) -> bool:
        """A child has what was in its parent when it was made; False: look at it, since something came into the parent
        only afterwards."""
        found = self._by_pid.get(parent)
        if found is None:
            return True
        inherited = {key: when for key, when in found.applied.items() if when <= at}
        self._by_pid[child] = Tracked(child, 0, found.command, inherited)
        return len(inherited) == len(found.applied)

    def forget(self, pid: int) -> Tracked | None:
        """It ended, or became another program."""
        return self._by_pid.pop(pid, None)

    def with_key(self, key: Key) -> list[int]:
        """The processes that carry a hotpatch."""
        return [tracked.pid for tracked in self._by_pid.values() if key in tracked.applied]

    def reverted(self, key: Key) -> None:
        """A hotpatch is in none of them any more."""
        for tracked in self._by_pid.values():
            tracked.applied.pop(key, None)
            tracked.done.clear()


def suspects(tracked: Tracked, now: float, window: float) -> list[Key]:
    """The hotpatches that the crash of a process counts against."""
    return blamed([(name, sequence, at) for (name, sequence), at in tracked.applied.items()], now, window)
