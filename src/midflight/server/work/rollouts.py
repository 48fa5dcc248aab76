"""Rollouts: which devices a deployment is for, in which ring each is, and when the next ring begins.

Each step is one transaction that holds the deployment's row; a worker that finds it held leaves it alone. A step that
was interrupted is begun again, and finds by what is written what is left to do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from midflight.server.checkin.standing import concerns, membership_row
from midflight.server.domain import model as m
from midflight.server.domain import offers, rings, rollout
from midflight.server.domain.reasons import Reason
from midflight.server.store import convert, events, invalidate, meta
from midflight.server.store import tallies as counts
from midflight.server.store.bulk import load_places
from midflight.server.store.database import UNAVAILABLE, Database
from midflight.server.store.devices import DevicePatch, GroupMember, Presence
from midflight.server.store.fleet import Fleet, FleetCache, Live, approvals_of
from midflight.server.store.policies import Deployment, DeploymentRing, Membership

_log = logging.getLogger(__name__)
CHUNK = 500
"""Devices that are looked at in one transaction."""
IDLE = timedelta(seconds=60)
"""A deployment that is done is looked at so often."""
READY = timedelta(days=1)
"""A device that was seen so lately is ready to be among the first."""

_AFFECTED = text(
    "SELECT DISTINCT d.id FROM image i JOIN device_image di ON di.image_id = i.id JOIN device d ON d.id = di.device_id"
    " WHERE (i.package = :package OR i.build_id IN (SELECT build_id FROM content_image WHERE content_id = :content))"
    " AND d.policy_id = :policy AND d.id > :after ORDER BY d.id LIMIT :limit"
)


def advance_all(database: Database, cache: FleetCache, now: datetime) -> int:
    """Take every deployment as far as it goes now; returns how many changed."""
    with database.read() as session:
        ids = list(session.scalars(select(Deployment.id).where(Deployment.live).order_by(Deployment.created)))
    changed = 0
    for id in ids:
        try:
            populate(database, cache, id, now)
            place(database, cache, id, now)
            with database.write() as session:
                row = claim(session, id)
                if row is not None and _due(session, row, now):
                    changed += advance(session, row, cache.get(session), now)
        except UNAVAILABLE:
            raise
        except Exception:  # a fault in one must not hold up all the others
            _log.exception("deployment %s does not advance; it is tried again with the others", id)
    return changed


def claim(session: Session, id: str) -> Deployment | None:
    """The deployment, held for this transaction; None when somebody else holds it or it is gone."""
    return session.scalars(select(Deployment).where(Deployment.id == id).with_for_update(skip_locked=True)).first()


def _due(session: Session, row: Deployment, now: datetime) -> bool:
    if row.effective != m.Effective.DONE.value or row.requested != m.Requested.NONE.value:
        return True
    counted = session.scalar(select(func.max(DeploymentRing.counted)).where(DeploymentRing.deployment_id == row.id))
    return counted is None or now - counted >= IDLE


def populate(database: Database, cache: FleetCache, id: str, now: datetime) -> int:
    """Look for the devices that a new deployment is for; later ones enter by themselves. Returns how many entered."""
    entered, after = 0, ""
    while True:
        with database.write() as session:
            row = claim(session, id)
            if row is None or row.populated is not None:
                return entered
            fleet = cache.get(session)
            live = fleet.live.get(id)
            if live is None:
                return entered
            where = {
                "package": live.content.package,
                "content": live.content.id,
                "policy": row.policy_id,
                "after": after,
                "limit": CHUNK,
            }
            found = list(session.scalars(_AFFECTED, where))
            if not found:
                row.populated = now
                return entered
            entered += _enter(session, found, live, fleet, now)
            after = found[-1]


def _enter(session: Session, ids: Sequence[str], live: Live, fleet: Fleet, now: datetime) -> int:
    invalidate.lock(session, ids)
    there = set(
        session.scalars(
            select(Membership.device_id).where(
                Membership.deployment_id == live.deployment.id, Membership.device_id.in_(ids)
            )
        )
    )
    places = load_places(session, [id for id in ids if id not in there], fleet)
    new = {id: found for id, place in places.items() if (found := concerns(place, live, fleet)) is not None}
    session.add_all(membership_row(live.deployment.id, id, membership, now) for id, membership in new.items())
    return len(new)


def place(database: Database, cache: FleetCache, id: str, now: datetime) -> int:
    """Give a ring to each member that could take the content and has none. Returns how many got one."""
    with database.read() as session:
        live = cache.get(session).live.get(id)
        if live is None:
            return 0
        candidates = _candidates(session, live, now)
        if not candidates:
            return 0
        existing = _existing(session, live)
    assigned = rings.assign(live.policy.rings, id, candidates, existing)
    ordered = sorted(assigned, key=lambda device: (assigned[device], device))
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        with database.write() as session:
            if claim(session, id) is None:
                return start
            _write_rings(session, id, {device: assigned[device] for device in chunk})
    return len(ordered)


def _candidates(session: Session, live: Live, now: datetime) -> dict[str, rings.Candidate]:
    query = (
        select(Membership.device_id, Presence.last_seen)
        .join(Presence, Presence.device_id == Membership.device_id)
        .where(
            Membership.deployment_id == live.deployment.id,
            Membership.ring.is_(None),
            Membership.state == m.DeviceState.PENDING.value,
        )
    )
    found = session.execute(query).all()
    wanted = {ring.group for ring in live.policy.rings if ring.kind is m.RingKind.GROUP}
    groups: dict[str, set[str]] = {}
    if wanted:
        members = select(GroupMember.device_id, GroupMember.group_id).where(GroupMember.group_id.in_(wanted))
        for device, group in session.execute(members):
            groups.setdefault(device, set()).add(group)
    return {
        device: rings.Candidate(frozenset(groups.get(device, ())), last_seen > now - READY)
        for device, last_seen in found
    }


def _existing(session: Session, live: Live) -> dict[str, int]:
    """Stand-ins for the members of rings that take a number of devices: only how many they are matters."""
    existing: dict[str, int] = {}
    for index, ring in enumerate(live.policy.rings):
        if ring.kind not in (m.RingKind.FIRST, m.RingKind.COUNT):
            continue
        few = (
            select(Membership.device_id)
            .where(Membership.deployment_id == live.deployment.id, Membership.ring == index)
            .limit(int(ring.amount))
        )
        existing |= dict.fromkeys(session.scalars(few), index)
    return existing


def _write_rings(session: Session, id: str, assigned: Mapping[str, int]) -> None:
    held = invalidate.lock(session, list(assigned))
    for ring in sorted(set(assigned.values())):
        devices = [device for device in held if assigned[device] == ring]
        session.execute(
            update(Membership)
            .where(
                Membership.deployment_id == id,
                Membership.device_id.in_(devices),
                Membership.ring.is_(None),
            )
            .values(ring=ring)
        )
    invalidate.devices(session, held)


def tallies(session: Session, id: str, rings: Sequence[m.Ring], current: int, now: datetime) -> list[m.RingTally]:
    """How each ring stands; of the current one, when its soak is over, also when its sample was heard of."""
    count = len(rings)
    states: list[dict[m.DeviceState, int]] = [{} for _ in range(count)]
    sampled: list[datetime | None] = [None] * count
    for (ring, state), number in sorted(counts.members(session, id).items()):
        if ring >= count:
            continue
        states[ring][m.DeviceState(state)] = number
        if state == m.DeviceState.APPLIED.value:
            sampled[ring] = _success(session, id, ring, min(number, rings[ring].gate.min_sample))
    found = [m.RingTally(one, at) for one, at in zip(states, sampled, strict=True)]
    if current < count and (complete := sampled[current]) is not None:
        gate = rings[current].gate
        if gate.soak and now >= complete + gate.soak:
            # a look at all of them; before that moment nobody waits to hear of them
            needed = min(found[current].count(m.DeviceState.APPLIED), gate.min_sample)
            found[current] = replace(found[current], heard=_heard(session, id, current, needed))
    return found


def _heard(session: Session, id: str, ring: int, number: int) -> datetime:
    """Since when that number of devices that have applied it were seen."""
    seen = session.scalar(
        select(Presence.last_seen)
        .join(Membership, Membership.device_id == Presence.device_id)
        .where(
            Membership.deployment_id == id,
            Membership.ring == ring,
            Membership.state == m.DeviceState.APPLIED.value,
        )
        .order_by(Presence.last_seen.desc())
        .offset(number - 1)
        .limit(1)
    )
    return seen or datetime.min.replace(tzinfo=UTC)


def _success(session: Session, id: str, ring: int, number: int) -> datetime | None:
    """When the success of that number (from 1, in order of time) was; read off the index, however large the ring is."""
    applied = m.DeviceState.APPLIED.value
    return session.scalar(
        select(Membership.since)
        .where(Membership.deployment_id == id, Membership.ring == ring, Membership.state == applied)
        .order_by(Membership.since)
        .offset(number - 1)
        .limit(1)
    )


def situation(session: Session, row: Deployment, live: Live, fleet: Fleet, now: datetime) -> rollout.Situation:
    """What a deployment is judged by."""
    content = live.content
    newer = any(
        other.deployment.id != row.id
        and other.deployment.policy == row.policy_id
        and other.content.package == content.package
        and other.content.kind is content.kind
        and other.content.sequence > content.sequence
        and other.deployment.effective is m.Effective.DONE
        and other.deployment.reason is Reason.DONE_OFFERED
        for other in fleet.live.values()
    )
    running = 0
    if row.requested == m.Requested.REVERT.value or row.effective == m.Effective.REVERTING.value:
        running = (
            session.scalar(
                select(func.count(func.distinct(DevicePatch.device_id)))
                .join(Membership, Membership.device_id == DevicePatch.device_id)
                .where(Membership.deployment_id == row.id, DevicePatch.content_id == content.id)
            )
            or 0
        )
    return rollout.Situation(
        content, live.policy, tallies(session, row.id, live.policy.rings, row.ring, now), newer, running
    )


def live_of(session: Session, row: Deployment, fleet: Fleet) -> Live | None:
    """The deployment as it stands in its (locked) row, with its policy and content."""
    policy, content = fleet.policies.get(row.policy_id), fleet.catalogue.contents.get(row.content_id)
    if policy is None or content is None:
        return None
    deployment = convert.deployment_of(row, approvals_of(session, [row.id])[row.id])
    policy = convert.frozen_rings(policy, row)
    return Live(deployment, policy, content, offers.compile_plan(deployment, policy, content))


def advance(session: Session, row: Deployment, fleet: Fleet, now: datetime) -> bool:
    """Take one deployment as far as it goes now. The caller holds its row. Returns whether it changed."""
    live = live_of(session, row, fleet)
    if live is None or row.populated is None:
        return False
    stands = situation(session, row, live, fleet, now)
    deployment, transitions = rollout.advance(live.deployment, stands, now)
    _count_rings(session, row, live, stands, deployment, now)
    if deployment == live.deployment:
        return False
    for transition in transitions:
        data = {
            "before": transition.before.value,
            "after": transition.after.value,
            "reason": transition.reason.value,
            "detail": transition.detail,
            "ring": transition.ring,
            "content": row.content_id,
            "policy": row.policy_id,
        }
        events.publish(session, "deployment.changed", data, subject=row.id, at=now)
    store(session, row, live, deployment, now)
    return True


def store(session: Session, row: Deployment, before: Live, deployment: m.Deployment, now: datetime) -> None:
    """Write a deployment that changed, and let the devices know that it concerns."""
    convert.write_deployment(row, deployment)
    row.version += 1
    if row.first_offer is None and deployment.ring_since is not None:
        row.first_offer = now
    row.live = (
        not rollout.final(deployment)
        or deployment.effective is m.Effective.REVERTING
        or (deployment.reason is Reason.DONE_REVERTED)
    )
    after = offers.compile_plan(deployment, before.policy, before.content)
    plan = before.plan
    last = len(before.policy.rings)
    if (after.offers, after.reverts, after.expedited) != (plan.offers, plan.reverts, plan.expedited):
        invalidate.members(session, row.id, last)
        invalidate.compliance_of_policy(session, row.policy_id)
    elif after.open_ring > plan.open_ring:
        invalidate.members(session, row.id, min(after.open_ring, last), plan.open_ring + 1)
        invalidate.compliance_of_policy(session, row.policy_id)
    meta.bump(session, "deployments")


def _count_rings(
    session: Session,
    row: Deployment,
    live: Live,
    stands: rollout.Situation,
    after: m.Deployment,
    now: datetime,
) -> None:
    """Keep how the rings stand, for people to look at without counting again."""
    known = {
        ring.ring: ring
        for ring in session.scalars(select(DeploymentRing).where(DeploymentRing.deployment_id == row.id))
    }
    started = after.ring_since is not None
    for index, ring in enumerate(live.policy.rings):
        tally = stands.tally(index)
        line = known.get(index)
        if line is None:
            line = DeploymentRing(
                deployment_id=row.id, ring=index, name=ring.name, tally={}, sampled=None, opened=None,
                passed=None, gate="", counted=now,
            )  # fmt: skip
            session.add(line)
        counts = {state.value: number for state, number in sorted(tally.states.items())}
        if dict(line.tally) != counts:
            line.tally = counts
        line.sampled, line.counted = tally.sampled, now
        if started and line.opened is None and index <= after.ring:
            line.opened = now
        if started and line.passed is None and index < after.ring:
            line.passed = now
        line.gate = after.reason.value if started and index == after.ring else ""


def advance_policy(session: Session, policy: str, now: datetime) -> None:
    """Let all deployments of a policy follow an edit of it in the same transaction (a pause must hold at once)."""
    fleet = FleetCache().get(session)
    query = select(Deployment).where(Deployment.policy_id == policy, Deployment.live).order_by(Deployment.id)
    for row in session.scalars(query.with_for_update()).all():
        advance(session, row, fleet, now)
