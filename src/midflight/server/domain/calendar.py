"""Which months bring a baseline and which a hotpatch, and what an unplanned baseline costs.

(Microsoft's cadence: baselines, which restart, in January, April, July and October; hotpatches in the other eight
months. An unplanned baseline replaces that month's hotpatch, and whoever takes it gets no hotpatch until the next
planned one.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from midflight.errors import InputError
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.model import Content, ContentKind, Device, Policy

QUARTERLY = frozenset({1, 4, 7, 10})
PATCH_TUESDAY = (1, 2)
"""Weekday (Monday is 0) and which of the month."""


class CalendarError(InputError):
    """A calendar makes no sense."""


@dataclass(frozen=True, slots=True)
class Month:
    """One month of the plan. ``planned`` differs from ``kind`` where an unplanned baseline replaced the hotpatch."""

    release: date
    kind: ContentKind
    planned: ContentKind


@dataclass(frozen=True, slots=True)
class Calendar:
    """The plan of a package, or of all."""

    baseline_months: frozenset[int] = QUARTERLY
    weekday: int = PATCH_TUESDAY[0]
    nth: int = PATCH_TUESDAY[1]
    unplanned: frozenset[date] = frozenset()
    """First days of months in which a baseline replaced the hotpatch."""

    def __post_init__(self) -> None:
        if not self.baseline_months or not self.baseline_months <= frozenset(range(1, 13)):
            raise CalendarError("a calendar needs at least one baseline month, from 1 to 12")
        if not 0 <= self.weekday <= 6 or not 1 <= self.nth <= 4:
            raise CalendarError("a release day is a weekday from 0 (Monday) to 6, the 1st to 4th of its month")

    def release(self, year: int, month: int) -> date:
        """The release day of a month."""
        first = date(year, month, 1)
        return first + timedelta(days=(self.weekday - first.weekday()) % 7 + 7 * (self.nth - 1))

    def month(self, year: int, month: int) -> Month:
        """What a month brings."""
        planned = ContentKind.BASELINE if month in self.baseline_months else ContentKind.HOTPATCH
        replaced = date(year, month, 1) in self.unplanned
        return Month(self.release(year, month), ContentKind.BASELINE if replaced else planned, planned)

    def year(self, year: int) -> list[Month]:
        """The plan of a year."""
        return [self.month(year, month) for month in range(1, 13)]

    def next_planned_baseline(self, after: date) -> date:
        """The release day of the first planned baseline after a day."""
        year, month = after.year, after.month
        while True:
            release = self.release(year, month)
            if month in self.baseline_months and release > after:
                return release
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)


@dataclass(frozen=True, slots=True)
class OffTrack:
    """What publishing an unplanned baseline does: devices that get no hotpatch until the next planned baseline."""

    devices: frozenset[str]
    until: date
    restarts: int
    """Devices that need a restart for it, those that are off the track already included."""

    def __str__(self) -> str:
        if not self.devices:
            return "this takes no device off the hotpatch track"
        count = len(self.devices)
        return f"this takes {count} {'device' if count == 1 else 'devices'} off the hotpatch track until {self.until}"


def off_track(
    baseline: Content,
    devices: Iterable[tuple[Device, Policy | None]],
    calendar: Calendar,
    catalogue: Catalogue,
    today: date,
) -> OffTrack:
    """Whom an unplanned baseline takes off the hotpatch track, to be shown before it is published.

    Args:
        baseline: the content that is to be published.
        devices: all devices with the policies that govern them. Whoever has no policy gets nothing, and loses nothing.
        calendar: says when the next planned baseline comes.
        catalogue: what was published so far.
        today: the day of publication.
    """
    leaving: set[str] = set()
    restarts = 0
    for device, policy in devices:
        if policy is None or baseline.kind is not ContentKind.BASELINE:
            continue
        installed = catalogue.installed(device, baseline.package)
        if installed is None or installed.sequence >= baseline.sequence:
            continue
        restarts += 1
        if policy.hotpatch and installed.on_track and not baseline.on_track:
            leaving.add(device.id)
    return OffTrack(frozenset(leaving), calendar.next_planned_baseline(today), restarts)
