"""What time it is, also when somebody sets the clock, or the battery of the clock is dead.

The server's time comes over the pinned connection. From then on CLOCK_BOOTTIME counts, which nobody can set: the wall
clock is not looked at again in this run of the machine. A device that has heard no server since it started has only
its wall clock; when that is set meanwhile, or stands before a time that was heard earlier, nothing that depends on
the time begins until both readings agree that it may.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

JUMP = timedelta(minutes=2)
"""A wall clock that is off by more was set (NTP slews what is less than half a second, and steps what is more)."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A time that was known at an uptime of one start of the machine. ``heard``: a server said it."""

    boot: str
    uptime: float
    time: datetime
    heard: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """Now. ``other`` is what the second clock says, where the two disagree and nobody knows which one is right."""

    now: datetime
    other: datetime | None = None
    off: timedelta = timedelta(0)
    """How far the wall clock is ahead."""

    @property
    def sure(self) -> bool:
        """Whether the time is known."""
        return self.other is None

    @property
    def readings(self) -> tuple[datetime, ...]:
        """All that it may be."""
        return (self.now,) if self.other is None else (self.now, self.other)


def moment(wall: float, uptime: float, boot: str, anchor: Anchor | None, floor: datetime | None) -> Moment:
    """Now, from the clocks of the machine.

    Args:
        wall: seconds since 1970, as the wall clock says.
        uptime: seconds since the machine started.
        anchor: the newest that is known.
        floor: the latest time that a server ever said: it is not earlier now.
    """
    shown = datetime.fromtimestamp(wall, UTC)
    if anchor is not None and anchor.boot == boot:
        counted = anchor.time + timedelta(seconds=uptime - anchor.uptime)
        off = shown - counted
        if anchor.heard:
            return Moment(counted, None, off)
        if abs(off) > JUMP:
            return Moment(counted, shown, off)
    if floor is not None and shown < floor - JUMP:
        return Moment(shown, floor, shown - floor)
    return Moment(shown)
