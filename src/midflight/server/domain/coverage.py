"""What the fleet gained: times to 50, 90 and 99 %, exposure saved, time stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

MILESTONES = (50, 90, 99)


def milestones(
    published: datetime,
    fixed: Callable[[int], datetime | None],
    population: int,
    percents: Sequence[float] = MILESTONES,
) -> dict[float, timedelta | None]:
    """From publication until so many per cent of a population were fixed; None: not reached.

    Args:
        published: of the content.
        fixed: when so many devices (from 1) first ran the fix, in order of time; None: not so many did. Times before
            the publication count as zero.
        population: all devices that need it, those that are stale and silent too.
        percents: which.
    """
    result: dict[float, timedelta | None] = {}
    for percent in percents:
        needed = needed_for(percent, population)
        at = fixed(needed) if needed else None
        result[percent] = max(timedelta(0), at - published) if at else None
    return result


def needed_for(percent: float, population: int) -> int:
    """Devices that are so many per cent of a population."""
    return ceil(population * percent / 100)


def in_order(fixed: Iterable[datetime]) -> Callable[[int], datetime | None]:
    """For :func:`milestones`, when the time of each fixed device is at hand."""
    times = sorted(fixed)
    return lambda number: times[number - 1] if 0 < number <= len(times) else None


@dataclass(frozen=True, slots=True)
class Saved:
    """What hotpatching saved against restarting."""

    exposure_hours: float
    """Device hours in which the hole was closed by hotpatch while the restart had not come."""
    restarts: int
    """Restarts that did not happen for the fix's sake alone."""
    stopped_ms: float
    """What it cost: milliseconds that processes were stopped, all together."""


@dataclass(frozen=True, slots=True)
class Hotpatching:
    """One hotpatch on one device: when it ran, when (if ever) the fix came from disk, how long processes stood."""

    at: datetime
    restarted: datetime | None
    stopped_ms: float = 0.0


def saved(hotpatchings: Iterable[Hotpatching], now: datetime) -> Saved:
    """Against a world in which each device had waited for the restart that it did in the end, or still has not done."""
    hours = stopped = 0.0
    restarts = 0
    for each in hotpatchings:
        hours += max(timedelta(0), (each.restarted or now) - each.at).total_seconds() / 3600
        stopped += each.stopped_ms
        restarts += 1
    return Saved(hours, restarts, stopped)
