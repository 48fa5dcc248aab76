"""Many devices at once, in a few queries, as the rules see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain import model as m
from midflight.server.domain.audience import Governance
from midflight.server.domain.reasons import Reason
from midflight.server.store import convert
from midflight.server.store.base import from_micros
from midflight.server.store.devices import Device, DeviceImage, GroupMember, Image, Presence
from midflight.server.store.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Place:
    """A device with all that decides about it."""

    device: m.Device
    groups: frozenset[str]
    governance: Governance


def governance_of(row: Device, fleet: Fleet) -> Governance:
    """The governance as it was settled last."""
    policy = fleet.policies.get(row.policy_id or "")
    if policy is not None:
        return Governance(policy)
    reason = convert.reason_of(row.governance) if row.governance else Reason.UNASSIGNED
    return Governance(None, reason, row.governance_detail)


def load_places(session: Session, ids: Sequence[str], fleet: Fleet) -> dict[str, Place]:
    """Devices with their groups and governance; ids that are unknown are left out."""
    rows = session.scalars(select(Device).where(Device.id.in_(ids))).all()
    images: dict[str, list[m.Image]] = defaultdict(list)
    mapped = (
        select(DeviceImage.device_id, Image.build_id, Image.path, Image.package, Image.version, DeviceImage.processes)
        .join(Image, DeviceImage.image_id == Image.id)
        .where(DeviceImage.device_id.in_(ids))
    )
    for id, build_id, path, package, version, processes in session.execute(mapped):
        images[id].append(m.Image(build_id, path, package, version, processes))
    groups: dict[str, set[str]] = defaultdict(set)
    members = select(GroupMember.group_id, GroupMember.device_id).where(GroupMember.device_id.in_(ids))
    for group, id in session.execute(members):
        groups[id].add(group)
    seen = dict(
        session.execute(select(Presence.device_id, Presence.last_seen).where(Presence.device_id.in_(ids))).all()
    )
    never = from_micros(0)
    found: dict[str, Place] = {}
    for row in rows:
        last_seen = seen.get(row.id)
        device = convert.device_of(
            row, images[row.id], fleet.content_ids, None if last_seen is None or last_seen <= never else last_seen
        )
        found[row.id] = Place(device, frozenset(groups[row.id]), governance_of(row, fleet))
    return found
