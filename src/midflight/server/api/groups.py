"""Groups of devices, by list or by rule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.editing import check_version, edited, shown
from midflight.server.api.idempotency import IdempotentRoute
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import Changed, View
from midflight.server.domain.audience import parse
from midflight.server.store import events, invalidate, meta
from midflight.server.store.base import new_id
from midflight.server.store.devices import Answer, Device, Group, GroupMember
from midflight.server.store.policies import Policy

router = APIRouter(prefix="/api/v1/groups", tags=["groups"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.DEVICES_READ)]
Writer = Annotated[Actor, require(Scope.DEVICES_WRITE)]


class GroupBody(BaseModel):
    """A group as it shall be. With a rule, devices are found by it, in addition to those that are listed."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=2000)] = ""
    rule: Annotated[str, Field(max_length=2000, examples=['tag.site == "berlin" and kernel >= "6.1"'])] = ""


class GroupView(View):
    """A group."""

    id: str
    name: str
    description: str
    rule: str
    created: datetime
    version: int


class Members(BaseModel):
    """Devices by id."""

    devices: Annotated[list[str], Field(min_length=1, max_length=1000)]


def _group(session: Session, id: str) -> Group:
    row = session.get(Group, id)
    if row is None:
        raise not_found("group", id)
    return row


def _free(session: Session, name: str, but: str = "") -> None:
    if session.scalar(select(Group.id).where(Group.name == name, Group.id != but)) is not None:
        raise Problem(409, "name-taken", f"there is a group {name!r} already; choose another name")


@router.get("")
def groups(session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None) -> Page[GroupView]:
    """The groups, in order of their names."""
    return Page(**page(session, select(Group), (Group.name, Group.id), after, limit, GroupView.model_validate))


@router.post("", status_code=201, responses={409: {}})
def create(body: GroupBody, response: Response, session: DbSession, actor: Writer) -> GroupView:
    """Make a group."""
    if body.rule:
        parse(body.rule)
    _free(session, body.name)
    row = Group(id=new_id("grp"), created=datetime.now(UTC), version=0, **body.model_dump())
    session.add(row)
    edited(response, row)
    _rule_changed(session, bool(body.rule))
    events.publish(session, "group.created", body.model_dump(), subject=row.id, actor=actor.id)
    return GroupView.model_validate(row)


def _rule_changed(session: Session, changed: bool) -> None:
    if changed:
        invalidate.regroup_all(session)
        meta.bump(session, "groups")


@router.get("/{group}", responses={304: {}, 404: {}})
def one(group: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> GroupView:
    """One group."""
    row = _group(session, group)
    shown(request, response, row)
    return GroupView.model_validate(row)


@router.put("/{group}", responses={404: {}, 409: {}, 412: {}, 428: {}})
def edit(
    group: str, body: GroupBody, request: Request, response: Response, session: DbSession, actor: Writer
) -> GroupView:
    """Change a group."""
    row = _group(session, group)
    check_version(request, row)
    if body.rule:
        parse(body.rule)
    _free(session, body.name, group)
    changed = row.rule != body.rule
    row.name, row.description, row.rule = body.name, body.description, body.rule
    edited(response, row)
    _rule_changed(session, changed)
    events.publish(session, "group.changed", body.model_dump(), subject=group, actor=actor.id)
    return GroupView.model_validate(row)


@router.delete("/{group}", status_code=204, responses={404: {}, 409: {}, 412: {}, 428: {}})
def remove(group: str, request: Request, session: DbSession, actor: Writer) -> None:
    """Take a group away; refused while a policy names it."""
    row = _group(session, group)
    check_version(request, row)
    for policy in session.scalars(select(Policy)):
        if group in str(policy.document):
            raise Problem(409, "in-use", f"policy {policy.name!r} names the group; change that first")
    ids = list(session.scalars(select(GroupMember.device_id).where(GroupMember.group_id == group)))
    _regroup(session, ids)
    session.execute(delete(GroupMember).where(GroupMember.group_id == group))
    session.delete(row)
    meta.bump(session, "groups")
    events.publish(session, "group.removed", {"name": row.name}, subject=group, actor=actor.id)


@router.get("/{group}/members")
def members(group: str, session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None) -> Page[str]:
    """Ids of the devices in a group."""
    _group(session, group)
    query = select(GroupMember.device_id).where(GroupMember.group_id == group)
    return Page(**page(session, query, (GroupMember.device_id,), after, limit, str))


@router.post("/{group}/members", responses={404: {}})
def add(group: str, body: Members, session: DbSession, actor: Writer) -> Changed:
    """List devices in a group."""
    _group(session, group)
    wanted = set(body.devices)
    known = set(session.scalars(select(Device.id).where(Device.id.in_(wanted))))
    if wanted - known:
        raise not_found("device", min(wanted - known))
    _regroup(session, sorted(wanted))
    have = {
        row.device_id: row
        for row in session.scalars(
            select(GroupMember).where(GroupMember.group_id == group, GroupMember.device_id.in_(wanted))
        )
    }
    changed = 0
    for device in sorted(wanted):
        row = have.get(device)
        changed += row is None or not row.listed
        if row is None:
            session.add(GroupMember(group_id=group, device_id=device, listed=True))
        else:
            row.listed = True
    events.publish(session, "group.listed", {"devices": sorted(wanted)}, subject=group, actor=actor.id)
    return Changed(changed=changed)


@router.delete("/{group}/members/{device}", status_code=204, responses={404: {}})
def drop(group: str, device: str, session: DbSession, actor: Writer) -> None:
    """Take a device off the list of a group (a rule may still find it)."""
    _regroup(session, [device])
    row = session.get(GroupMember, (group, device))
    if row is None:
        raise not_found("member", device)
    session.delete(row)
    events.publish(session, "group.unlisted", {"devices": [device]}, subject=group, actor=actor.id)


def _regroup(session: Session, ids: list[str]) -> None:
    for start in range(0, len(ids), 500):
        held = invalidate.lock(session, ids[start : start + 500])
        for answer in session.scalars(select(Answer).where(Answer.device_id.in_(held))):
            answer.regroup, answer.until = True, 0
