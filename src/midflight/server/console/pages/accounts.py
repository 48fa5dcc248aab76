"""Accounts of people, and API tokens of programs."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from midflight.server.access.roles import PERSONAL, Role
from midflight.server.console.api import Refused, below
from midflight.server.console.web import Console, SignedIn, done, new_router

router = new_router()


@router.get("/accounts")
async def accounts(console: SignedIn) -> Response:
    """All accounts."""
    return await _accounts(console)


async def _accounts(console: Console, error: Refused | None = None, typed: Any = None) -> Response:
    items = (await console.api.get("/api/v1/accounts"))["items"]
    values = {"items": items, "roles": list(Role), "typed": console.typed(typed), "error": error}
    return console.page("accounts.html", error.status if error else 200, **values)


@router.post("/accounts")
async def make_account(console: SignedIn) -> Response:
    """Make a local account."""
    form = await console.form()
    typed = {"name": form.one("name"), "full_name": form.one("full_name"), "roles": form.all("roles")}
    try:
        await console.api.post("/api/v1/accounts", {**typed, "password": form.raw("password")})
    except Refused as error:
        return await _accounts(console, error, typed)
    return done("/accounts", "created")


@router.get("/accounts/{id}")
async def account(console: SignedIn, id: str) -> Response:
    """One account."""
    return await _account(console, id)


async def _account(console: Console, id: str, error: Refused | None = None) -> Response:
    found = await console.api.get(below("accounts", id))
    values = {"account": found, "roles": list(Role), "error": error}
    return console.page("accounts_one.html", error.status if error else 200, **values)


@router.post("/accounts/{id}")
async def change_account(console: SignedIn, id: str) -> Response:
    """Change name and roles."""
    form = await console.form()
    body = {"full_name": form.one("full_name"), "roles": form.all("roles")}
    return await _change(console, id, "PATCH", below("accounts", id), body, "saved")


@router.post("/accounts/{id}/disabled")
async def disable_account(console: SignedIn, id: str) -> Response:
    """Disable or enable."""
    off = (await console.form()).one("disabled") == "true"
    what = "disabled" if off else "enabled"
    return await _change(console, id, "PATCH", below("accounts", id), {"disabled": off}, what)


@router.post("/accounts/{id}/password")
async def reset_password(console: SignedIn, id: str) -> Response:
    """Set somebody's password."""
    form = await console.form()
    path = below("accounts", id, "password")
    return await _change(console, id, "PUT", path, {"new": form.raw("new")}, "password")


@router.post("/accounts/{id}/tokens/{token}/revoke")
async def revoke_of_account(console: SignedIn, id: str, token: str) -> Response:
    """Revoke somebody's token."""
    await console.form()
    return await _change(console, id, "DELETE", below("accounts", id, "tokens", token), None, "revoked")


async def _change(console: Console, id: str, method: str, path: str, body: Any, what: str) -> Response:
    try:
        await console.api.call(method, path, body)
    except Refused as error:
        return await _account(console, id, error)
    return done(f"/accounts/{id}", what)


@router.get("/tokens")
async def tokens(console: SignedIn) -> Response:
    """The own API tokens."""
    return await _tokens(console)


async def _tokens(console: Console, error: Refused | None = None, typed: Any = None, made: Any = None) -> Response:
    items = (await console.api.get("/api/v1/account/tokens"))["items"]
    offered = sorted(scope for scope in console.scopes if scope not in PERSONAL)
    values = {"items": items, "offered": offered, "typed": console.typed(typed), "made": made, "error": error}
    return console.page("tokens.html", error.status if error else 200, **values)


@router.post("/tokens")
async def make_token(console: SignedIn) -> Response:
    """Make a token; it is shown in the answer, and never again."""
    form = await console.form()
    typed = {"name": form.one("name"), "scopes": form.all("scopes"), "days": form.number("days") or 90}
    try:
        made = await console.api.post("/api/v1/account/tokens", typed)
    except Refused as error:
        return await _tokens(console, error, typed)
    return await _tokens(console, made=made)


@router.post("/tokens/{id}/revoke")
async def revoke_token(console: SignedIn, id: str) -> Response:
    """Revoke an own token."""
    await console.form()
    try:
        await console.api.call("DELETE", below("account", "tokens", id))
    except Refused as error:
        return await _tokens(console, error)
    return done("/tokens", "revoked")
