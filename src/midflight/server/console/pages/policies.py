"""Policies: who gets content, in which rings and gates, when, and what counts as compliant."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import everything, names
from midflight.server.console.policyform import DAYS, STARTER, document, fields, rows_of, window_text
from midflight.server.console.times import local_time
from midflight.server.console.web import Console, SignedIn, done, new_router
from midflight.server.domain.model import (
    ApprovalMode,
    Classification,
    ContentKind,
    RestartBehaviour,
    RingKind,
    Severity,
)

router = new_router()
_CHOICES: dict[str, Any] = {
    "days": DAYS,
    "modes": list(ApprovalMode),
    "kinds": list(ContentKind),
    "classifications": list(Classification),
    "severities": list(Severity),
    "restarts": [
        (RestartBehaviour.NEVER.value, "only people restart"),
        (RestartBehaviour.SERVICES.value, "restart services, not the machine"),
        (RestartBehaviour.IN_WINDOW.value, "inside a maintenance window"),
        (RestartBehaviour.AT_DEADLINE.value, "at the deadline, with warnings"),
    ],
    "ring_kinds": [
        (RingKind.FIRST.value, "first ready ones"),
        (RingKind.COUNT.value, "a number"),
        (RingKind.PERCENT.value, "per cent"),
        (RingKind.GROUP.value, "a group"),
        (RingKind.REST.value, "all others"),
    ],
}


@router.get("/policies")
async def policies(console: SignedIn) -> Response:
    """All policies."""
    items, groups = await asyncio.gather(everything(console, "policies"), names(console, "groups"))
    return console.page("policies.html", items=items, groups=groups)


@router.get("/policies/new")
async def new_policy(console: SignedIn) -> Response:
    """The form of a new one."""
    return await _form(console, "", {"name": "", "priority": 0, "document": STARTER}, "")


@router.post("/policies/new")
async def make_policy(console: SignedIn) -> Response:
    """Make a policy."""
    return await _save(console, "")


@router.get("/policies/{id}")
async def policy(console: SignedIn, id: str) -> Response:
    """One policy, in words."""
    return await _policy(console, id)


async def _policy(console: Console, id: str, error: Refused | None = None) -> Response:
    answer = await console.api.call("GET", below("policies", id))
    groups, compliance, deployments = await asyncio.gather(
        names(console, "groups"),
        console.api.get("/api/v1/compliance", policy=id),
        console.api.get("/api/v1/deployments", policy=id, limit=20),
    )
    found = answer.document
    values = {
        "policy": found,
        "document": found["document"],
        "windows": [window_text(window) for window in found["document"]["windows"]],
        "etag": answer.etag,
        "groups": groups,
        "compliance": compliance,
        "deployments": deployments["items"],
        "error": error,
    }
    return console.page("policies_one.html", error.status if error else 200, **values)


@router.get("/policies/{id}/edit")
async def edit_policy(console: SignedIn, id: str) -> Response:
    """The form of one."""
    answer = await console.api.call("GET", below("policies", id))
    return await _form(console, id, answer.document, answer.etag)


@router.post("/policies/{id}/edit")
async def save_policy(console: SignedIn, id: str) -> Response:
    """Save it."""
    return await _save(console, id)


async def _save(console: Console, id: str) -> Response:
    form = await console.form()
    try:
        typed = {
            "name": form.one("name"),
            "priority": form.number("priority") or 0,
            "document": document(form, console.now.date()),
        }
        if id:
            etag = form.one("etag")
            await console.api.call("PUT", below("policies", id), typed, headers={"if-match": etag})
            return done(f"/policies/{id}", "saved")
        made = await console.api.post("/api/v1/policies", typed)
    except Refused as error:
        etag = (await console.api.call("GET", below("policies", id))).etag if id else ""
        shown = {"name": form.one("name"), "priority": 0, "document": rows_of(form)}
        return await _form(console, id, shown, etag, error)
    return done(f"/policies/{made['id']}", "created")


async def _form(console: Console, id: str, policy: dict[str, Any], etag: str, error: Refused | None = None) -> Response:
    values = {
        "id": id,
        "policy": policy,
        "document": fields(policy["document"]),
        "etag": etag,
        "groups": await names(console, "groups"),
        "error": error,
    }
    return console.page("policies_form.html", error.status if error else 200, **_CHOICES, **values)


@router.post("/policies/{id}/{what}")
async def act(console: SignedIn, id: str, what: str) -> Response:
    """Pause, resume or delete."""
    form = await console.form()
    try:
        if what == "pause":
            await console.api.post(
                below("policies", id, "pause"), {"until": local_time(form.one("until"), console.zone)}
            )
        elif what == "resume":
            await console.api.post(below("policies", id, "resume"))
        elif what == "delete":
            await console.api.call("DELETE", below("policies", id), headers={"if-match": form.one("etag")})
            return done("/policies", "deleted")
        else:
            raise Refused(404, "not-found", "there is no such act")
    except Refused as error:
        return await _policy(console, id, error)
    return done(f"/policies/{id}", {"pause": "paused", "resume": "resumed"}[what])
