"""Webhooks: events from the outbox to each receiver, at least once.

Three short steps, so that no transaction waits for somebody's network: events become deliveries; due deliveries are
claimed for a while; what came of each is written down. A process that dies in between costs a second delivery of the
same message (with the same id), never a lost one.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from midflight.errors import InputError, MidflightError
from midflight.server.outputs import backoff, destination, signing
from midflight.server.outputs.destination import Network
from midflight.server.outputs.keys import OutputKeys
from midflight.server.outputs.ocsf import Host
from midflight.server.outputs.post import post
from midflight.server.outputs.render import Happened, matches, render, takes
from midflight.server.outputs.tables import Webhook, WebhookDelivery
from midflight.server.settings import Settings
from midflight.server.store.catalogue import Content, ContentCve
from midflight.server.store.database import Database
from midflight.server.store.devices import Device
from midflight.server.store.events import Event, publish

_LEASE = timedelta(minutes=2)
_BATCH = 200
_PARALLEL = 8
_OVERLAP = timedelta(hours=24)
"""For so long after a rotation messages carry a signature by the former secret too."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """The table [webhooks] of server.toml."""

    allow: tuple[Network, ...] = ()
    """Networks that are not public and may be reached nevertheless."""
    disable_after: timedelta = timedelta(days=5)
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: Settings) -> WebhookSettings:
        """From the server's settings.

        Raises:
            InputError: a name or value is wrong.
        """
        table: Mapping[str, Any] = settings.extra.get("webhooks", {})
        if unknown := set(table) - {"allow", "disable_after_days", "ca"}:
            raise InputError(f"webhooks: there is no setting {sorted(unknown)[0]!r}")
        allow, days, authority = table.get("allow", []), table.get("disable_after_days", 5), table.get("ca")
        if not isinstance(allow, list) or isinstance(days, bool) or not isinstance(days, int) or days < 1:
            raise InputError("webhooks: allow is a list of networks, disable_after_days a number of days")
        tls = ssl.create_default_context(cafile=str(settings.folder / authority)) if authority else None
        return cls(destination.networks(str(text) for text in allow), timedelta(days=days), tls)


@dataclass(frozen=True, slots=True)
class Job:
    """A delivery that is ours for now."""

    webhook: str
    event_id: int
    url: str
    format: str
    audience: str
    generation: int
    previous_too: bool
    attempts: int
    event: Happened


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt."""

    job: Job
    delivered: bool
    status: int | None = None
    error: str = ""
    gone: bool = False
    retry_after: timedelta | None = None


@dataclass(slots=True)
class Delivered:
    """What one round did."""

    dispatched: int = 0
    delivered: int = 0
    failed: int = 0
    disabled: list[str] = field(default_factory=list)


def secret_key(keys: OutputKeys, webhook: str, generation: int) -> bytes:
    """The secret of a webhook: derived, kept nowhere."""
    return keys.master.derive(f"webhook {webhook} {generation}")


def deliver(database: Database, settings: WebhookSettings, issuer: str, keys: OutputKeys, now: datetime) -> Delivered:
    """One round of background work: everything that is due now, once."""
    done = Delivered()
    with database.write() as session:
        done.dispatched = dispatch(session, now)
    with database.write() as session:
        jobs = claim(session, now)
    if not jobs:
        return done
    with ThreadPoolExecutor(min(_PARALLEL, len(jobs)), "webhook") as pool:
        outcomes = list(pool.map(lambda job: attempt(job, settings, issuer, keys, now), jobs))
    with database.write() as session:
        for outcome in outcomes:
            done.delivered += outcome.delivered
            done.failed += not outcome.delivered
            if disabled := finish(session, outcome, settings, now):
                done.disabled.append(disabled)
    return done


def dispatch(session: Session, now: datetime) -> int:
    """Turn waiting events into deliveries; returns how many events."""
    events = session.scalars(
        select(Event)
        .where(Event.dispatched.is_(None))
        .order_by(Event.id)
        .limit(_BATCH * 5)
        .with_for_update(skip_locked=True)
    ).all()
    if not events:
        return 0
    hooks = session.scalars(select(Webhook).where(Webhook.enabled)).all()
    for event in events:
        event.dispatched = now
        for hook in hooks:
            if event.at >= hook.created and matches(hook.kinds, event.kind) and takes(hook.format, event.kind):
                enqueue(session, hook, event, now)
    return len(events)


def enqueue(session: Session, hook: Webhook, event: Event, now: datetime) -> None:
    """Let one event go to one webhook."""
    session.add(
        WebhookDelivery(
            webhook_id=hook.id, event_id=event.id, attempts=0, due=now, delivered=None, status=None, error=""
        )
    )


def claim(session: Session, now: datetime) -> list[Job]:
    """Due deliveries, ours until the lease ends."""
    quiet = select(Webhook.id).where(Webhook.quiet_until > now)
    due = select(WebhookDelivery).where(WebhookDelivery.due <= now, WebhookDelivery.webhook_id.not_in(quiet))
    statement = due.order_by(WebhookDelivery.due).limit(_BATCH)
    rows = session.scalars(statement.with_for_update(skip_locked=True)).all()
    hooks = {
        hook.id: hook for hook in session.scalars(select(Webhook).where(Webhook.id.in_({r.webhook_id for r in rows})))
    }
    found = session.scalars(select(Event).where(Event.id.in_({row.event_id for row in rows}))).all()
    events = {event.id: happened for event, happened in zip(found, _described(session, found), strict=True)}
    jobs = []
    for row in rows:
        hook, event = hooks.get(row.webhook_id), events.get(row.event_id)
        if hook is None or event is None or not hook.enabled:
            row.due, row.error = None, "given up: the webhook is disabled or the event is gone"
            continue
        row.due = now + _LEASE
        previous = hook.generation > 1 and hook.rotated is not None and now - hook.rotated < _OVERLAP
        jobs.append(
            Job(
                hook.id,
                row.event_id,
                hook.url,
                hook.format,
                hook.audience,
                hook.generation,
                previous,
                row.attempts,
                event,
            )
        )
    return jobs


def attempt(job: Job, settings: WebhookSettings, issuer: str, keys: OutputKeys, now: datetime) -> Outcome:
    """Send it. Whatever goes wrong is an outcome, never an exception."""
    message = render(job.event, job.format, issuer, job.audience, keys.jwt, now)
    if message is None:
        return Outcome(job, True, None, "nothing to say in this format")
    try:
        target = destination.parse(job.url)
        address = destination.resolve(target, settings.allow)
        generations = range(job.generation, job.generation - 1 - job.previous_too, -1)
        secrets = [secret_key(keys, job.webhook, generation) for generation in generations]
        headers = {
            "Content-Type": message.content_type,
            "User-Agent": "Midflight",
            "Accept": "application/json",
            **signing.headers(job.event.uid, now, message.body, secrets),
        }
        answer = post(target, address, message.body, headers, settings.tls)
    except MidflightError as error:
        return Outcome(job, False, None, str(error)[:500])
    if 200 <= answer.status < 300:
        return Outcome(job, True, answer.status)
    text = answer.begin[:200].decode("utf-8", "replace")
    asked = backoff.asked_wait(answer.retry_after, now)
    said = f"answered {answer.status}: {text}"
    return Outcome(job, False, answer.status, said, gone=answer.status == 410, retry_after=asked)


def finish(session: Session, outcome: Outcome, settings: WebhookSettings, now: datetime) -> str | None:
    """Write down what came of an attempt; returns the id of the webhook if this disabled it."""
    job = outcome.job
    row = session.get(WebhookDelivery, (job.webhook, job.event_id))
    hook = session.get(Webhook, job.webhook)
    if row is None or hook is None:
        return None
    row.attempts, row.status = job.attempts + 1, outcome.status
    row.error = outcome.error.replace("\0", "\ufffd")
    if outcome.delivered:
        row.due, row.delivered = None, now
        hook.failing_since, hook.last_success = None, now
        return None
    if outcome.retry_after:
        # it is too much for the receiver: the others wait too, and so does what happens meanwhile
        hook.quiet_until = max(now + outcome.retry_after, hook.quiet_until or now)
    hook.failing_since = hook.failing_since or now
    row.due = backoff.next_attempt(row.attempts, job.event.at, now, outcome.retry_after, random.random())
    if not outcome.gone and not backoff.given_up(hook.failing_since, settings.disable_after, now):
        return None
    hook.enabled = False
    hook.disabled_reason = (
        "the receiver is gone (410)" if outcome.gone else f"failing since {hook.failing_since:%c} UTC"
    )
    hook.version += 1
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == hook.id, WebhookDelivery.due.is_not(None))
        .values(due=None, error="given up: the webhook was disabled")
    )
    publish(session, "webhook.disabled", {"reason": hook.disabled_reason}, subject=hook.id, at=now)
    return hook.id


def prune(session: Session, before: datetime) -> None:
    """Forget deliveries of events that are forgotten themselves."""
    gone = (
        select(WebhookDelivery.event_id)
        .outerjoin(Event, Event.id == WebhookDelivery.event_id)
        .where(Event.id.is_(None))
    )
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.event_id.in_(gone)))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.due.is_(None), WebhookDelivery.delivered < before))


def _described(session: Session, events: Sequence[Event]) -> list[Happened]:
    """Events with the host and content they speak of."""
    devices = _by_id(session, Device, {event.subject for event in events})
    ids = {str(event.data.get("content")) for event in events if event.data.get("content")}
    contents = _by_id(session, Content, ids)
    cves: dict[str, list[str]] = {}
    for row in session.scalars(select(ContentCve).where(ContentCve.content_id.in_(ids)).order_by(ContentCve.cve)):
        cves.setdefault(row.content_id, []).append(row.cve)
    found = []
    for event in events:
        device, content = devices.get(event.subject), contents.get(str(event.data.get("content")))
        host = Host(device.id, device.hostname, device.platform) if device else None
        name, known = (content.name, cves.get(content.id, [])) if content else ("", [])
        found.append(Happened(event.uid, event.kind, event.at, event.subject, event.data, host, name, known))
    return found


def _by_id(session: Session, table: Any, ids: set[str]) -> dict[str, Any]:
    return {row.id: row for row in session.scalars(select(table).where(table.id.in_(ids)))} if ids else {}
