"""What the fleet gained: coverage of each CVE, times to 50, 90 and 99 %, exposure saved, time stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.model import Content, ContentKind, Device

MILESTONES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Coverage:
    """One CVE over the devices that have the package. ``share``: 0 to 1, None without any device."""

    cve: str
    affected: int
    hotpatched: int
    restarted: int

    @property
    def open(self) -> int:
        return self.affected - self.hotpatched - self.restarted

    @property
    def share(self) -> float | None:
        return (self.hotpatched + self.restarted) / self.affected if self.affected else None


def coverage(cve: str, devices: Iterable[Device], catalogue: Catalogue) -> Coverage:
    """How far a CVE is covered. A device is fixed for it in every package where content fixes it, or it is not."""
    fixes = [c for c in catalogue.contents.values() if not c.revoked and any(v.id == cve for v in c.cves)]
    first: dict[str, Content] = {}
    for content in fixes:
        known = first.get(content.package)
        if known is None or content.sequence < known.sequence:
            first[content.package] = content
    affected = hotpatched = restarted = 0
    for device in devices:
        packages = {image.package for image in device.images or ()} & first.keys()
        if not packages:
            continue
        affected += 1
        by = [catalogue.fixed_by(device, first[package]) for package in packages]
        if all(fix is not None for fix in by):
            memory = any(fix is not None and fix.kind is ContentKind.HOTPATCH for fix in by)
            hotpatched += memory
            restarted += not memory
    return Coverage(cve, affected, hotpatched, restarted)


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
