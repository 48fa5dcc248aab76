"""Deployments: content for the devices that a policy governs; what people ask of them, and how they stand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from midflight.server import deployments as making
from midflight.server.access.approvals import approver, demands_two
from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.devices import membership_view
from midflight.server.api.editing import shown
from midflight.server.api.idempotency import IdempotentRoute
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import (
    ApprovalView,
    DeploymentFull,
    DeploymentView,
    MembershipView,
    RingView,
    why,
)
from midflight.server.checkin.receive import CheckIns
from midflight.server.domain import model as m
from midflight.server.domain import rollout
from midflight.server.store import events
from midflight.server.store.devices import Device
from midflight.server.store.fleet import Fleet, Live
from midflight.server.store.policies import ApprovalRow, Deployment, DeploymentRing, Membership
from midflight.server.work import rollouts

router = APIRouter(prefix="/api/v1/deployments", tags=["deployments"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.DEPLOYMENTS_READ)]
Writer = Annotated[Actor, require(Scope.DEPLOYMENTS_WRITE)]
Approver = Annotated[Actor, require(Scope.APPROVALS_WRITE)]


class NewDeployment(BaseModel):
    """A deployment as it shall be."""

    content: str
    policy: str
    starts: datetime | None = None
    """None: as soon as it is approved."""
    expedite: bool = False
    """Wait for no maintenance window; only where the policy allows it."""
    groups: Annotated[list[str], Field(max_length=100)] | None = None
    """Narrows the policy's audience to these groups."""
    excluded: Annotated[list[str], Field(max_length=100, default_factory=list)]


class Pausing(BaseModel):
    """A pause; with ``until`` it ends by itself."""

    until: datetime | None = None


class Word(BaseModel):
    """A person's word on a deployment, or on one of its rings."""

    approved: bool = True
    ring: Annotated[int, Field(ge=0, le=20)] | None = None
    comment: Annotated[str, Field(max_length=2000)] = ""


def fleet_of(request: Request, session: Session) -> Fleet:
    """The fleet as this process has it, up to date."""
    return cast(CheckIns, request.app.state.checkins).fleet.get(session)


def view(row: Deployment) -> DeploymentView:
    """A deployment as it is shown."""
    return DeploymentView(
        id=row.id,
        content=row.content_id,
        policy=row.policy_id,
        created=row.created,
        created_by=row.created_by,
        starts=row.starts,
        requested=row.requested,
        paused_until=row.paused_until,
        effective=row.effective,
        why=why(row.reason, row.detail),
        since=row.since,
        ring=row.ring,
        expedite=row.expedite,
        populated=row.populated is not None,
        version=row.version,
    )


@router.get("")
def deployments(
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    policy: str | None = None,
    content: str | None = None,
    effective: Annotated[m.Effective | None, Query()] = None,
) -> Page[DeploymentView]:
    """The deployments, the newest first."""
    query = select(Deployment)
    if policy is not None:
        query = query.where(Deployment.policy_id == policy)
    if content is not None:
        query = query.where(Deployment.content_id == content)
    if effective is not None:
        query = query.where(Deployment.effective == effective.value)
    keys = (Deployment.created, Deployment.id)
    return Page(**page(session, query, keys, after, limit, view, descending=True))


@router.post("", status_code=201, responses={404: {}, 409: {}})
def create(body: NewDeployment, request: Request, session: DbSession, actor: Writer) -> DeploymentView:
    """Make a deployment. It starts when it is approved and its devices were looked for, in a few seconds."""
    fleet = fleet_of(request, session)
    content, policy = fleet.catalogue.contents.get(body.content), fleet.policies.get(body.policy)
    if content is None:
        raise not_found("content", body.content)
    if policy is None:
        raise not_found("policy", body.policy)
    if content.revoked is not None:
        raise Problem(409, "revoked", f"{content.id} was revoked: {content.revoked.reason}; it is never deployed again")
    if body.expedite and not policy.expedite_allowed:
        raise Problem(409, "expedite-not-allowed", f"policy {policy.name!r} allows no expedited deployments")
    if body.starts is not None and body.starts.tzinfo is None:
        raise Problem(422, "invalid", "body/starts: give a time with a zone")
    alive = select(Deployment.id).where(
        Deployment.content_id == content.id, Deployment.policy_id == policy.id, Deployment.live
    )
    if (there := session.scalar(alive)) is not None:
        raise Problem(409, "exists", f"{there} deploys {content.id} under this policy already", deployment=there)
    audience = None
    if body.groups is not None or body.excluded:
        groups = frozenset(body.groups) if body.groups is not None else policy.audience.groups
        audience = m.Audience(groups, frozenset(body.excluded))
    row = making.create(
        session,
        content,
        policy,
        actor.person or actor.id,
        datetime.now(UTC),
        starts=body.starts,
        expedite=body.expedite,
        audience=audience,
    )
    return view(row)


def _row(session: Session, id: str, lock: bool = False) -> Deployment:
    row = session.get(Deployment, id, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        raise not_found("deployment", id)
    return row


@router.get("/{deployment}", responses={304: {}, 404: {}})
def one(deployment: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> DeploymentFull:
    """One deployment."""
    row = _row(session, deployment)
    shown(request, response, row)
    said = session.scalars(select(ApprovalRow).where(ApprovalRow.deployment_id == deployment).order_by(ApprovalRow.at))
    return DeploymentFull(
        **view(row).model_dump(),
        rings=row.rings,
        approvals=[
            ApprovalView(
                person=word.person,
                ring=None if word.ring < 0 else word.ring,
                approved=word.approved,
                comment=word.comment,
                at=word.at,
            )
            for word in said
        ],
        first_offer=row.first_offer,
        audience=row.audience,
    )


@router.get("/{deployment}/rings")
def rings(deployment: str, session: DbSession, _actor: Reader) -> list[RingView]:
    """How the rings stand, as counted a few seconds ago."""
    row = _row(session, deployment)
    found = session.scalars(
        select(DeploymentRing).where(DeploymentRing.deployment_id == deployment).order_by(DeploymentRing.ring)
    )
    return [
        RingView(
            ring=line.ring,
            name=line.name,
            members=sum(line.tally.values()),
            tally=line.tally,
            opened=line.opened,
            passed=line.passed,
            sampled=line.sampled,
            gate=why(line.gate, row.detail) if line.gate else None,
            counted=line.counted,
        )
        for line in found
    ]


@router.get("/{deployment}/devices")
def devices(
    deployment: str,
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    state: Annotated[m.DeviceState | None, Query()] = None,
    ring: Annotated[int | None, Query(ge=0, le=20)] = None,
) -> Page[MembershipView]:
    """How each device stands."""
    row = _row(session, deployment)
    query = select(Membership, Device.hostname).join(Device, Device.id == Membership.device_id)
    query = query.where(Membership.deployment_id == deployment)
    if state is not None:
        query = query.where(Membership.state == state.value)
    if ring is not None:
        query = query.where(Membership.ring == ring)
    elif state is not None:
        # every ring by its number: so few of many are found by the index
        query = query.where(or_(Membership.ring.is_(None), Membership.ring.in_(range(len(row.rings)))))
    return Page(**page(session, query, (Membership.device_id,), after, limit, lambda found: membership_view(*found)))


def _ask(
    request: Request,
    session: Session,
    id: str,
    actor: Actor,
    kind: str,
    change: Callable[[Live, rollout.Situation, datetime], m.Deployment],
    detail: dict[str, object] | None = None,
) -> DeploymentView:
    """What a person asks of a deployment: requested at once, and effective in the same transaction where it can be."""
    row = _row(session, id, lock=True)
    fleet = fleet_of(request, session)
    live = rollouts.live_of(session, row, fleet)
    if live is None:
        raise Problem(409, "gone", "the deployment's policy or content is gone")
    now = datetime.now(UTC)
    try:
        wanted = change(live, rollouts.situation(session, row, live, fleet, now), now)
    except rollout.RequestRefused as error:
        raise Problem(409, "not-possible", str(error)) from None
    events.publish(session, kind, detail or {}, subject=id, actor=actor.id, at=now)
    rollouts.store(session, row, live, wanted, now)
    session.flush()
    rollouts.advance(session, row, fleet, now)
    return view(row)


@router.post("/{deployment}/pause", responses={404: {}, 409: {}})
def pause(deployment: str, body: Pausing, request: Request, session: DbSession, actor: Writer) -> DeploymentView:
    """Offer it to nobody, until a person resumes it or until a time."""
    if body.until is not None and body.until.tzinfo is None:
        raise Problem(422, "invalid", "body/until: give a time with a zone")
    until = body.until.isoformat() if body.until else None
    return _ask(
        request,
        session,
        deployment,
        actor,
        "deployment.pause_requested",
        lambda live, _, now: rollout.pause(live.deployment, now, body.until),
        {"until": until},
    )


@router.post("/{deployment}/resume", responses={404: {}, 409: {}})
def resume(deployment: str, request: Request, session: DbSession, actor: Writer) -> DeploymentView:
    """Go on with what a person paused or a gate halted; what failed so far is accepted."""
    return _ask(
        request,
        session,
        deployment,
        actor,
        "deployment.resume_requested",
        lambda live, situation, now: rollout.resume(live.deployment, situation, now),
    )


@router.post("/{deployment}/stop", responses={404: {}, 409: {}})
def stop(deployment: str, request: Request, session: DbSession, actor: Writer) -> DeploymentView:
    """Offer it to nobody ever again; what runs keeps running."""
    return _ask(
        request,
        session,
        deployment,
        actor,
        "deployment.stop_requested",
        lambda live, _, _now: rollout.stop(live.deployment),
    )


@router.post("/{deployment}/revert", responses={404: {}, 409: {}})
def revert(deployment: str, request: Request, session: DbSession, actor: Writer) -> DeploymentView:
    """Take it out wherever it runs."""
    return _ask(
        request,
        session,
        deployment,
        actor,
        "deployment.revert_requested",
        lambda live, _, _now: rollout.revert(live.deployment),
    )


@router.post("/{deployment}/approve", responses={404: {}, 409: {}})
def approve(deployment: str, body: Word, request: Request, session: DbSession, actor: Approver) -> DeploymentView:
    """Approve or reject it, or one of its rings. A person counts once. Where two must approve, whoever asked for the
    deployment is neither of them."""
    row = _row(session, deployment, lock=True)
    ring = -1 if body.ring is None else body.ring

    def change(live: Live, _situation: rollout.Situation, now: datetime) -> m.Deployment:
        two = demands_two(live.policy, live.content, body.ring)
        person = approver(actor, row.created_by, two, body.approved)
        approved = rollout.approve(live.deployment, m.Approval(person, now, body.approved, body.ring))
        session.merge(
            ApprovalRow(
                deployment_id=row.id,
                person=person,
                ring=ring,
                approved=body.approved,
                comment=body.comment,
                at=now,
            )
        )
        session.flush()
        return approved

    detail: dict[str, object] = {"approved": body.approved, "ring": body.ring, "comment": body.comment}
    return _ask(request, session, deployment, actor, "deployment.approved", change, detail)
