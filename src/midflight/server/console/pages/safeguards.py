"""Safeguard holds: known-bad combinations that nobody is offered."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import everything, people
from midflight.server.console.times import local_time
from midflight.server.console.web import Console, Form, SignedIn, done, new_router, query_of

router = new_router()
_FIELDS = ("reason", "content", "package", "package_version", "baseline", "kernel", "platform", "agent")


@router.get("/safeguards")
async def safeguards(console: SignedIn, request: Request) -> Response:
    """All holds, and what the outcomes of a content suggest."""
    return await _safeguards(console, request)


async def _safeguards(console: Console, request: Request, error: Refused | None = None, typed: Any = None) -> Response:
    wanted = query_of(
        request, "lifted", "after", "content", "package", "kernel", "agent", "platform", "package_version"
    )
    found = await console.api.get(
        "/api/v1/safeguards", limit=50, lifted=wanted["lifted"] or "false", after=wanted["after"]
    )
    contents = [item["id"] for item in await everything(console, "content", most=1)]
    suggested: list[dict[str, Any]] = []
    for content in contents[:10]:
        suggested += await console.api.get("/api/v1/safeguards/suggestions", content=content)
    filled = {name: wanted[name] for name in wanted if name not in ("lifted", "after")}
    values = {
        "items": found["items"],
        "next": found["next"],
        "lifted": wanted["lifted"],
        "suggested": suggested,
        "contents": contents,
        "typed": console.typed(typed or filled),
        "error": error,
    }
    return console.page("safeguards.html", error.status if error else 200, **values)


def _typed(form: Form, console: Console) -> dict[str, Any]:
    return {
        **{name: form.one(name) for name in _FIELDS},
        "expires": local_time(form.one("expires"), console.zone),
    }


@router.post("/safeguards")
async def make_safeguard(console: SignedIn, request: Request) -> Response:
    """Hold a combination."""
    form = await console.form()
    try:
        await console.api.post("/api/v1/safeguards", _typed(form, console))
    except Refused as error:
        return await _safeguards(console, request, error, {name: form.one(name) for name in (*_FIELDS, "expires")})
    return done("/safeguards", "created")


@router.get("/safeguards/{id}")
async def safeguard(console: SignedIn, id: str) -> Response:
    """One hold."""
    return await _safeguard(console, id)


async def _safeguard(console: Console, id: str, error: Refused | None = None) -> Response:
    answer = await console.api.call("GET", below("safeguards", id))
    values = {"hold": answer.document, "etag": answer.etag, "people": await people(console), "error": error}
    return console.page("safeguards_one.html", error.status if error else 200, **values)


@router.post("/safeguards/{id}")
async def edit_safeguard(console: SignedIn, id: str) -> Response:
    """Change a hold."""
    form = await console.form()
    try:
        body = _typed(form, console)
        await console.api.call("PUT", below("safeguards", id), body, headers={"if-match": form.one("etag")})
    except Refused as error:
        return await _safeguard(console, id, error)
    return done(f"/safeguards/{id}", "saved")


@router.post("/safeguards/{id}/lift")
async def lift(console: SignedIn, id: str) -> Response:
    """Hold it no longer."""
    await console.form()
    try:
        await console.api.post(below("safeguards", id, "lift"))
    except Refused as error:
        return await _safeguard(console, id, error)
    return done("/safeguards", "lifted")
