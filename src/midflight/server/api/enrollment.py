"""Invitations: tokens with which devices enroll."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from midflight.server import enrollment
from midflight.server.api.deps import Actor, DbSession, require
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import View
from midflight.server.store import events
from midflight.server.store.devices import EnrollToken

router = APIRouter(prefix="/api/v1/enrollment-tokens", tags=["enrollment"])
Writer = Annotated[Actor, require(Scope.ENROLLMENT_WRITE)]
_Tag = Annotated[str, Field(min_length=1, max_length=200)]


class Invitation(BaseModel):
    """What a new token is for."""

    label: Annotated[str, Field(max_length=200)] = ""
    uses: Annotated[int, Field(ge=1, le=100_000)] = 1
    hours: Annotated[float, Field(gt=0, le=24 * 90)] = 24
    tags: Annotated[dict[_Tag, _Tag], Field(max_length=64)] = {}


class TokenView(View):
    """A token, without its secret."""

    id: str
    label: str
    tags: dict[str, str]
    created: datetime
    created_by: str
    expires: datetime
    uses_left: int
    revoked: datetime | None


class NewToken(TokenView):
    """A new token; its secret is shown this once."""

    token: str


@router.post("", status_code=201)
def invite(body: Invitation, session: DbSession, actor: Writer, response: Response) -> NewToken:
    """Make a token. An Idempotency-Key does nothing here, because secrets are not kept: revoke one whose answer was
    lost, and make another."""
    row, token = enrollment.invite(
        session,
        actor.id,
        datetime.now(UTC),
        lifetime=timedelta(hours=body.hours),
        uses=body.uses,
        label=body.label,
        tags=body.tags,
    )
    response.headers["Cache-Control"] = "no-store"
    return NewToken(**TokenView.model_validate(row).model_dump(), token=token)


@router.get("")
def tokens(session: DbSession, _actor: Writer, limit: Limit = 100, after: After = None) -> Page[TokenView]:
    """The tokens, the newest first."""
    keys = (EnrollToken.created, EnrollToken.id)
    query = select(EnrollToken)
    return Page(**page(session, query, keys, after, limit, TokenView.model_validate, descending=True))


@router.delete("/{token}", status_code=204, responses={404: {}})
def revoke(token: str, session: DbSession, actor: Writer) -> None:
    """Let a token be good for nothing any more."""
    row = session.get(EnrollToken, token)
    if row is None:
        raise not_found("enrollment token", token)
    if row.revoked is None:
        row.revoked = datetime.now(UTC)
        events.publish(session, "enrollment.revoked", {"label": row.label}, subject=token, actor=actor.id)
