"""Policies: what an administrator decides for an audience."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.editing import check_version, edited, shown
from midflight.server.api.idempotency import IdempotentRoute
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import View
from midflight.server.domain import rings, windows
from midflight.server.store import events, invalidate, meta, tallies
from midflight.server.store.base import new_id
from midflight.server.store.devices import Device, Group
from midflight.server.store.documents import PolicyDocument, check_bounds
from midflight.server.store.policies import Deployment, Policy

router = APIRouter(prefix="/api/v1/policies", tags=["policies"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.POLICIES_READ)]
Writer = Annotated[Actor, require(Scope.POLICIES_WRITE)]


class PolicyBody(BaseModel):
    """A policy as it shall be."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Of several policies that claim a device, the highest governs it; two of equal priority are a conflict."""
    document: PolicyDocument


class PolicyView(View):
    """A policy."""

    id: str
    name: str
    priority: int
    document: dict[str, Any]
    paused_since: datetime | None
    paused_until: datetime | None
    created: datetime
    updated: datetime
    version: int


class PolicyFull(PolicyView):
    """A policy, and how many devices it governs."""

    devices: int


class PauseBody(BaseModel):
    """A pause; with ``until`` it ends by itself."""

    until: datetime | None = None


def policy_row(session: Session, id: str) -> Policy:
    """The policy.

    Raises:
        Problem: 404.
    """
    row = session.get(Policy, id)
    if row is None:
        raise not_found("policy", id)
    return row


def _check(session: Session, body: PolicyBody, but: str = "") -> None:
    document = body.document
    check_bounds(document)
    rings.validate(document.rings)
    for window in document.windows:
        windows.validate(window)
    named = {*document.audience.groups, *document.audience.excluded}
    named |= {ring.group for ring in document.rings if ring.group}
    known = set(session.scalars(select(Group.id).where(Group.id.in_(named)))) if named else set()
    if named - known:
        raise not_found("group", min(named - known))
    if session.scalar(select(Policy.id).where(Policy.name == body.name, Policy.id != but)) is not None:
        raise Problem(409, "name-taken", f"there is a policy {body.name!r} already; choose another name")


@router.get("")
def policies(session: DbSession, _actor: Reader, limit: Limit = 100, after: After = None) -> Page[PolicyView]:
    """The policies, in order of their names."""
    return Page(**page(session, select(Policy), (Policy.name, Policy.id), after, limit, PolicyView.model_validate))


@router.post("", status_code=201, responses={404: {}, 409: {}})
def create(body: PolicyBody, response: Response, session: DbSession, actor: Writer) -> PolicyView:
    """Make a policy."""
    _check(session, body)
    now = datetime.now(UTC)
    row = Policy(
        id=new_id("pol"),
        name=body.name,
        priority=body.priority,
        document=body.document.model_dump(mode="json"),
        paused_since=None,
        paused_until=None,
        created=now,
        updated=now,
        version=0,
    )
    session.add(row)
    edited(response, row)
    events.publish(session, "policy.created", body.model_dump(mode="json"), subject=row.id, actor=actor.id, at=now)
    shown_row = PolicyView.model_validate(row)
    invalidate.regroup_all(session)
    meta.bump(session, "policies")
    return shown_row


@router.get("/{policy}", responses={304: {}, 404: {}})
def one(policy: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> PolicyFull:
    """One policy."""
    row = policy_row(session, policy)
    shown(request, response, row)
    count = tallies.devices(session, policy).total()
    return PolicyFull(**PolicyView.model_validate(row).model_dump(), devices=count)


@router.put("/{policy}", responses={404: {}, 409: {}, 412: {}, 428: {}})
def edit(
    policy: str, body: PolicyBody, request: Request, response: Response, session: DbSession, actor: Writer
) -> PolicyView:
    """Change a policy. Deployments that exist keep the rings that they began with; all else holds at once."""
    row = policy_row(session, policy)
    check_version(request, row)
    _check(session, body, policy)
    document = body.document.model_dump(mode="json")
    claims = row.document.get("audience") != document["audience"] or row.priority != body.priority
    row.name, row.priority, row.document, row.updated = body.name, body.priority, document, datetime.now(UTC)
    edited(response, row)
    events.publish(session, "policy.changed", body.model_dump(mode="json"), subject=policy, actor=actor.id)
    view = PolicyView.model_validate(row)
    _changed(session, policy, claims)
    return view


def _changed(session: Session, policy: str, claims: bool) -> None:
    if claims:
        invalidate.regroup_all(session)
    else:
        invalidate.governed(session, policy)
    invalidate.compliance_of_policy(session, policy)
    meta.bump(session, "policies")


@router.delete("/{policy}", status_code=204, responses={404: {}, 409: {}, 412: {}, 428: {}})
def remove(policy: str, request: Request, session: DbSession, actor: Writer) -> None:
    """Take a policy away that never deployed anything (others: empty their audience)."""
    row = policy_row(session, policy)
    check_version(request, row)
    if session.scalar(select(Deployment.id).where(Deployment.policy_id == policy).limit(1)) is not None:
        raise Problem(409, "in-use", "the policy has deployments, whose history stays; empty its audience instead")
    if session.scalar(select(Device.id).where(Device.policy_id == policy).limit(1)) is not None:
        raise Problem(409, "in-use", "the policy governs devices; empty its audience first, and come again in a moment")
    session.delete(row)
    events.publish(session, "policy.removed", {"name": row.name}, subject=policy, actor=actor.id)
    meta.bump(session, "policies")


@router.post("/{policy}/pause", responses={404: {}})
def pause(policy: str, body: PauseBody, response: Response, session: DbSession, actor: Writer) -> PolicyView:
    """Let none of a policy's deployments offer anything, until a person resumes it or until a time."""
    row = policy_row(session, policy)
    now = datetime.now(UTC)
    if body.until is not None and (body.until.tzinfo is None or body.until <= now):
        raise Problem(422, "invalid", "body/until: give a time with a zone, in the future")
    row.paused_since, row.paused_until = now, body.until
    return _paused(session, row, response, actor, "policy.paused")


@router.post("/{policy}/resume", responses={404: {}, 409: {}})
def resume(policy: str, response: Response, session: DbSession, actor: Writer) -> PolicyView:
    """End a pause."""
    row = policy_row(session, policy)
    if row.paused_since is None:
        raise Problem(409, "not-paused", "the policy is not paused")
    row.paused_since = row.paused_until = None
    return _paused(session, row, response, actor, "policy.resumed")


def _paused(session: Session, row: Policy, response: Response, actor: Actor, kind: str) -> PolicyView:
    from midflight.server.work.rollouts import advance_policy

    edited(response, row)
    until = row.paused_until.isoformat() if row.paused_until else None
    events.publish(session, kind, {"until": until}, subject=row.id, actor=actor.id)
    view = PolicyView.model_validate(row)
    meta.bump(session, "policies")
    advance_policy(session, row.id, datetime.now(UTC))
    return view
