"""The fleet's report: how far each vulnerability is covered and how fast, what hotpatching saved, what failed.

Counted by the database over indexes, so that it stays cheap with many devices. Disabled devices do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, case, func, or_, select
from sqlalchemy.orm import Session

from midflight.server.domain.coverage import MILESTONES, Hotpatching, Saved, milestones, needed_for, saved
from midflight.server.domain.model import ComplianceState, Content, ContentKind, Cve
from midflight.server.domain.reasons import Reason
from midflight.server.store import tallies
from midflight.server.store.base import Instant
from midflight.server.store.catalogue import Content as ContentRow
from midflight.server.store.devices import Device, DeviceImage, DevicePatch, Image, Outcome

_FAILURES = ("failed", "revert_failed", "refused")
_HEALTH = ("health_failed", "crashed")
_CHUNK = 5000


@dataclass(frozen=True, slots=True)
class CveLine:
    """One vulnerability in one package."""

    cve: Cve
    package: str
    fix: str
    """Name of the first content that fixes it."""
    published: datetime
    affected: int
    """Devices that have the package in memory, or (installed by hand) an image that its content names."""
    hotpatched: int
    restarted: int
    times: dict[float, timedelta | None]
    """From publication until so many per cent of the affected ran the fix; None: not reached."""

    @property
    def open(self) -> int:
        """Devices that still run vulnerable code."""
        return max(0, self.affected - self.hotpatched - self.restarted)

    @property
    def share(self) -> float | None:
        """Of the affected that are covered, 0 to 1; None without any."""
        return min(1.0, (self.hotpatched + self.restarted) / self.affected) if self.affected else None


@dataclass(frozen=True, slots=True)
class FailureLine:
    """How often something failed for one reason."""

    content: str
    result: str
    reason: str
    text: str
    devices: int
    last: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """Devices by compliance; hotpatched and restart-updated ones side by side."""

    hotpatched: int = 0
    """Compliant, some required fix by hotpatch."""
    restarted: int = 0
    """Compliant, all of it from disk."""
    in_grace: int = 0
    others: int = 0
    """All that are not let in, those never judged too."""

    @property
    def total(self) -> int:
        """All devices that are not disabled."""
        return self.hotpatched + self.restarted + self.in_grace + self.others


@dataclass(frozen=True, slots=True)
class Report:
    """All of it, as of ``at``."""

    at: datetime
    since: datetime
    standing: Standing
    cves: tuple[CveLine, ...]
    saved: Saved
    failures: tuple[FailureLine, ...]


def report(session: Session, contents: Sequence[Content], since: datetime, now: datetime) -> Report:
    """The report.

    Args:
        contents: the whole catalogue.
        since: failures, and hotpatches whose saving is counted, from then on.
    """
    return Report(
        now, since, _standing(session), tuple(_cves(session, contents)), _saved(session, contents, since, now),
        tuple(_failures(session, since)),
    )  # fmt: skip


def _standing(session: Session) -> Standing:
    # a disabled device is never compliant, but for the moment until it is judged anew
    total = sum(count for words, count in tallies.devices(session).items() if "disabled" not in words)
    counts = tallies.compliance(session)
    compliant, grace = ComplianceState.COMPLIANT.value, ComplianceState.IN_GRACE.value
    hotpatched, restarted = counts.get((compliant, True), 0), counts.get((compliant, False), 0)
    in_grace = counts.get((grace, True), 0) + counts.get((grace, False), 0)
    return Standing(hotpatched, restarted, in_grace, max(0, total - hotpatched - restarted - in_grace))


# -- coverage


def _cves(session: Session, contents: Sequence[Content]) -> list[CveLine]:
    lines = []
    alive = [content for content in contents if content.revoked is None]
    for package, cve in sorted({(c.package, cve.id) for c in alive for cve in c.cves}):
        of_package = [content for content in alive if content.package == package]
        lines.append(_cve(session, of_package, package, cve))
    order = {word: number for number, word in enumerate(("critical", "high", "medium", "low", "none"))}
    return sorted(lines, key=lambda line: (not line.cve.exploited, order[line.cve.severity.value], line.cve.id))


def _cve(session: Session, contents: Sequence[Content], package: str, cve: str) -> CveLine:
    fixes = [content for content in contents if any(each.id == cve for each in content.cves)]
    first = min(fixes, key=lambda content: (content.sequence, content.published))
    containing = [content for content in contents if content.sequence >= first.sequence]
    hotpatches = [content.id for content in containing if content.kind is ContentKind.HOTPATCH]
    baselines = [content for content in containing if content.kind is ContentKind.BASELINE]
    installed = frozenset().union(*(content.images for content in baselines))
    named = frozenset().union(*(content.images for content in containing))
    affected = _mapped(or_(Image.package == package, Image.build_id.in_(sorted(named))))
    restarted = _mapped(Image.build_id.in_(sorted(installed)))
    hotpatched = (
        select(DevicePatch.device_id)
        .join(Device, Device.id == DevicePatch.device_id)
        .where(
            Device.disabled.is_(None),
            Device.integrity_violated.is_(False),
            DevicePatch.content_id.in_(hotpatches),
            DevicePatch.missing == 0,
        )
        .where(DevicePatch.device_id.not_in(restarted))
    )
    population = _distinct(session, affected)
    known = next(each for each in first.cves if each.id == cve)
    ids = [content.id for content in containing]
    return CveLine(
        known,
        package,
        first.name,
        first.published,
        population,
        _distinct(session, hotpatched),
        _distinct(session, restarted),
        _milestones(session, first.published, ids, population),
    )


def _mapped(which: ColumnElement[bool]) -> Select[Any]:
    return (
        select(DeviceImage.device_id)
        .join(Image, Image.id == DeviceImage.image_id)
        .join(Device, Device.id == DeviceImage.device_id)
        .where(Device.disabled.is_(None), which)
    )


def _distinct(session: Session, devices: Select[Any]) -> int:
    rows = devices.distinct().subquery()
    return session.scalar(select(func.count()).select_from(rows)) or 0


def first_applied(contents: Sequence[str]) -> Subquery:
    """For each device that has run one of the contents, when that was first (``at``), and how many had by then
    (``number``)."""
    first = func.min(Outcome.received, type_=Instant())
    return (
        select(
            first.label("at"),
            func.row_number().over(order_by=first).label("number"),
        )
        .join(Device, Device.id == Outcome.device_id)
        .where(Device.disabled.is_(None), Outcome.content_id.in_(contents), Outcome.result == "applied")
        .group_by(Outcome.device_id)
        .subquery()
    )


def _milestones(
    session: Session, published: datetime, contents: Sequence[str], population: int
) -> dict[float, timedelta | None]:
    ranks = {percent: needed_for(percent, population) for percent in MILESTONES}
    times = first_applied(contents)
    found = dict(session.execute(select(times.c.number, times.c.at).where(times.c.number.in_(ranks.values()))).all())
    return milestones(published, found.get, population)


# -- what it saved


def _saved(session: Session, contents: Sequence[Content], since: datetime, now: datetime) -> Saved:
    kinds = {content.id: (content.kind, content.package, content.sequence) for content in contents}
    rows = session.execute(
        select(
            Outcome.device_id,
            Outcome.content_id,
            Outcome.result,
            func.min(Outcome.received, type_=Instant()),
        )
        .where(Outcome.received >= since, Outcome.result.in_(("applied", "reverted")), Outcome.content_id.is_not(None))
        .group_by(Outcome.device_id, Outcome.content_id, Outcome.result)
        .order_by(Outcome.device_id),
        execution_options={"yield_per": _CHUNK},
    )
    devices = groupby((tuple(row) for row in rows), key=itemgetter(0))
    found = saved((each for _device, of_one in devices for each in _hotpatchings(list(of_one), kinds)), now)
    stopped = select(func.coalesce(func.sum(Outcome.stopped_us), 0)).where(Outcome.received >= since)
    return Saved(found.exposure_hours, found.restarts, int(session.scalar(stopped) or 0) / 1000)


def _hotpatchings(
    rows: Sequence[tuple[Any, ...]], kinds: Mapping[str, tuple[ContentKind, str, int]]
) -> Iterator[Hotpatching]:
    """Those of one device."""
    ends: dict[str, list[tuple[int, datetime]]] = {}
    begins: list[tuple[str, datetime]] = []
    for _device, content, result, at in rows:
        if content not in kinds:
            continue
        kind, package, sequence = kinds[content]
        if kind is ContentKind.HOTPATCH and result == "applied":
            begins.append((content, at))
        elif kind is ContentKind.BASELINE:
            ends.setdefault(f"package {package}", []).append((sequence, at))  # a restart into a baseline ends it
        else:
            ends.setdefault(content, []).append((-1, at))  # so does a revert
    for content, at in begins:
        _kind, package, sequence = kinds[content]
        later = [end for bound, end in ends.get(f"package {package}", []) if bound >= sequence and end > at]
        later += [end for _bound, end in ends.get(content, []) if end > at]
        yield Hotpatching(at, min(later, default=None))


def _failures(session: Session, since: datetime) -> list[FailureLine]:
    word = case((Outcome.reason.in_(_HEALTH), Outcome.reason), else_=Outcome.result)
    rows = session.execute(
        select(
            ContentRow.name,
            word,
            Outcome.reason,
            func.count(func.distinct(Outcome.device_id)),
            func.max(Outcome.received, type_=Instant()),
        )
        .outerjoin(ContentRow, ContentRow.id == Outcome.content_id)
        .where(Outcome.received >= since, Outcome.result.in_(_FAILURES) | Outcome.reason.in_(_HEALTH))
        .group_by(ContentRow.name, word, Outcome.reason)
    ).all()
    lines = [
        FailureLine(name or "unknown", result, reason, _text(reason), int(devices), last)
        for name, result, reason, devices, last in rows
    ]
    return sorted(lines, key=lambda line: (-line.devices, line.content, line.reason))


def _text(reason: str) -> str:
    known = Reason._value2member_map_.get(reason)
    return known.text if isinstance(known, Reason) else reason
