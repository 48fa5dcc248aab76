"""Signing in at an OpenID Connect provider: two redirects of the browser."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from midflight.server.access import accounts, audit, oidc
from midflight.server.access.authenticate import cookie_name, set_cookie
from midflight.server.access.oidc import OidcClient, OidcRefused, Provider
from midflight.server.api.deps import AppDatabase, AppSettings, source_of
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
def begin(request: Request) -> Response:
    """Send the browser to the provider."""
    try:
        begun = client_of(request).begin()
    except OidcRefused as error:
        raise Problem(502, "provider", str(error)) from None
    response = RedirectResponse(begun.url, 303)
    seconds = int(oidc.LIFETIME.total_seconds())
    response.set_cookie(
        _flow_cookie(request), begun.cookie, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax"
    )
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
    try:
        if error is not None or not code:
            raise OidcRefused(f"the provider refused: {error or 'no code'}")
        person = client.complete(request.cookies.get(_flow_cookie(request), ""), state, code, iss, now)
        with database.write() as session:
            if before := request.cookies.get(cookie_name(request)):
                accounts.sign_out(session, before)
            account = oidc.account_for(session, client.provider.issuer, person, now)
            made = accounts.open_session(session, account, source, agent, now, how=client.provider.issuer)
    except OidcRefused as refusal:
        if refusal.person:
            act = audit.Act("nobody", "", source, "login", refusal.person, "refused", {"why": str(refusal)})
            with database.write() as session:
                audit.record(session, act)
        raise Problem(403, "login-refused", str(refusal)) from None
    response = RedirectResponse(settings.public_url.rstrip("/") + "/", 303)
    set_cookie(request, response, made)
    response.delete_cookie(_flow_cookie(request), path="/", secure=True, httponly=True, samesite="lax")
    return response
