"""Safeguards: known-bad combinations of content and device, which nobody is offered."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
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
from midflight.server.domain.safeguards import Source, Suggestion, suggest, validate
from midflight.server.safeguards import outcomes_of
from midflight.server.store import convert, events, invalidate, meta
from midflight.server.store.base import new_id
from midflight.server.store.policies import Hold

router = APIRouter(prefix="/api/v1/safeguards", tags=["safeguards"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.SAFEGUARDS_READ)]
Writer = Annotated[Actor, require(Scope.SAFEGUARDS_WRITE)]
_Text = Annotated[str, Field(max_length=200)]


class SafeguardBody(BaseModel):
    """A combination that is held. An empty field fits everything; kernel, agent and version take * and ?."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=2000)]
    content: _Text = ""
    package: _Text = ""
    package_version: _Text = ""
    baseline: _Text = ""
    kernel: _Text = ""
    platform: _Text = ""
    agent: _Text = ""
    expires: datetime | None = None


class SafeguardView(View):
    """A safeguard."""

    id: str
    reason: str
    content: str
    package: str
    package_version: str
    baseline: str
    kernel: str
    platform: str
    agent: str
    source: str
    created: datetime
    created_by: str
    expires: datetime | None
    lifted: datetime | None
    version: int


class SuggestionView(BaseModel):
    """A combination whose failures are no accident."""

    content: str
    field: str
    value: str
    failed: int
    tried: int
    others_failed: int
    others_tried: int
    chance: float


def _row(session: Session, id: str) -> Hold:
    row = session.get(Hold, id)
    if row is None:
        raise not_found("safeguard", id)
    return row


def _check(row: Hold) -> None:
    if row.expires is not None and row.expires.tzinfo is None:
        raise Problem(422, "invalid", "body/expires: give a time with a zone")
    validate(convert.safeguard_of(row))


def _changed(session: Session) -> None:
    """Whoever may be concerned is decided anew; nobody is offered anything by what held before."""
    invalidate.everybody(session)
    meta.bump(session, "holds")


@router.get("")
def safeguards(
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    lifted: Annotated[bool, Query(description="show lifted ones too")] = False,
) -> Page[SafeguardView]:
    """The safeguards, the newest first."""
    query = select(Hold) if lifted else select(Hold).where(Hold.lifted.is_(None))
    keys = (Hold.created, Hold.id)
    return Page(**page(session, query, keys, after, limit, SafeguardView.model_validate, descending=True))


@router.post("", status_code=201)
def create(body: SafeguardBody, response: Response, session: DbSession, actor: Writer) -> SafeguardView:
    """Hold a combination, at once."""
    row = Hold(
        id=new_id("hld"),
        source=Source.PERSON.value,
        created=datetime.now(UTC),
        created_by=actor.id,
        lifted=None,
        version=0,
        **body.model_dump(),
    )
    _check(row)
    session.add(row)
    edited(response, row)
    events.publish(session, "safeguard.created", body.model_dump(mode="json"), subject=row.id, actor=actor.id)
    view = SafeguardView.model_validate(row)
    _changed(session)
    return view


@router.get("/suggestions")
def suggestions(
    session: DbSession,
    _actor: Reader,
    content: Annotated[str, Query(max_length=200)],
    days: Annotated[int, Query(ge=1, le=90)] = 14,
) -> list[SuggestionView]:
    """Combinations of a content with one fact that fail more often than chance explains, the surest first."""
    since = datetime.now(UTC) - timedelta(days=days)
    found: list[Suggestion] = suggest(outcomes_of(session, content, since))
    return [SuggestionView(**asdict(one)) for one in found]


@router.get("/{safeguard}", responses={304: {}, 404: {}})
def one(safeguard: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> SafeguardView:
    """One safeguard."""
    row = _row(session, safeguard)
    shown(request, response, row)
    return SafeguardView.model_validate(row)


@router.put("/{safeguard}", responses={404: {}, 409: {}, 412: {}, 428: {}})
def edit(
    safeguard: str, body: SafeguardBody, request: Request, response: Response, session: DbSession, actor: Writer
) -> SafeguardView:
    """Change a safeguard."""
    row = _row(session, safeguard)
    check_version(request, row)
    if row.lifted is not None:
        raise Problem(409, "lifted", "the safeguard was lifted; make a new one")
    values: dict[str, Any] = body.model_dump()
    for name, value in values.items():
        setattr(row, name, value)
    _check(row)
    edited(response, row)
    events.publish(session, "safeguard.changed", body.model_dump(mode="json"), subject=safeguard, actor=actor.id)
    view = SafeguardView.model_validate(row)
    _changed(session)
    return view


@router.post("/{safeguard}/lift", responses={404: {}})
def lift(safeguard: str, response: Response, session: DbSession, actor: Writer) -> SafeguardView:
    """Hold it no longer."""
    row = _row(session, safeguard)
    if row.lifted is None:
        row.lifted = datetime.now(UTC)
        edited(response, row)
        events.publish(session, "safeguard.lifted", {"reason": row.reason}, subject=safeguard, actor=actor.id)
    view = SafeguardView.model_validate(row)
    _changed(session)
    return view
