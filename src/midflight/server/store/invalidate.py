"""Saying that what devices were told no longer holds: their answers are decided anew at the next check-in.

All of these lock rows of ``answer`` in the order of device ids, before anything else of a device, so that no two
transactions wait for each other (docs/adr/0076).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, select, text, update
from sqlalchemy.orm import Session

from midflight.server.store.devices import Answer
from midflight.server.store.policies import Compliance, Deployment

_LOCKED = (
    "WITH locked AS (SELECT device_id FROM answer WHERE device_id IN ({devices}) ORDER BY device_id FOR UPDATE)"
    " UPDATE answer SET {values} FROM locked WHERE answer.device_id = locked.device_id AND {changes}"
)
_PLAIN = "UPDATE answer SET {values} WHERE device_id IN ({devices}) AND {changes}"


def _mark(
    session: Session,
    devices: str,
    parameters: dict[str, object],
    values: str = "until = 0",
    changes: str = "until <> 0",
) -> None:
    statement = _PLAIN if session.get_bind().dialect.name == "sqlite" else _LOCKED
    session.flush()
    session.execute(text(statement.format(devices=devices, values=values, changes=changes)), parameters)
    session.expire_all()


def members(session: Session, deployment: str, up_to_ring: int | None = None, from_ring: int = 0) -> None:
    """The devices of a deployment, of some rings or (None) of all."""
    rings = "" if up_to_ring is None else " AND ring BETWEEN :first AND :last"
    devices = f"SELECT device_id FROM membership WHERE deployment_id = :deployment{rings}"
    _mark(session, devices, {"deployment": deployment, "first": from_ring, "last": up_to_ring})


def devices(session: Session, ids: Sequence[str]) -> None:
    """Some devices."""
    for start in range(0, len(ids), 500):
        chunk = {f"d{n}": id for n, id in enumerate(sorted(ids)[start : start + 500])}
        _mark(session, ", ".join(f":{name}" for name in chunk), dict(chunk))


def governed(session: Session, policy: str) -> None:
    """All devices that a policy governs."""
    _mark(session, "SELECT id FROM device WHERE policy_id = :policy", {"policy": policy})


def everybody(session: Session) -> None:
    """Every device that was told something to do."""
    devices = "SELECT device_id FROM membership WHERE state IN ('offered', 'downloading', 'held', 'silent')"
    _mark(session, devices, {})


def regroup_all(session: Session) -> None:
    """Every device must look for its groups and policy again: a group or a policy's audience changed."""
    _mark(session, "SELECT device_id FROM answer WHERE NOT regroup", {}, "regroup = true, until = 0", "NOT regroup")


def lock(session: Session, ids: Sequence[str], skip_locked: bool = False) -> list[str]:
    """Lock devices, in order; returns those that were (with ``skip_locked``: that nobody else has)."""
    query = select(Answer.device_id).where(Answer.device_id.in_(list(ids))).order_by(Answer.device_id)
    return list(session.scalars(query.with_for_update(skip_locked=skip_locked)))


def compliance_of_policy(session: Session, policy: str) -> None:
    """What a policy requires changed: its devices' compliance is looked at again."""
    _judge_anew(session, Compliance.policy_id == policy)


def compliance_of(session: Session, device: str) -> None:
    """A device's facts changed: its compliance is looked at again."""
    _judge_anew(session, Compliance.device_id == device)


def _judge_anew(session: Session, which: ColumnElement[bool]) -> None:
    session.execute(update(Compliance).where(which, Compliance.due.is_(None)).values(due=datetime.now(UTC)))


def content_changed(session: Session, contents: Sequence[str]) -> None:
    """Content was revoked, edited or is gone: its deployments say something else from now on."""
    ids = session.query(Deployment.id, Deployment.policy_id).filter(Deployment.content_id.in_(contents)).all()
    for id, policy in sorted(tuple(row) for row in ids):
        members(session, id)
        compliance_of_policy(session, policy)


def baselines_changed(session: Session, packages: Collection[str]) -> None:
    """There are other baselines of some packages: they may stand in for a hotpatch that a device cannot have."""
    devices = (
        "SELECT m.device_id FROM membership m JOIN deployment d ON d.id = m.deployment_id"
        " JOIN content c ON c.id = d.content_id WHERE d.live AND c.kind = 'hotpatch' AND c.package = :package"
        " AND m.state IN ('ineligible', 'failed', 'barred')"
    )
    for package in sorted(packages):
        _mark(session, devices, {"package": package})
