"""What time does to devices: silence, absence, groups and policies after an edit, compliance that runs out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, or_, select, type_coerce
from sqlalchemy.orm import Session

from midflight.server.checkin.standing import load_device, settle
from midflight.server.domain import compliance as rules
from midflight.server.domain import gates, memberships
from midflight.server.domain import model as m
from midflight.server.domain.reasons import Reason
from midflight.server.store import convert, events, invalidate
from midflight.server.store.bulk import Place, load_places
from midflight.server.store.database import Database, claimed
from midflight.server.store.devices import Answer, Device, Presence
from midflight.server.store.fleet import Fleet, FleetCache
from midflight.server.store.policies import Compliance, ComplianceChange, Deployment, DeploymentRing, Membership

CHUNK = 300
_OPEN = (m.DeviceState.OFFERED.value, m.DeviceState.DOWNLOADING.value)


def mark_silence(database: Database, cache: FleetCache, now: datetime) -> int:
    """Find devices that fell silent after an offer or a success, or were not there when their ring began; returns how
    many."""
    with database.read() as session:
        live = list(cache.get(session).live.values())
    count = 0
    for one in live:
        it = one.deployment
        if it.ring_since is None:
            continue
        with database.read() as session:
            soaked = _soaked(session, it, one.policy, it.ring_since)
            overdue = (
                select(Membership.device_id)
                .join(Presence, Presence.device_id == Membership.device_id)
                .where(Membership.deployment_id == it.id, _overdue(it, one.policy, it.ring_since, soaked, now))
            )
            ids = sorted(session.scalars(overdue))
        for start in range(0, len(ids), CHUNK):
            with database.write() as session:
                count += _silence(session, it, one.policy, ids[start : start + CHUNK], soaked, now)
    return count


def _soaked(session: Session, it: m.Deployment, policy: m.Policy, opened: datetime) -> datetime | None:
    """When the soak of the ring in progress is over, by how it was counted last."""
    line = session.get(DeploymentRing, (it.id, it.ring))
    if line is None or it.ring >= len(policy.rings):
        return None
    states = {m.DeviceState(state): number for state, number in line.tally.items()}
    return gates.soaked(policy.rings[it.ring].gate, m.RingTally(states, line.sampled), opened)


def _overdue(
    it: m.Deployment, policy: m.Policy, opened: datetime, soaked: datetime | None, now: datetime
) -> ColumnElement[bool]:
    """Which members may be silent or absent; :func:`memberships.silence` says which are."""
    shortest = min(ring.gate.silence_after for ring in policy.rings)
    silent = (
        Membership.state.in_(_OPEN)
        & (Membership.offered < now - shortest)
        & ((Presence.last_seen < now - shortest) | (Membership.since < now - shortest))
    )
    found = [silent]
    if it.effective is m.Effective.OFFERING and opened < now - shortest:
        # of the ring in progress alone: rings that have passed wait for nobody
        pending = Membership.state == m.DeviceState.PENDING.value
        found.append(pending & (Membership.ring == it.ring) & (Presence.last_seen < opened))
    after = type_coerce(Presence.last_seen, BigInteger) - type_coerce(Membership.since, BigInteger)
    for index, gate in ((index, ring.gate) for index, ring in enumerate(policy.rings[: it.ring + 1]) if ring.gate.soak):
        before = now - gate.silence_after
        unheard = (Membership.since < before - gate.soak) & (after < gate.soak // timedelta(microseconds=1))
        if index == it.ring and soaked is not None and soaked < before:
            unheard |= Presence.last_seen < soaked
        applied = (Membership.state == m.DeviceState.APPLIED.value) & (Membership.reason == Reason.APPLIED.value)
        found.append(applied & (Membership.ring == index) & (Presence.last_seen < before) & unheard)
    return or_(*found)


def _silence(
    session: Session, it: m.Deployment, policy: m.Policy, ids: Sequence[str], soaked: datetime | None, now: datetime
) -> int:
    held = invalidate.lock(session, ids, skip_locked=True)
    rows = session.execute(
        select(Membership, Presence.last_seen)
        .join(Presence, Presence.device_id == Membership.device_id)
        .where(Membership.deployment_id == it.id, Membership.device_id.in_(held))
    )
    silent = []
    for row, last_seen in rows.all():
        if row.ring is None or row.ring >= len(policy.rings):
            continue
        gate, current = policy.rings[row.ring].gate, row.ring == it.ring
        opened, end = (it.ring_since, soaked) if current else (None, None)
        after = memberships.silence(convert.membership_of(row), last_seen, gate, now, opened, end)
        if after is None:
            continue
        row.state, row.reason, row.detail, row.since = after.state.value, after.reason.value, after.detail, now
        silent.append(row.device_id)
        if after.state is not m.DeviceState.SILENT:
            continue
        data = {"deployment": it.id, "detail": after.detail}
        events.publish(session, "device.silent", data, subject=row.device_id, at=now)
    invalidate.devices(session, silent)
    return len(silent)


def regroup(database: Database, cache: FleetCache, now: datetime, limit: int = 10_000) -> int:
    """Find groups and policy anew for devices for which an edit may have changed them; returns how many."""
    done = 0
    while done < limit:
        with database.write() as session:
            waiting = claimed(select(Answer).where(Answer.regroup).order_by(Answer.device_id).limit(CHUNK))
            answers = session.scalars(waiting).all()
            if not answers:
                return done
            fleet = cache.get(session)
            rows = {
                row.id: row
                for row in session.scalars(
                    select(Device).where(Device.id.in_([answer.device_id for answer in answers])).order_by(Device.id)
                )
            }
            for answer in answers:
                row = rows[answer.device_id]
                before = row.policy_id
                settle(session, row, load_device(session, row, fleet), fleet, now)
                answer.regroup, answer.until = False, 0
                if row.policy_id != before:
                    invalidate.compliance_of(session, row.id)
            done += len(answers)
    return done


def evaluate_compliance(database: Database, cache: FleetCache, now: datetime, limit: int = 10_000) -> int:
    """Look at the compliance of devices whose facts, requirements or time changed it; returns how many changed."""
    changed = looked = 0
    while looked < limit:
        with database.write() as session:
            rows = _to_judge(session, now)
            if not rows:
                return changed
            fleet = cache.get(session)
            places = load_places(session, [row.device_id for row in rows], fleet)
            required = _required(session, places, fleet)
            for row in rows:
                place = places[row.device_id]
                found = rules.evaluate(
                    place.device, place.governance, required.get(row.device_id, []), fleet.catalogue, now
                )
                changed += _write(session, row, found, place, now)
            looked += len(rows)
    return changed


def _to_judge(session: Session, now: datetime) -> Sequence[Compliance]:
    """Those for which something changed, before those for which time did."""
    for which, since in ((Compliance.due.is_not(None), Compliance.due), (Compliance.until <= now, Compliance.until)):
        due = claimed(select(Compliance).where(which).order_by(since, Compliance.device_id).limit(CHUNK))
        if rows := session.scalars(due).all():
            return rows
    return ()


def _required(session: Session, places: dict[str, Place], fleet: Fleet) -> dict[str, list[rules.Requirement]]:
    """What is required of each device: what its deployments offer to its ring, since it was offered.

    Who is not offered it (ineligible, held, excluded) and lacks the fix lacks it since the deployment began.
    """
    offering = {id: live for id, live in fleet.live.items() if live.plan.offers}
    begun = dict(
        session.execute(select(Deployment.id, Deployment.first_offer).where(Deployment.id.in_(list(offering)))).all()
    )
    found: dict[str, list[rules.Requirement]] = {}
    rows = session.scalars(
        select(Membership).where(Membership.device_id.in_(list(places)), Membership.deployment_id.in_(list(offering)))
    )
    for row in rows:
        live = offering[row.deployment_id]
        policy = places[row.device_id].governance.policy
        awaits = row.state == m.DeviceState.PENDING.value and row.reason == Reason.AWAITING_RING.value
        since = row.offered or begun.get(row.deployment_id)
        if awaits or since is None or policy is None or policy.id != live.policy.id:
            continue
        found.setdefault(row.device_id, []).extend(rules.required(policy, [(live.content, since)]))
    return found


def _write(session: Session, row: Compliance, found: rules.Compliance, place: Place, now: datetime) -> bool:
    before = (row.state, row.reason, row.policy_id)
    after = (found.state.value, found.reason.value, found.policy)
    row.detail, row.hotpatched, row.evaluated, row.until = found.detail, found.hotpatched, now, found.until
    row.due = None
    if before == after:
        return False
    row.state, row.reason, row.policy_id = after
    if before[0] != after[0]:
        row.since = now
    session.merge(
        ComplianceChange(
            device_id=row.device_id,
            at=now,
            state=after[0],
            before=before[0],
            reason=after[1],
            detail=found.detail,
            policy_id=found.policy,
        )
    )
    data = {
        "hostname": place.device.hostname,
        "state": after[0],
        "before": before[0],
        "reason": after[1],
        "detail": found.detail,
        "policy": found.policy,
        "admitted": found.admitted,
    }
    if before[0] != after[0]:
        events.publish(session, "compliance.changed", data, subject=row.device_id, at=now)
    return True
