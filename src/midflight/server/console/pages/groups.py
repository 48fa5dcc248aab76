"""Groups of devices, and the invitations with which devices come in."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import everything
from midflight.server.console.pages.devices import read_tags
from midflight.server.console.web import Console, Form, SignedIn, digest, done, new_router, query_of
from midflight.server.keys import tls_pin
from midflight.server.settings import Settings

router = new_router()


@router.get("/groups")
async def groups(console: SignedIn) -> Response:
    """All groups."""
    return await _groups(console)


async def _groups(console: Console, error: Refused | None = None, typed: Any = None) -> Response:
    items = await everything(console, "groups")
    values = {"items": items, "typed": console.typed(typed), "error": error}
    return console.page("groups.html", error.status if error else 200, **values)


def _typed(form: Form) -> dict[str, str]:
    return {name: form.one(name) for name in ("name", "description", "rule")}


@router.post("/groups")
async def make_group(console: SignedIn) -> Response:
    """Make a group."""
    form = await console.form()
    typed = _typed(form)
    try:
        made = await console.api.post("/api/v1/groups", typed)
    except Refused as error:
        return await _groups(console, error, typed)
    return done(f"/groups/{made['id']}", "created")


@router.get("/groups/{id}")
async def group(console: SignedIn, request: Request, id: str) -> Response:
    """One group and its devices."""
    return await _group(console, id, query_of(request, "after")["after"])


async def _group(
    console: Console, id: str, after: str = "", error: Refused | None = None, typed: Any = None
) -> Response:
    answer = await console.api.call("GET", below("groups", id))
    shown = {**answer.document, **(typed or {})}
    values = {"group": shown, "etag": answer.etag, "error": error, **await _members(console, id, after)}
    return console.page("groups_one.html", error.status if error else 200, **values)


async def _members(console: Console, id: str, after: str) -> dict[str, Any]:
    members = await console.api.get("/api/v1/devices", group=id, limit=50, after=after)
    return {"members": members, "after": after, "seen": digest(members)}


@router.get("/groups/{id}/members")
async def members(console: SignedIn, request: Request, id: str) -> Response:
    """The devices of a group, which a rule finds a moment after it was changed; 204 when they are those of ``seen``."""
    values = await _members(console, id, query_of(request, "after")["after"])
    if request.query_params.get("seen") == values["seen"]:
        return Response(status_code=204)
    group = await console.api.get(below("groups", id))
    return console.page("groups_members.html", group=group, **values)


@router.post("/groups/{id}")
async def edit_group(console: SignedIn, id: str) -> Response:
    """Change a group."""
    form = await console.form()
    typed = _typed(form)
    try:
        await console.api.call("PUT", below("groups", id), typed, headers={"if-match": form.one("etag")})
    except Refused as error:
        return await _group(console, id, error=error, typed=typed)
    return done(f"/groups/{id}", "saved")


@router.post("/groups/{id}/delete")
async def delete_group(console: SignedIn, id: str) -> Response:
    """Take a group away."""
    form = await console.form()
    try:
        await console.api.call("DELETE", below("groups", id), headers={"if-match": form.one("etag")})
    except Refused as error:
        return await _group(console, id, error=error)
    return done("/groups", "deleted")


@router.post("/groups/{id}/members")
async def add_members(console: SignedIn, id: str) -> Response:
    """List devices, by id or host name."""
    form = await console.form()
    try:
        ids = [await _device_id(console, word) for word in form.one("devices").replace(",", " ").split()]
        if not ids:
            raise Refused(422, "invalid", "name at least one device, by its host name or id")
        await console.api.post(below("groups", id, "members"), {"devices": ids})
    except Refused as error:
        return await _group(console, id, error=error)
    return done(f"/groups/{id}", "saved")


async def _device_id(console: Console, word: str) -> str:
    """The id of a device that is named by its id or host name."""
    found = (await console.api.get("/api/v1/devices", hostname=word, limit=10))["items"]
    exact = [each["id"] for each in found if each["hostname"] == word]
    if len(exact) > 1:
        raise Refused(422, "ambiguous", f"several devices have the host name {word[:60]!r}; give the id of the one")
    return str(exact[0]) if exact else word


@router.post("/groups/{id}/members/{device}/remove")
async def remove_member(console: SignedIn, id: str, device: str) -> Response:
    """Take a device off the list."""
    await console.form()
    try:
        await console.api.call("DELETE", below("groups", id, "members", device))
    except Refused as error:
        return await _group(console, id, error=error)
    return done(f"/groups/{id}", "saved")


@router.get("/enrollment")
async def enrollment(console: SignedIn) -> Response:
    """Invitations."""
    return await _enrollment(console)


async def _enrollment(console: Console, error: Refused | None = None, typed: Any = None, made: Any = None) -> Response:
    items = (await console.api.get("/api/v1/enrollment-tokens", limit=100))["items"]
    settings: Settings = console.request.app.state.settings
    values = {"items": items, "typed": console.typed(typed), "made": made, "error": error}
    values |= {"url": settings.public_url, "pin": str(tls_pin(settings) or "")}
    return console.page("enrollment.html", error.status if error else 200, **values)


@router.post("/enrollment")
async def invite(console: SignedIn) -> Response:
    """Make an invitation; its token is shown in the answer."""
    form = await console.form()
    typed = {name: form.one(name) for name in ("label", "uses", "hours", "tags")}
    try:
        body = {
            "label": typed["label"],
            "uses": form.number("uses") or 1,
            "hours": form.number("hours") or 24,
            "tags": read_tags(typed["tags"]),
        }
        made = await console.api.post("/api/v1/enrollment-tokens", body)
    except Refused as error:
        return await _enrollment(console, error, typed)
    return await _enrollment(console, made=made)


@router.post("/enrollment/{id}/revoke")
async def revoke(console: SignedIn, id: str) -> Response:
    """Let an invitation be good for nothing any more."""
    await console.form()
    try:
        await console.api.call("DELETE", below("enrollment-tokens", id))
    except Refused as error:
        return await _enrollment(console, error)
    return done("/enrollment", "revoked")
