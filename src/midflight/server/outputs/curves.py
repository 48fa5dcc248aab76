"""How things stood at earlier times, for charts: devices by compliance, and how far a vulnerability was covered.

Both are counted back from what is kept anyhow: changes of compliance, and outcomes of devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Integer, cast, func, select, type_coerce
from sqlalchemy.orm import Session

from midflight.server.domain.model import ComplianceState, Content
from midflight.server.outputs.reports import first_applied
from midflight.server.store import tallies
from midflight.server.store.base import Instant, to_micros
from midflight.server.store.devices import Device
from midflight.server.store.policies import Compliance, ComplianceChange

STEPS = 180
"""Points of a curve at most."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Devices by compliance at a time."""

    at: datetime
    states: dict[str, int]


@dataclass(frozen=True, slots=True)
class Covered:
    """How many devices had run the fix by then."""

    at: datetime
    devices: int


def compliance_history(session: Session, now: datetime, length: timedelta, policy: str | None = None) -> list[Standing]:
    """Devices by compliance over time, the oldest first: each time at which something had changed, and now.

    A device counts from its (last) enrollment on. Of a policy, those devices that it governs now.
    """
    first = session.scalar(select(func.min(Device.enrolled, type_=Instant())))
    begin = max(now - length, (first or now) - timedelta(minutes=2))  # a young fleet fills its chart
    step = max(timedelta(seconds=10), (now - begin) / STEPS)
    counts: Counter[str] = Counter()
    for (state, _hotpatched), count in tallies.compliance(session, policy).items():
        counts[state] += count
    changes = _changes(session, begin, step, policy)
    arrivals = _arrivals(session, begin, step, policy)
    points = [Standing(now, _some(counts))]
    for number in sorted({*changes, *arrivals}, reverse=True):
        for (before, after), count in changes.get(number, {}).items():
            counts[after] -= count
            counts[before] += count
        counts[ComplianceState.UNKNOWN.value] -= arrivals.get(number, 0)
        points.append(Standing(begin + number * step, _some(counts)))
    if points[-1].at > begin:
        points.append(Standing(begin, points[-1].states))
    return points[::-1]


def _some(counts: Counter[str]) -> dict[str, int]:
    return {state: count for state, count in sorted(counts.items()) if count > 0}


def _number(column: object, begin: datetime, step: timedelta) -> object:
    micros = type_coerce(column, BigInteger()) - to_micros(begin)
    return cast(micros / (step // timedelta(microseconds=1)), Integer)


def _changes(
    session: Session, begin: datetime, step: timedelta, policy: str | None
) -> dict[int, dict[tuple[str, str], int]]:
    number = func.floor(_number(ComplianceChange.at, begin, step)).label("number")
    query = select(number, ComplianceChange.before, ComplianceChange.state, func.count()).where(
        ComplianceChange.at >= begin
    )
    if policy is not None:
        query = query.join(Compliance, Compliance.device_id == ComplianceChange.device_id)
        query = query.where(Compliance.policy_id == policy)
    found: dict[int, dict[tuple[str, str], int]] = {}
    for at, before, after, count in session.execute(
        query.group_by(number, ComplianceChange.before, ComplianceChange.state)
    ):
        found.setdefault(int(at), {})[before, after] = count
    return found


def _arrivals(session: Session, begin: datetime, step: timedelta, policy: str | None) -> dict[int, int]:
    number = func.floor(_number(Device.enrolled, begin, step)).label("number")
    query = select(number, func.count()).where(Device.enrolled >= begin)
    if policy is not None:
        query = query.where(Device.policy_id == policy)
    return {int(at): count for at, count in session.execute(query.group_by(number))}


def coverage_curve(session: Session, contents: Sequence[Content], cve: str, package: str) -> list[Covered]:
    """How many devices had run a fix of a vulnerability in a package by when, from its publication on."""
    of_package = [content for content in contents if content.package == package and content.revoked is None]
    fixes = [content for content in of_package if any(each.id == cve for each in content.cves)]
    if not fixes:
        return []
    first = min(fixes, key=lambda content: (content.sequence, content.published))
    ids = [content.id for content in of_package if content.sequence >= first.sequence]
    times = first_applied(ids)
    total = session.scalar(select(func.count()).select_from(times)) or 0
    every = max(1, total // STEPS)
    some = select(times.c.at, times.c.number).where((times.c.number % every == 0) | (times.c.number == total))
    marks = session.execute(some.order_by(times.c.number))
    return [Covered(first.published, 0), *(Covered(at, number) for at, number in marks)]
