"""Webhooks: where events go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.errors import InputError
from midflight.server.api.deps import Actor, AppSettings, DbSession, require
from midflight.server.api.problems import not_found
from midflight.server.api.scopes import Scope
from midflight.server.outputs import destination, keys, webhooks
from midflight.server.outputs.signing import secret_text
from midflight.server.outputs.tables import Webhook, WebhookDelivery
from midflight.server.outputs.webhooks import WebhookSettings
from midflight.server.settings import Settings
from midflight.server.store.base import new_id
from midflight.server.store.events import Event, publish

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])

Kind = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*(\.?\*)?$|^\*$", max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class NewWebhook(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    url: Annotated[str, Field(max_length=2048)]
    format: Literal["cloudevents", "ocsf", "caep"] = "cloudevents"
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=50)] = ["*"]
    audience: Annotated[str, Field(max_length=200)] = ""


class WebhookChange(BaseModel):
    """What changes of a webhook; what is not given stays."""

    model_config = ConfigDict(extra="forbid")
    name: Name | None = None
    url: Annotated[str, Field(max_length=2048)] | None = None
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=50)] | None = None
    enabled: bool | None = None


def _shown(hook: Webhook) -> dict[str, Any]:
    return {
        "id": hook.id,
        "name": hook.name,
        "url": hook.url,
        "format": hook.format,
        "kinds": hook.kinds,
        "audience": hook.audience,
        "enabled": hook.enabled,
        "disabled_reason": hook.disabled_reason,
        "created": hook.created,
        "failing_since": hook.failing_since,
        "last_success": hook.last_success,
        "version": hook.version,
    }


def _get(session: Session, id: str) -> Webhook:
    hook = session.get(Webhook, id)
    if hook is None:
        raise not_found("webhook", id)
    return hook


def _permitted(url: str, settings: Settings) -> str:
    """The URL, if it is one. Where its name leads to is judged at each delivery, not while a transaction waits.

    Raises:
        InputError: it is no URL, or of a place that is not allowed.
    """
    try:
        destination.judge_literal(destination.parse(url), WebhookSettings.of(settings).allow)
    except destination.DestinationRefused as error:
        raise InputError(str(error)) from None
    return url


@router.get("")
def list_webhooks(session: DbSession, _actor: Annotated[Actor, require(Scope.WEBHOOKS_READ)]) -> dict[str, Any]:
    """All webhooks, by name."""
    return {"items": [_shown(hook) for hook in session.scalars(select(Webhook).order_by(Webhook.name, Webhook.id))]}


@router.post("", status_code=201)
def make_webhook(
    request: Request,
    session: DbSession,
    settings: AppSettings,
    actor: Annotated[Actor, require(Scope.WEBHOOKS_WRITE)],
    wanted: NewWebhook,
) -> dict[str, Any]:
    """Make a webhook. ``secret`` (Standard Webhooks, for the receiver) is shown now and after a rotation only."""
    if wanted.format == "caep" and not wanted.audience:
        raise InputError("a webhook of format caep needs an audience: who the receiver is")
    hook = Webhook(
        id=new_id("whk"),
        name=wanted.name,
        url=_permitted(wanted.url, settings),
        format=wanted.format,
        kinds=wanted.kinds,
        audience=wanted.audience,
        enabled=True,
        disabled_reason="",
        generation=1,
        rotated=None,
        created=datetime.now(UTC),
        created_by=actor.id,
        failing_since=None,
        last_success=None,
        version=1,
    )
    session.add(hook)
    session.flush()
    return {**_shown(hook), "secret": secret_text(webhooks.secret_key(keys.of_request(request), hook.id, 1))}


@router.get("/{id}")
def get_webhook(session: DbSession, _actor: Annotated[Actor, require(Scope.WEBHOOKS_READ)], id: str) -> dict[str, Any]:
    """One webhook."""
    return _shown(_get(session, id))


@router.patch("/{id}")
def change_webhook(
    session: DbSession,
    settings: AppSettings,
    _actor: Annotated[Actor, require(Scope.WEBHOOKS_WRITE)],
    id: str,
    change: WebhookChange,
) -> dict[str, Any]:
    """Change a webhook, or enable it again."""
    hook = _get(session, id)
    if change.url is not None:
        hook.url = _permitted(change.url, settings)
    if change.name is not None:
        hook.name = change.name
    if change.kinds is not None:
        hook.kinds = change.kinds
    if change.enabled is not None:
        hook.enabled = change.enabled
        hook.disabled_reason = "" if change.enabled else "disabled by a person"
        hook.failing_since = hook.quiet_until = None
    hook.version += 1
    return _shown(hook)


@router.delete("/{id}", status_code=204)
def delete_webhook(session: DbSession, _actor: Annotated[Actor, require(Scope.WEBHOOKS_WRITE)], id: str) -> None:
    """Delete a webhook; what waits for it is not delivered."""
    session.delete(_get(session, id))


@router.post("/{id}/rotate")
def rotate(
    request: Request, session: DbSession, _actor: Annotated[Actor, require(Scope.WEBHOOKS_WRITE)], id: str
) -> dict[str, Any]:
    """A new secret. For a day messages are signed with both, so that the receiver can change over."""
    hook = _get(session, id)
    hook.generation += 1
    hook.rotated = datetime.now(UTC)
    hook.version += 1
    key = webhooks.secret_key(keys.of_request(request), hook.id, hook.generation)
    return {**_shown(hook), "secret": secret_text(key)}


@router.post("/{id}/test", status_code=202)
def test_webhook(session: DbSession, actor: Annotated[Actor, require(Scope.WEBHOOKS_WRITE)], id: str) -> dict[str, str]:
    """Send a test event to this webhook alone."""
    hook, now = _get(session, id), datetime.now(UTC)
    event = publish(session, "webhook.test", {"name": hook.name}, subject=hook.id, actor=actor.id, at=now)
    event.dispatched = now
    session.flush()
    webhooks.enqueue(session, hook, event, now)
    return {"event": event.uid}


@router.get("/{id}/deliveries")
def deliveries(
    session: DbSession,
    _actor: Annotated[Actor, require(Scope.WEBHOOKS_READ)],
    id: str,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """The last deliveries, newest first."""
    _get(session, id)
    rows = session.execute(
        select(WebhookDelivery, Event.uid, Event.kind, Event.at)
        .outerjoin(Event, Event.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.webhook_id == id)
        .order_by(WebhookDelivery.event_id.desc())
        .limit(limit)
    ).all()
    items = [
        {
            "event": uid,
            "kind": kind,
            "at": at,
            "attempts": row.attempts,
            "next": row.due,
            "delivered": row.delivered,
            "status": row.status,
            "error": row.error,
        }
        for row, uid, kind, at in rows
    ]
    return {"items": items}
