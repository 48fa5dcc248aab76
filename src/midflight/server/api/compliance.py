"""Compliance of the fleet, and the events of everything that happened."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import select

from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.scopes import Scope
from midflight.server.api.views import View, Why, why
from midflight.server.domain.model import ComplianceState
from midflight.server.store import tallies
from midflight.server.store.devices import Device
from midflight.server.store.events import Event
from midflight.server.store.policies import Compliance

router = APIRouter(prefix="/api/v1", tags=["compliance"])
Reader = Annotated[Actor, require(Scope.COMPLIANCE_READ)]


class Overview(BaseModel):
    """How the devices stand, hotpatched and restarted ones side by side."""

    total: int
    states: dict[str, int]
    hotpatched: int
    """Of the compliant ones, those on which some fix runs by hotpatch alone."""
    restarted: int
    share: float
    """Compliant ones of all; who is stale or unassigned counts as not."""


class ComplianceLine(BaseModel):
    """A device's compliance."""

    device: str
    hostname: str
    policy: str | None
    state: str
    why: Why | None
    hotpatched: bool
    since: datetime
    until: datetime | None
    evaluated: datetime


class EventView(View):
    """Something that happened."""

    id: int
    uid: str
    kind: str
    at: datetime
    subject: str
    actor: str
    data: dict[str, Any]


@router.get("/compliance")
def overview(session: DbSession, _actor: Reader, policy: str | None = None) -> Overview:
    """The fleet's (or a policy's) compliance."""
    states: dict[str, int] = {}
    hotpatched = restarted = 0
    for (state, by_hotpatch), count in sorted(tallies.compliance(session, policy).items()):
        states[state] = states.get(state, 0) + count
        if state == ComplianceState.COMPLIANT.value:
            hotpatched += count if by_hotpatch else 0
            restarted += 0 if by_hotpatch else count
    total = sum(states.values())
    return Overview(
        total=total,
        states=states,
        hotpatched=hotpatched,
        restarted=restarted,
        share=(hotpatched + restarted) / total if total else 0.0,
    )


@router.get("/compliance/devices")
def devices(
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    state: Annotated[ComplianceState | None, Query()] = None,
    policy: str | None = None,
) -> Page[ComplianceLine]:
    """How each device stands."""
    query: Any = select(Compliance, Device.hostname).join(Device, Device.id == Compliance.device_id)
    if state is not None:
        query = query.where(Compliance.state == state.value)
    if policy is not None:
        query = query.where(Compliance.policy_id == policy)

    def view(row: Any) -> ComplianceLine:
        found: Compliance = row[0]
        return ComplianceLine(
            device=found.device_id,
            hostname=row[1],
            policy=found.policy_id,
            state=found.state,
            why=why(found.reason, found.detail),
            hotpatched=found.hotpatched,
            since=found.since,
            until=found.until,
            evaluated=found.evaluated,
        )

    return Page(**page(session, query, (Compliance.device_id,), after, limit, view))


@router.get("/events", tags=["events"])
def events(
    session: DbSession,
    _actor: Annotated[Actor, require(Scope.EVENTS_READ)],
    limit: Limit = 100,
    after: After = None,
    subject: str | None = None,
    kind: Annotated[str | None, Query(max_length=100, description="begins with")] = None,
) -> Page[EventView]:
    """What happened, the newest first."""
    query = select(Event)
    if subject is not None:
        query = query.where(Event.subject == subject)
    if kind is not None:
        query = query.where(Event.kind >= kind, Event.kind < kind + "\U0010ffff")
    return Page(**page(session, query, (Event.id,), after, limit, EventView.model_validate, descending=True))
