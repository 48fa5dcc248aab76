"""Signing in at an OpenID Connect provider: two redirects of the browser."""

from __future__ import annotations

import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from midflight.server.access import accounts, audit, oidc
from midflight.server.access.authenticate import cookie_name, local_path, mark_provider, set_cookie
from midflight.server.access.oidc import NoRoles, OidcClient, OidcRefused, Provider
from midflight.server.api.deps import AppDatabase, AppSettings, get_settings, source_of
from midflight.server.api.problems import Problem
from midflight.server.settings import Settings

router = APIRouter(tags=["accounts"])
_lock = threading.Lock()


def client_of(request: Request) -> OidcClient:
    """The client of this app's provider.

    Raises:
        Problem: 404, there is none in the settings.
    """
    with _lock:
        if not hasattr(request.app.state, "oidc"):
            settings = cast(Settings, request.app.state.settings)
            provider = Provider.of(settings)
            url = settings.public_url.rstrip("/") + oidc.CALLBACK_PATH
            request.app.state.oidc = OidcClient(provider, url) if provider else None
    client = cast(OidcClient | None, request.app.state.oidc)
    if client is None:
        raise Problem(404, "not-found", "no identity provider is set up; sign in with a local account")
    return client


def _flow_cookie(request: Request) -> str:
    return cookie_name(request) + "-oidc"


@router.get("/login/oidc", responses={303: {}})
def begin(request: Request, silent: bool = False, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    """Send the browser to the provider. ``silent``: without a page of the provider, as a page of ours does now and then
    that goes on at ``next``."""
    try:
        begun = client_of(request).begin(silent)
    except OidcRefused as error:
        if silent:
            return _not_silently(request, next)
        raise Problem(502, "provider", str(error)) from None
    response = RedirectResponse(begun.url, 303)
    seconds = int(oidc.LIFETIME.total_seconds())
    value = f"{begun.cookie}.{'silent' if silent else ''}.{urlsafe_b64encode(local_path(next).encode()).decode()}"
    response.set_cookie(
        _flow_cookie(request), value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax"
    )
    response.headers["cache-control"] = "no-store"
    return response


def _flow(request: Request) -> tuple[str, bool, str]:
    """The secret of the login that was begun, whether silently, and where to go on."""
    cookie, _, rest = request.cookies.get(_flow_cookie(request), "").partition(".")
    silent, _, next = rest.partition(".")
    try:
        return cookie, silent == "silent", local_path(urlsafe_b64decode(next).decode() or "/")
    except ValueError:
        return cookie, False, "/"


def _not_silently(request: Request, next: str) -> Response:
    """The page goes on, without asking the provider again; when its login ends the person signs in by hand."""
    response = RedirectResponse(get_settings(request).public_url.rstrip("/") + local_path(next), 303)
    mark_provider(request, response, False)
    response.headers["cache-control"] = "no-store"
    return response


@router.get(oidc.CALLBACK_PATH, responses={303: {}, 403: {}})
def complete(
    request: Request,
    database: AppDatabase,
    settings: AppSettings,
    state: Annotated[str, Query(max_length=200)] = "",
    code: Annotated[str, Query(max_length=4096)] = "",
    iss: Annotated[str | None, Query(max_length=1000)] = None,
    error: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """Where the provider sends the browser back to: signs it in, and leads it to the console."""
    client, now, source = client_of(request), datetime.now(UTC), source_of(request)
    agent = request.headers.get("user-agent", "")
    cookie, silent, next = _flow(request)
    before = request.cookies.get(cookie_name(request), "")
    try:
        if error is not None or not code:
            raise OidcRefused(f"the provider refused: {error or 'no code'}")
        person = client.complete(cookie, state, code, iss, now)
        with database.write() as session:
            account = oidc.account_for(session, client.provider.issuer, person, now)
            made = None
            if not (silent and accounts.confirm(session, account, before, now)):
                accounts.sign_out(session, before)
                made = accounts.open_session(session, account, source, agent, now, how=client.provider.issuer)
    except OidcRefused as refusal:
        with database.write() as session:
            if refusal.person:
                act = audit.Act("nobody", "", source, "login", refusal.person, "refused", {"why": str(refusal)})
                audit.record(session, act)
            if isinstance(refusal, NoRoles):
                oidc.take_roles(session, client.provider.issuer, refusal.subject)
        if silent:
            return _not_silently(request, next)
        raise Problem(403, "login-refused", str(refusal)) from None
    response = RedirectResponse(settings.public_url.rstrip("/") + next, 303)
    if made is not None:
        set_cookie(request, response, made)
    mark_provider(request, response, True)
    response.headers["cache-control"] = "no-store"
    response.delete_cookie(_flow_cookie(request), path="/", secure=True, httponly=True, samesite="lax")
    return response
