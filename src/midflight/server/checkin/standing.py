"""Where a device belongs: its groups, the policy that governs it, and the deployments that concern it.

Called when something of it changed, by the check-in that brought the change and by background work after an edit of
groups or policies. The caller holds the device's lock (its row of ``answer``)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from midflight.server.domain import model as m
from midflight.server.domain.audience import governing
from midflight.server.domain.eligibility import ineligible
from midflight.server.domain.reasons import Reason
from midflight.server.domain.standing import not_for
from midflight.server.store import convert
from midflight.server.store.base import from_micros
from midflight.server.store.bulk import Place, governance_of
from midflight.server.store.devices import Device, DeviceImage, GroupMember, Image, Presence
from midflight.server.store.fleet import Fleet, Live
from midflight.server.store.policies import Membership

_UNSEEN = (Reason.NOT_AFFECTED, Reason.NO_INVENTORY)
"""A device that a deployment does not touch has no row in it."""


def load_device(session: Session, row: Device, fleet: Fleet, last_seen: datetime | None = None) -> m.Device:
    """The device as the rules see it."""
    images = (
        m.Image(*values)
        for values in session.execute(
            select(Image.build_id, Image.path, Image.package, Image.version, DeviceImage.processes)
            .join(DeviceImage, DeviceImage.image_id == Image.id)
            .where(DeviceImage.device_id == row.id)
        )
    )
    if last_seen is None:
        last_seen = session.scalar(select(Presence.last_seen).where(Presence.device_id == row.id))
    if last_seen == from_micros(0):
        last_seen = None
    return convert.device_of(row, images, fleet.content_ids, last_seen)


def settle(session: Session, row: Device, device: m.Device, fleet: Fleet, now: datetime) -> Place:
    """Find groups, policy and deployments of a device anew, and write what differs."""
    found = session.execute(select(GroupMember.group_id, GroupMember.listed).where(GroupMember.device_id == row.id))
    have = dict(found.all())
    listed = {group for group, is_listed in have.items() if is_listed}
    ruled = fleet.groups.of(device)
    groups = frozenset(listed | ruled)
    gone = have.keys() - groups
    if gone:
        session.execute(
            delete(GroupMember).where(GroupMember.device_id == row.id, GroupMember.group_id.in_(sorted(gone)))
        )
    session.add_all(
        GroupMember(group_id=group, device_id=row.id, listed=False) for group in sorted(groups - have.keys())
    )
    governance = governing(fleet.policies.values(), groups)
    row.policy_id = governance.policy.id if governance.policy else None
    row.governance = governance.reason.value if governance.reason else ""
    row.governance_detail = governance.detail
    place = Place(device, groups, governance)
    _join(session, place, fleet, now)
    return place


def place_of(session: Session, row: Device, device: m.Device, fleet: Fleet) -> Place:
    """The place of a device to which nothing happened since it was settled."""
    groups = frozenset(session.scalars(select(GroupMember.group_id).where(GroupMember.device_id == row.id)))
    return Place(device, groups, governance_of(row, fleet))


def concerns(place: Place, live: Live, fleet: Fleet) -> m.Membership | None:
    """How a device enters a deployment that it is not in; None: it is none of its business (yet)."""
    if not_for(live.deployment, live.policy, place.groups, place.governance) is not None:
        return None
    finding = ineligible(place.device, live.content, live.policy, fleet.catalogue)
    if finding is None:
        return m.Membership(None)
    if finding.reason in _UNSEEN:
        return None
    return m.Membership(None, m.DeviceState.INELIGIBLE, finding.reason, finding.detail)


def membership_row(deployment: str, device: str, membership: m.Membership, now: datetime) -> Membership:
    """A new row."""
    return Membership(
        deployment_id=deployment,
        device_id=device,
        ring=membership.ring,
        state=membership.state.value,
        reason=membership.reason.value,
        detail=membership.detail,
        since=membership.since or now,
        offered=membership.offered,
    )


def _join(session: Session, place: Place, fleet: Fleet, now: datetime) -> None:
    """Enter the live deployments of its policy that it is not in; background work gives it a ring in each."""
    policy = place.governance.policy
    ids = fleet.by_policy.get(policy.id, ()) if policy else ()
    if not ids:
        return
    query = select(Membership.deployment_id).where(
        Membership.device_id == place.device.id, Membership.deployment_id.in_(ids)
    )
    there = set(session.scalars(query))
    for id in ids:
        if id not in there and (membership := concerns(place, fleet.live[id], fleet)) is not None:
            session.add(membership_row(id, place.device.id, membership, now))


def memberships_of(session: Session, device: str, live: Iterable[str]) -> dict[str, Membership]:
    """A device's rows in live deployments."""
    query = select(Membership).where(Membership.device_id == device, Membership.deployment_id.in_(list(live)))
    return {row.deployment_id: row for row in session.scalars(query)}
