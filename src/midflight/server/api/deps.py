"""What every route may ask for: the settings, a session, and who is asking."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import orjson
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from midflight.server.access import audit
from midflight.server.api.problems import Problem
from midflight.server.api.scopes import ALL_SCOPES, Scope
from midflight.server.outputs.kept import Kept
from midflight.server.settings import Settings
from midflight.server.store import meta, tallies
from midflight.server.store.database import Database

T = TypeVar("T")
LARGE = 2_000
"""Devices; of fewer, every answer is found anew."""
BOOTSTRAP_PREFIX = "mfb_"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BOOTSTRAP_HASH = "bootstrap_token_sha256"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks."""

    id: str
    """Stable identifier, written into events and the audit log: ``user:…``, ``token:…`` or ``bootstrap``."""
    name: str
    """For people."""
    scopes: frozenset[str]
    kind: str = "user"
    """``user``, ``token`` or ``bootstrap``."""
    person: str = ""
    """Who answers for it: ``user:…``, of a token its owner. Empty: nobody does (bootstrap)."""

    def may(self, scope: Scope | str) -> bool:
        """Whether the actor has the scope."""
        return scope in self.scopes


Authenticator = Callable[[Request, Session], Actor | None]
"""Looks at a request; None when it carries nothing that this one knows. Raises Problem(401) when what it carries is
wrong."""

AUTHENTICATORS: list[Authenticator] = []
"""Asked in order; the first that answers decides. midflight.server.access adds its own (sessions, API tokens)."""


def get_settings(request: Request) -> Settings:
    """The settings of the app."""
    return cast(Settings, request.app.state.settings)


def get_database(request: Request) -> Database:
    """The database of the app."""
    return cast(Database, request.app.state.database)


def get_session(request: Request, database: Annotated[Database, Depends(get_database)]) -> Iterator[Session]:
    """A session for the request: it writes (one transaction, committed before the answer leaves) unless the method is
    safe."""
    if request.method in SAFE_METHODS:
        with database.read() as session:
            yield session
    else:
        with database.write() as session:
            yield session


def kept(request: Request, session: Session, question: Hashable, find: Callable[[Session], T]) -> T:
    """The answer to a question that looks at every device: of a large fleet, one that may be some minutes old
    (midflight.server.outputs.kept).

    Args:
        question: what is asked, with all that the answer depends on besides the database.
        find: finds it, in the session that it gets.
    """
    if not is_large(session):
        return find(session)
    session.close()  # the connection is for others meanwhile
    return cast(Kept, request.app.state.kept).get(question, find)


def is_large(session: Session) -> bool:
    """Whether the fleet is so large that nobody should look at every device while a person waits."""
    return tallies.devices(session).total() > LARGE


# "function": ended when the route returns, before the response is sent. What was answered is in the database.
DbSession = Annotated[Session, Depends(get_session, scope="function")]
AppSettings = Annotated[Settings, Depends(get_settings)]
AppDatabase = Annotated[Database, Depends(get_database)]


def get_actor(request: Request, session: DbSession) -> Actor:
    """Who asks.

    Raises:
        Problem: 401, nobody that is known.
    """
    for authenticator in AUTHENTICATORS:
        if (actor := authenticator(request, session)) is not None:
            return actor
    raise Problem(
        401,
        "unauthenticated",
        "say who you are: Authorization: Bearer TOKEN, or log in",
        {"WWW-Authenticate": 'Bearer realm="midflight"'},
    )


CurrentActor = Annotated[Actor, Depends(get_actor)]


def require(scope: Scope) -> Any:
    """A parameter default for a route: the actor, who has the scope (403 otherwise).

    Use as ``actor: Annotated[Actor, require(Scope.DEVICES_READ)]``. The dependency keeps its scope in
    ``midflight_scope``, so that a test can tell for every route what it demands. It is also what writes the audit log:
    of every request that changes something, in the transaction of the change; and of every refused one."""

    async def check(request: Request, session: DbSession, actor: CurrentActor) -> Actor:
        changes = request.method not in SAFE_METHODS
        body = await request.body() if changes else b""
        if not actor.may(scope):
            if changes:
                await run_in_threadpool(_record_refusal, session, _act(request, actor, body, "refused"))
            raise Problem(403, "forbidden", f"{actor.name} lacks the scope {scope.value}; ask an administrator for it")
        if changes:
            audit.record(session, _act(request, actor, body, "done"))
        return actor

    check.midflight_scope = scope  # type: ignore[attr-defined]
    return Depends(check)


def _act(request: Request, actor: Actor, body: bytes, outcome: str) -> audit.Act:
    route = request.scope.get("route")
    detail: dict[str, Any] = {"name": actor.name}
    if body:
        try:
            detail["body"] = orjson.loads(body)
        except orjson.JSONDecodeError:
            detail["bytes"] = len(body)
    if request.url.query:
        detail["query"] = dict(request.query_params)
    return audit.Act(
        actor.kind,
        actor.id,
        source_of(request),
        f"{request.method} {getattr(route, 'path', request.url.path)}",
        target="/".join(str(value) for value in request.path_params.values()),
        outcome=outcome,
        detail=detail,
    )


def _record_refusal(session: Session, act: audit.Act) -> None:
    session.rollback()
    session.connection(execution_options={"writing": True})
    audit.record(session, act)
    session.commit()


def source_of(request: Request) -> str:
    """The address that the request came from."""
    return request.client.host if request.client else ""


def make_bootstrap_token(session: Session) -> str:
    """A new bootstrap token, which may do everything; it replaces the former. Only its hash is stored."""
    token = BOOTSTRAP_PREFIX + secrets.token_urlsafe(32)
    meta.write(session, _BOOTSTRAP_HASH, hashlib.sha256(token.encode()).hexdigest())
    return token


def drop_bootstrap_token(session: Session) -> None:
    """Let the bootstrap token be good for nothing from now on."""
    meta.write(session, _BOOTSTRAP_HASH, None)


def bearer_token(request: Request) -> str | None:
    """The token of the Authorization header, if there is one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _bootstrap(request: Request, session: Session) -> Actor | None:
    token = bearer_token(request)
    if token is None or not token.startswith(BOOTSTRAP_PREFIX):
        return None
    wanted = meta.read(session, _BOOTSTRAP_HASH) or ""
    if not hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), wanted):
        raise Problem(
            401, "unauthenticated", "this bootstrap token is not valid; it ends when there is an administrator"
        )
    return Actor("bootstrap", "bootstrap administrator", frozenset(ALL_SCOPES), "bootstrap")


AUTHENTICATORS.append(_bootstrap)
