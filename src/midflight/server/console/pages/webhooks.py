"""Webhooks: where events go, and whether they arrive."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from midflight.server.console.api import Refused, below
from midflight.server.console.web import Console, Form, SignedIn, done, new_router

router = new_router()
FORMATS = (
    ("cloudevents", "CloudEvents, signed after Standard Webhooks"),
    ("ocsf", "OCSF security events, for a SIEM"),
    ("caep", "CAEP: changes of compliance, for an identity provider"),
)


@router.get("/webhooks")
async def webhooks(console: SignedIn) -> Response:
    """All webhooks."""
    return await _webhooks(console)


async def _webhooks(console: Console, error: Refused | None = None, typed: Any = None, made: Any = None) -> Response:
    items = (await console.api.get("/api/v1/webhooks"))["items"]
    values = {"items": items, "formats": FORMATS, "typed": console.typed(typed), "made": made, "error": error}
    return console.page("webhooks.html", error.status if error else 200, **values)


def _kinds(form: Form) -> list[str]:
    return form.one("kinds").replace(",", " ").split() or ["*"]


@router.post("/webhooks")
async def make_webhook(console: SignedIn) -> Response:
    """Make a webhook; its secret is shown in the answer."""
    form = await console.form()
    typed = {
        "name": form.one("name"),
        "url": form.one("url"),
        "format": form.one("format", "cloudevents"),
        "kinds": _kinds(form),
        "audience": form.one("audience"),
    }
    try:
        made = await console.api.post("/api/v1/webhooks", typed)
    except Refused as error:
        return await _webhooks(console, error, typed)
    return await _webhooks(console, made=made)


@router.get("/webhooks/{id}")
async def webhook(console: SignedIn, id: str) -> Response:
    """One webhook and its deliveries."""
    return await _webhook(console, id)


async def _webhook(console: Console, id: str, error: Refused | None = None, made: Any = None) -> Response:
    hook = await console.api.get(below("webhooks", id))
    deliveries = (await console.api.get(below("webhooks", id, "deliveries"), limit=50))["items"]
    values = {"hook": hook, "deliveries": deliveries, "made": made, "error": error}
    return console.page("webhooks_one.html", error.status if error else 200, **values)


@router.post("/webhooks/{id}")
async def change_webhook(console: SignedIn, id: str) -> Response:
    """Change name, address and kinds."""
    form = await console.form()
    body = {"name": form.one("name"), "url": form.one("url"), "kinds": _kinds(form)}
    return await _act(console, id, "PATCH", "", body, "saved")


@router.post("/webhooks/{id}/{what}")
async def act(console: SignedIn, id: str, what: str) -> Response:
    """Enable, disable, test, rotate or delete."""
    await console.form()
    if what == "rotate":
        try:
            made = await console.api.post(below("webhooks", id, "rotate"))
        except Refused as error:
            return await _webhook(console, id, error)
        return await _webhook(console, id, made=made)
    if what == "test":
        return await _act(console, id, "POST", "test", None, "sent")
    if what == "delete":
        await console.api.call("DELETE", below("webhooks", id))
        return done("/webhooks", "deleted")
    if what in ("enable", "disable"):
        return await _act(console, id, "PATCH", "", {"enabled": what == "enable"}, f"{what}d")
    raise Refused(404, "not-found", "there is no such act")


async def _act(console: Console, id: str, method: str, under: str, body: Any, what: str) -> Response:
    try:
        await console.api.call(method, below("webhooks", id, *([under] if under else [])), body)
    except Refused as error:
        return await _webhook(console, id, error)
    return done(f"/webhooks/{id}", what)
