"""POST twice, done once: a request with an Idempotency-Key is carried out once, and answered the same again.

(After draft-ietf-httpapi-idempotency-key-header.) The key counts for one credential, and for two days.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, cast

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from sqlalchemy import text

from midflight.server.api.problems import Problem
from midflight.server.store.base import to_micros
from midflight.server.store.database import Database
from midflight.server.store.policies import IdempotencyKey

HEADER = "idempotency-key"
_CLAIM = text(
    "INSERT INTO idempotency_key (actor, key, request, status, body, at) VALUES (:actor, :key, :request, 0, :body, :at)"
    " ON CONFLICT (actor, key) DO NOTHING RETURNING key"
)


class IdempotentRoute(APIRoute):
    """A route whose POST is carried out once for each key. Use as ``APIRouter(route_class=IdempotentRoute)``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the look at the key around it."""
        handler = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if request.method != "POST" or key is None:
                return await handler(request)
            if not 8 <= len(key) <= 200 or not key.isprintable():
                raise Problem(
                    422, "invalid", "header/Idempotency-Key: give 8 to 200 printable characters, new for each act"
                )
            database = cast(Database, request.app.state.database)
            said = request.headers.get("authorization") or request.headers.get("cookie") or ""
            actor = hashlib.sha256(said.encode()).hexdigest()
            body = await request.body()
            digest = hashlib.sha256(f"{request.method} {request.url.path}\0".encode() + body).hexdigest()
            before = await run_in_threadpool(_claim, database, actor, key, digest)
            if before is not None:
                return before
            answered: list[Response] = []

            async def finish(kind: type[BaseException] | None, _error: object, _trace: object) -> None:
                if kind is None and answered:
                    await run_in_threadpool(_keep, database, actor, key, answered[0])
                else:
                    await run_in_threadpool(_forget, database, actor, key)

            # FastAPI's stack of what ends before the answer leaves: entered before the session, so left after its
            # commit
            request.scope["fastapi_function_astack"].push_async_exit(finish)
            answered.append(await handler(request))
            return answered[0]

        return once


def _claim(database: Database, actor: str, key: str, digest: str) -> Response | None:
    now = datetime.now(UTC)
    with database.write() as session:
        values = {"actor": actor, "key": key, "request": digest, "body": b"", "at": to_micros(now)}
        if session.execute(_CLAIM, values).first() is not None:
            return None
        row = session.get(IdempotencyKey, (actor, key))
        if row is None or row.request != digest:
            raise Problem(
                422, "idempotency-reused", "this Idempotency-Key was used for another request; make a new one"
            )
        if row.status == 0:
            raise Problem(
                409,
                "idempotency-unknown",
                "the first request with this key is not finished, or was cut off; look whether it was done",
                {"Retry-After": "5"},
            )
        return Response(row.body, row.status, {"Idempotency-Replayed": "true"}, "application/json")


def _forget(database: Database, actor: str, key: str) -> None:
    with database.write() as session:
        row = session.get(IdempotencyKey, (actor, key))
        if row is not None and row.status == 0:
            session.delete(row)


def _keep(database: Database, actor: str, key: str, response: Response) -> None:
    with database.write() as session:
        row = session.get(IdempotencyKey, (actor, key))
        if row is not None:
            row.status, row.body = response.status_code, bytes(response.body)
