"""Recognises who sends a request: an API token, or a browser that is signed in.

Importing this module adds both to the authenticators of the API.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

from fastapi import Request, Response
from sqlalchemy.orm import Session

from midflight.server.access import accounts, apitokens
from midflight.server.access.accounts import SignedIn
from midflight.server.access.credentials import TOKEN_PREFIX, csrf_of, same
from midflight.server.access.roles import scopes_of
from midflight.server.access.tables import ApiToken, LoginSession
from midflight.server.api.deps import AUTHENTICATORS, SAFE_METHODS, Actor, bearer_token, get_database, get_settings
from midflight.server.api.problems import Problem

CSRF_HEADER = "x-csrf-token"
_REMEMBERED_S = 30 * 86_400
_touching = threading.Lock()


def cookie_name(request: Request) -> str:
    """The name of the session cookie: behind https with the prefix that binds it to this host alone (RFC 6265bis)."""
    return "__Host-midflight" if get_settings(request).public_url.startswith("https:") else "midflight"


def set_cookie(request: Request, response: Response, made: SignedIn) -> None:
    """Give the browser its session."""
    response.set_cookie(cookie_name(request), made.cookie, path="/", secure=True, httponly=True, samesite="lax")
    response.headers["cache-control"] = "no-store"


def drop_cookie(request: Request, response: Response) -> None:
    """Take the browser's session away."""
    response.delete_cookie(cookie_name(request), path="/", secure=True, httponly=True, samesite="lax")
    mark_provider(request, response, False)


def mark_provider(request: Request, response: Response, used: bool) -> None:
    """Let the browser remember (or forget) that its person signs in at the provider, so that it is asked again without
    a click. It proves nothing."""
    name = cookie_name(request) + "-sso"
    if used:
        response.set_cookie(name, "1", max_age=_REMEMBERED_S, path="/", secure=True, httponly=True, samesite="lax")
    elif name in request.cookies:
        response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def uses_provider(request: Request) -> bool:
    """Whether it does."""
    return cookie_name(request) + "-sso" in request.cookies


def to_provider(here: str) -> str:
    """Where a page sends the browser so that the provider is asked again, and from there back."""
    return "/login/oidc?" + urlencode({"silent": "true", "next": here})


def local_path(text: str) -> str:
    """A path on this server, for going back after a login; the overview for anything else."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    plain = text.startswith("/") and not text.startswith("//") and text.isprintable() and "\\" not in text
    return text if plain and not parts.scheme and not parts.netloc else "/"


def same_site(request: Request) -> None:
    """Refuse what another site makes a browser send (Fetch Metadata; Origin where a browser has none).

    Raises:
        Problem: 403.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    own = {get_settings(request).public_url.rstrip("/"), f"{request.url.scheme}://{request.url.netloc}"}
    if site in ("cross-site", "same-site") or (site is None and origin is not None and origin not in own):
        raise Problem(403, "cross-site", "the request comes from another site; open the console itself")


def by_token(request: Request, session: Session) -> Actor | None:
    """Who shows an API token.

    Raises:
        Problem: 401, the token is not (or no longer) good.
    """
    secret = bearer_token(request)
    if secret is None or not secret.startswith(TOKEN_PREFIX):
        return None
    now = datetime.now(UTC)
    holder = apitokens.holder(session, secret, now)
    if holder is None:
        raise Problem(401, "unauthenticated", "this token is unknown, over or revoked; make a new one")
    if apitokens.stale(holder.token, now):
        _touch(request, session, lambda writing: _used(writing, ApiToken, holder.token.id, now))
    name = f"{holder.account.name}'s token {holder.token.name}"
    return Actor(f"token:{holder.token.id}", name, holder.scopes, "token", f"user:{holder.account.id}")


def by_cookie(request: Request, session: Session) -> Actor | None:
    """Who is signed in. A request that changes something must also carry the session's CSRF token.

    Raises:
        Problem: 403, the CSRF token is missing or of another session.
    """
    cookie = request.cookies.get(cookie_name(request))
    if not cookie:
        return None
    now = datetime.now(UTC)
    found = accounts.of_cookie(session, cookie, now)
    if found is None:
        return None
    account, login = found
    if request.method not in SAFE_METHODS:
        same_site(request)
        if not same(request.headers.get(CSRF_HEADER, ""), csrf_of(cookie)):
            raise Problem(403, "csrf", f"the {CSRF_HEADER} header is missing or of another login; reload the page")
    if accounts.stale(login, now):
        _touch(request, session, lambda writing: _used(writing, LoginSession, login.hash, now))
    name, scopes = account.name, scopes_of(accounts.roles_of(account))
    return Actor(f"user:{account.id}", name, scopes, "user", f"user:{account.id}")


def _used(session: Session, table: type[ApiToken | LoginSession], key: str, now: datetime) -> None:
    row = session.get(table, key)
    if isinstance(row, ApiToken | LoginSession):
        row.used = now


def _touch(request: Request, session: Session, write: Callable[[Session], None]) -> None:
    """In the request's own transaction when it writes; reading ones get a short one of its own.

    That takes a second connection, so one request of the process at a time does it: many that come at once, each with
    a connection in hand and waiting for another, would wait for each other. Who does not get to it comes again.
    """
    if request.method not in SAFE_METHODS:
        write(session)
    elif _touching.acquire(blocking=False):
        try:
            with get_database(request).write() as writing:
                write(writing)
        finally:
            _touching.release()


AUTHENTICATORS.extend((by_token, by_cookie))
