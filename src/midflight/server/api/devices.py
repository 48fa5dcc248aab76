"""Devices: the list, one in full, tags, disabling, revoking, letting a barred device try again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.editing import check_version, edited, shown
from midflight.server.api.idempotency import IdempotentRoute
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import DeviceLine, MembershipView, Why, why
from midflight.server.domain import memberships as rules
from midflight.server.enrollment import revoke_certificates
from midflight.server.store import convert, events, invalidate
from midflight.server.store.base import from_micros
from midflight.server.store.catalogue import Content
from midflight.server.store.devices import (
    Answer,
    Certificate,
    Device,
    DeviceImage,
    GroupMember,
    Image,
    Outcome,
    Presence,
)
from midflight.server.store.policies import Compliance, ComplianceChange, Deployment, Membership

router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.DEVICES_READ)]
Writer = Annotated[Actor, require(Scope.DEVICES_WRITE)]
_NEVER = from_micros(0)
_TAG = Annotated[str, Field(min_length=1, max_length=200)]


class DeviceFull(DeviceLine):
    """A device with all that is known of it but its inventory."""

    timezone: str
    boot_id: str
    memory_free_mib: int | None
    machine_id: str
    state: dict[str, Any] | None
    reported: datetime | None
    disabled_reason: str
    groups: Annotated[list[str], Field(default_factory=list)]
    governance: Why | None = None
    compliance_why: Why | None = None
    deployments: Annotated[list[MembershipView], Field(default_factory=list)]
    certificate_ends: datetime | None = None


class Tags(BaseModel):
    """Tags as they shall be; those that are not named are taken away."""

    tags: Annotated[dict[_TAG, _TAG], Field(max_length=64)]


class Disabling(BaseModel):
    """Why a device is disabled."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Retry(BaseModel):
    """The content that a device may try again."""

    content: str


class ImageView(BaseModel):
    """An image that is mapped on a device."""

    build_id: str
    path: str
    package: str
    version: str
    processes: int


class OutcomeView(BaseModel):
    """What came of an action."""

    action: str
    result: str
    deployment: str | None
    content: str | None
    reason: str
    detail: str
    processes: int
    stopped_us: int
    at: datetime


class ComplianceLine(BaseModel):
    """A change of a device's compliance."""

    at: datetime
    before: str
    state: str
    why: Why | None
    policy: str | None


def _lines() -> Any:
    return (
        select(Device, Presence.last_seen, Compliance.state)
        .join(Presence, Presence.device_id == Device.id)
        .join(Compliance, Compliance.device_id == Device.id)
    )


def _line(row: Any) -> DeviceLine:
    device, last_seen, state = row
    line = DeviceLine.model_validate(device)
    return line.model_copy(update={"last_seen": None if last_seen <= _NEVER else last_seen, "compliance": state})


@router.get("")
def devices(
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    hostname: Annotated[str | None, Query(max_length=253, description="begins with")] = None,
    group: str | None = None,
    policy: str | None = None,
    compliance: str | None = None,
    image: Annotated[str | None, Query(max_length=128, description="build-id that is mapped")] = None,
    disabled: bool | None = None,
) -> Page[DeviceLine]:
    """The devices, in order of their names."""
    query = _lines()
    if hostname:
        query = query.where(Device.hostname >= hostname, Device.hostname < hostname + "\U0010ffff")
    if group is not None:
        query = query.join(GroupMember, and_(GroupMember.device_id == Device.id, GroupMember.group_id == group))
    if policy is not None:
        query = query.where(Device.policy_id == policy)
    if compliance is not None:
        query = query.where(Compliance.state == compliance)
    if image is not None:
        mapped = select(DeviceImage.device_id).join(Image, Image.id == DeviceImage.image_id)
        query = query.where(Device.id.in_(mapped.where(Image.build_id == image)))
    if disabled is not None:
        query = query.where(Device.disabled.is_not(None) if disabled else Device.disabled.is_(None))
    return Page(**page(session, query, (Device.hostname, Device.id), after, limit, _line))


@router.get("/{device}", response_model=DeviceFull, responses={304: {}, 404: {}})
def one(device: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> Any:
    """One device in full."""
    row = session.execute(_lines().where(Device.id == device)).first()
    if row is None:
        raise not_found("device", device)
    shown(request, response, row[0])
    columns = set(DeviceFull.model_fields) & set(Device.__mapper__.columns.keys()) - {"governance"}
    full = DeviceFull(**{name: getattr(row[0], name) for name in columns})
    found = session.get_one(Compliance, device)
    members = session.execute(
        select(Membership).where(Membership.device_id == device).order_by(Membership.deployment_id.desc()).limit(50)
    ).scalars()
    ends = session.scalar(
        select(Certificate.not_after)
        .where(Certificate.device_id == device, Certificate.revoked.is_(None))
        .order_by(Certificate.not_after.desc())
        .limit(1)
    )
    return full.model_copy(
        update={
            "last_seen": None if row[1] <= _NEVER else row[1],
            "compliance": found.state,
            "compliance_why": why(found.reason, found.detail),
            "groups": list(session.scalars(select(GroupMember.group_id).where(GroupMember.device_id == device))),
            "governance": why(row[0].governance, row[0].governance_detail),
            "deployments": [membership_view(member, row[0].hostname) for member in members],
            "certificate_ends": ends,
        }
    )


def membership_view(row: Membership, hostname: str) -> MembershipView:
    """A membership as it is shown."""
    return MembershipView(
        deployment=row.deployment_id,
        device=row.device_id,
        hostname=hostname,
        ring=row.ring,
        state=row.state,
        why=why(row.reason, row.detail),
        since=row.since,
        offered=row.offered,
    )


@router.get("/{device}/inventory")
def inventory(
    device: str, session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None
) -> Page[ImageView]:
    """The images that are mapped on a device."""
    _device(session, device)
    query = (
        select(Image, DeviceImage.processes)
        .join(DeviceImage, DeviceImage.image_id == Image.id)
        .where(DeviceImage.device_id == device)
    )

    def view(row: Any) -> ImageView:
        found: Image = row[0]
        return ImageView(
            build_id=found.build_id,
            path=found.path,
            package=found.package,
            version=found.version,
            processes=row[1],
        )

    return Page(**page(session, query, (Image.id,), after, limit, view))


@router.get("/{device}/outcomes")
def outcomes(
    device: str, session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None
) -> Page[OutcomeView]:
    """What came of actions on a device, the newest first."""
    _device(session, device)

    def view(row: Outcome) -> OutcomeView:
        return OutcomeView(
            action=row.action,
            result=row.result,
            deployment=row.deployment_id,
            content=row.content_id,
            reason=row.reason,
            detail=row.detail,
            processes=row.processes,
            stopped_us=row.stopped_us,
            at=row.at,
        )

    keys = (Outcome.received, Outcome.action, Outcome.result)
    query = select(Outcome).where(Outcome.device_id == device)
    return Page(**page(session, query, keys, after, limit, view, descending=True))


@router.get("/{device}/compliance")
def compliance_history(
    device: str, session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None
) -> Page[ComplianceLine]:
    """How a device's compliance changed, the newest first."""
    _device(session, device)

    def view(row: ComplianceChange) -> ComplianceLine:
        return ComplianceLine(
            at=row.at, before=row.before, state=row.state, why=why(row.reason, row.detail), policy=row.policy_id
        )

    query = select(ComplianceChange).where(ComplianceChange.device_id == device)
    return Page(**page(session, query, (ComplianceChange.at,), after, limit, view, descending=True))


def _device(session: Session, id: str, lock: bool = False) -> Device:
    if lock:
        invalidate.lock(session, [id])
    row = session.get(Device, id, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        raise not_found("device", id)
    return row


@router.put("/{device}/tags", status_code=204, responses={404: {}, 412: {}, 428: {}})
def set_tags(device: str, body: Tags, request: Request, response: Response, session: DbSession, actor: Writer) -> None:
    """Replace a device's tags. Groups follow at once."""
    row = _device(session, device, lock=True)
    check_version(request, row)
    row.tags = dict(body.tags)
    edited(response, row)
    _regroup(session, device)
    data = {"tags": body.tags}
    events.publish(session, "device.tagged", data, subject=device, actor=actor.id)


def _regroup(session: Session, device: str) -> None:
    answer = session.get_one(Answer, device)
    answer.regroup, answer.until = True, 0
    invalidate.compliance_of(session, device)


@router.post("/{device}/disable", status_code=204, responses={404: {}})
def disable(device: str, body: Disabling, session: DbSession, actor: Writer) -> None:
    """Give a device nothing any more, and count it as not compliant. It still reports."""
    row = _device(session, device, lock=True)
    if row.disabled is None:
        row.disabled, row.disabled_reason = datetime.now(UTC), body.reason
        row.version += 1
        _regroup(session, device)
        events.publish(session, "device.disabled", {"reason": body.reason}, subject=device, actor=actor.id)


@router.post("/{device}/enable", status_code=204, responses={404: {}})
def enable(device: str, session: DbSession, actor: Writer) -> None:
    """Take a device back."""
    row = _device(session, device, lock=True)
    if row.disabled is not None:
        row.disabled, row.disabled_reason = None, ""
        row.version += 1
        _regroup(session, device)
        events.publish(session, "device.enabled", {}, subject=device, actor=actor.id)


@router.post("/{device}/revoke", status_code=204, responses={404: {}})
def revoke(device: str, body: Disabling, session: DbSession, actor: Writer) -> None:
    """Believe none of a device's certificates any more (it was stolen, or its key was): it must enroll again."""
    row = _device(session, device, lock=True)
    if row.disabled is None:
        row.disabled, row.disabled_reason = datetime.now(UTC), body.reason
        row.version += 1
        _regroup(session, device)
    revoke_certificates(session, device, body.reason, datetime.now(UTC))
    events.publish(session, "device.revoked", {"reason": body.reason}, subject=device, actor=actor.id)


@router.post("/{device}/retry", status_code=204, responses={404: {}, 409: {}})
def retry(device: str, body: Retry, session: DbSession, actor: Writer) -> None:
    """Somebody looked: let a device try again what failed on it or is barred there."""
    row = _device(session, device, lock=True)
    content = session.get(Content, body.content)
    if content is None:
        raise not_found("content", body.content)
    now = datetime.now(UTC)
    barred = {bar["sha256"] for bar in (row.state or {}).get("bars", ())}
    members = session.scalars(
        select(Membership)
        .join(Deployment, Deployment.id == Membership.deployment_id)
        .where(Membership.device_id == device, Deployment.content_id == content.id)
    ).all()
    again = [(m, after) for m in members if (after := rules.retry(convert.membership_of(m), now)) is not None]
    if not again and content.sha256 not in barred:
        raise Problem(409, "nothing-to-retry", f"{content.id} neither failed on {device} nor is it barred there")
    if content.sha256 in barred and content.sha256 not in row.lifted:
        row.lifted = [*row.lifted, content.sha256]
    for member, after in again:
        member.state, member.reason, member.detail = after.state.value, after.reason.value, after.detail
        member.since, member.offered = now, None
    answer = session.get_one(Answer, device)
    answer.until = 0
    events.publish(session, "device.retried", {"content": content.id}, subject=device, actor=actor.id)
