"""What the fleet gained: times to 50, 90 and 99 %, exposure saved, time stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

MILESTONES = (50, 90, 99)


def milestones(
    published: datetime, fixed: Iterable[datetime], population: int, percents: Sequence[float] = MILESTONES
) -> dict[float, timedelta | None]:
    """From publication until so many per cent of a population were fixed; None: not reached.

    Args:
        published: of the content.
        fixed: when each fixed device first ran the fix. Times before the publication count as zero.
        population: all devices that need it, those that are stale and silent too.
        percents: which.
    """
    times = sorted(fixed)
    result: dict[float, timedelta | None] = {}
    for percent in percents:
        needed = ceil(population * percent / 100)
        reached = 0 < needed <= len(times)
        result[percent] = max(timedelta(0), times[needed - 1] - published) if reached else None
    return result


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
