"""Devices: the list, and one with everything that is known of it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import names
from midflight.server.console.web import Console, SignedIn, done, new_router, query_of
from midflight.server.domain.model import ComplianceState

router = new_router()
_FILTERS = ("hostname", "group", "policy", "compliance", "image", "disabled", "after")


@router.get("/devices")
async def devices(console: SignedIn, request: Request) -> Response:
    """The list, filtered, page by page. Asked for by htmx, the rows alone."""
    wanted = query_of(request, *_FILTERS)
    found = await console.api.get("/api/v1/devices", limit=50, **wanted)
    policies, groups = await asyncio.gather(names(console, "policies"), names(console, "groups"))
    rest = {name: value for name, value in wanted.items() if name != "after"}
    values = {"items": found["items"], "next": found["next"], "wanted": wanted, "rest": rest, "policies": policies}
    template = "devices_rows.html" if request.headers.get("hx-request") == "true" else "devices.html"
    return console.page(template, groups=groups, states=list(ComplianceState), **values)


@router.get("/devices/{id}")
async def device(console: SignedIn, id: str) -> Response:
    """One device."""
    return await _device(console, id)


async def _device(console: Console, id: str, error: Refused | None = None) -> Response:
    answer = await console.api.call("GET", below("devices", id))
    inventory, outcomes, history, policies, groups = await asyncio.gather(
        console.api.get(below("devices", id, "inventory"), limit=200),
        console.api.get(below("devices", id, "outcomes"), limit=30),
        console.api.get(below("devices", id, "compliance"), limit=30),
        names(console, "policies"),
        names(console, "groups"),
    )
    values: dict[str, Any] = {
        "device": answer.document,
        "etag": answer.etag,
        "state": answer.document["state"] or {},
        "inventory": inventory,
        "outcomes": outcomes,
        "history": history,
        "policies": policies,
        "groups": groups,
        "contents": await _contents(console, answer.document["deployments"]),
        "error": error,
    }
    return console.page("devices_one.html", error.status if error else 200, **values)


async def _contents(console: Console, memberships: list[dict[str, Any]]) -> dict[str, str]:
    """The content of each deployment that a device is in."""

    async def content(id: str) -> str:
        try:
            return str((await console.api.get(below("deployments", id)))["content"])
        except Refused:
            return ""

    ids = [each["deployment"] for each in memberships[:20]]
    return dict(zip(ids, await asyncio.gather(*map(content, ids)), strict=True))


@router.post("/devices/{id}/tags")
async def set_tags(console: SignedIn, id: str) -> Response:
    """Replace the tags, typed one a line as ``name = value``."""
    form = await console.form()
    try:
        tags = read_tags(form.one("tags"))
        await console.api.call(
            "PUT", below("devices", id, "tags"), {"tags": tags}, headers={"if-match": form.one("etag")}
        )
    except Refused as error:
        return await _device(console, id, error)
    return done(f"/devices/{id}", "saved")


@router.post("/devices/{id}/{what}")
async def act(console: SignedIn, id: str, what: str) -> Response:
    """Disable, enable, revoke, or let it try again what failed."""
    form = await console.form()
    bodies: dict[str, tuple[Any, str]] = {
        "disable": ({"reason": form.one("reason") or "by an administrator"}, "disabled"),
        "enable": (None, "enabled"),
        "revoke": ({"reason": form.one("reason") or "by an administrator"}, "revoked"),
        "retry": ({"content": form.one("content")}, "bars"),
    }
    if what not in bodies:
        raise Refused(404, "not-found", "there is no such act")
    body, said = bodies[what]
    try:
        await console.api.post(below("devices", id, what), body)
    except Refused as error:
        return await _device(console, id, error)
    return done(f"/devices/{id}", said)


def read_tags(text: str) -> dict[str, str]:
    """Tags as typed: ``name = value``, one a line.

    Raises:
        Refused: a line is something else.
    """
    tags = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name or not value:
            raise Refused(422, "invalid", f"tags: {line[:60]!r} is not NAME = VALUE; write one tag a line")
        tags[name] = value
    return tags
