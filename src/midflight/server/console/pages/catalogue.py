"""The catalogue: content, what deploying it would do, the calendar; and deploying."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import everything, names
from midflight.server.console.times import local_time
from midflight.server.console.web import Console, Form, SignedIn, done, new_router, query_of
from midflight.server.domain.model import ContentKind

router = new_router()


@router.get("/catalogue")
async def catalogue(console: SignedIn, request: Request) -> Response:
    """What was published."""
    return await _catalogue(console, request)


async def _catalogue(console: Console, request: Request, error: Refused | None = None) -> Response:
    wanted = query_of(request, "kind", "package", "cve", "after")
    found, months, calendar = await asyncio.gather(
        console.api.get("/api/v1/content", limit=50, **wanted),
        console.api.get(f"/api/v1/calendar/{console.now.year}"),
        console.api.get("/api/v1/calendar"),
    )
    rest = {name: value for name, value in wanted.items() if name != "after"}
    values = {
        "items": found["items"],
        "next": found["next"],
        "wanted": wanted,
        "rest": rest,
        "kinds": list(ContentKind),
        "months": months,
        "calendar": calendar,
        "error": error,
    }
    return console.page("catalogue.html", error.status if error else 200, **values)


@router.post("/catalogue/refresh")
async def refresh(console: SignedIn, request: Request) -> Response:
    """Read the repository anew."""
    await console.form()
    try:
        await console.api.post("/api/v1/catalogue/refresh")
    except Refused as error:
        return await _catalogue(console, request, error)
    return done("/catalogue", "refreshed")


@router.post("/catalogue/calendar")
async def set_calendar(console: SignedIn, request: Request) -> Response:
    """Say which months bring a baseline."""
    form = await console.form()
    try:
        body = {
            "baseline_months": [int(month) for month in form.all("months") if month.isdigit()],
            "weekday": form.number("weekday"),
            "nth": form.number("nth"),
            "unplanned": form.one("unplanned").replace(",", " ").split(),
        }
        await console.api.call("PUT", "/api/v1/calendar", body)
    except Refused as error:
        return await _catalogue(console, request, error)
    return done("/catalogue", "saved")


@router.get("/catalogue/{id}")
async def content(console: SignedIn, id: str) -> Response:
    """One piece of content, what deploying it would do, and where it is deployed."""
    return await _content(console, id)


async def _content(console: Console, id: str, error: Refused | None = None) -> Response:
    answer = await console.api.call("GET", below("content", id))
    preview, deployed, policies, groups = await asyncio.gather(
        console.api.get(below("content", id, "preview")),
        everything(console, "deployments", content=id),
        everything(console, "policies"),
        names(console, "groups"),
    )
    values: dict[str, Any] = {
        "content": answer.document,
        "etag": answer.etag,
        "preview": preview,
        "deployed": deployed,
        "policies": policies,
        "groups": groups,
        "error": error,
    }
    return console.page("catalogue_one.html", error.status if error else 200, **values)


@router.post("/catalogue/{id}")
async def edit_content(console: SignedIn, id: str) -> Response:
    """Change what this server adds to what is signed."""
    form = await console.form()
    try:
        body = {
            "deployable_until": local_time(form.one("deployable_until"), console.zone),
            "on_track": form.has("on_track"),
            "platforms": form.one("platforms").replace(",", " ").split(),
            "min_kernel": form.one("min_kernel"),
            "min_agent": form.one("min_agent"),
            "memory_mib": form.number("memory_mib") or 0,
            "exploited": form.all("exploited"),
        }
        await console.api.call("PUT", below("content", id), body, headers={"if-match": form.one("etag")})
    except Refused as error:
        return await _content(console, id, error)
    return done(f"/catalogue/{id}", "saved")


@router.post("/catalogue/{id}/deploy")
async def deploy(console: SignedIn, id: str) -> Response:
    """Deploy it under a policy."""
    form = await console.form()
    try:
        made = await console.api.post(
            "/api/v1/deployments",
            _deployment(form, id, local_time(form.one("starts"), console.zone)),
            **{"idempotency-key": form.one("once")},
        )
    except Refused as error:
        if error.code == "exists":  # an approval rule may have been quicker
            return done(f"/deployments/{error.extra['deployment']}", "exists")
        return await _content(console, id, error)
    return done(f"/deployments/{made['id']}", "deployed")


def _deployment(form: Form, content: str, starts: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "content": content,
        "policy": form.one("policy"),
        "starts": starts,
        "expedite": form.has("expedite"),
        "excluded": form.all("excluded"),
    }
    if form.all("groups"):
        body["groups"] = form.all("groups")
    return body
