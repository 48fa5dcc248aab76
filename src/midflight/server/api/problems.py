"""Errors of the API as application/problem+json (RFC 9457): one clear line, and a code that programs can rely on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DataError, DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from midflight.errors import InputError, MidflightError
from midflight.server.api import retry
from midflight.server.outputs.kept import StillCounting
from midflight.server.store.database import DatabaseError, reason
from midflight.trust.errors import CertificateRefused, RequestRefused, TrustError

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)
_CODES = {400: "bad-request", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 405: "method-not-allowed"}


class Problem(MidflightError):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        code: stable name of the kind of error, for programs (``not-found``, ``version-conflict``, …).
        detail: one line for people: what, where, what to do next.
        headers: further response headers.
        extra: further members of the document.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.extra = extra


def not_found(what: str, id: str) -> Problem:
    """There is no such thing."""
    return Problem(404, "not-found", f"there is no {what} {id[:100]!r}")


def problem_response(status: int, code: str, detail: str, headers: Mapping[str, str], **extra: Any) -> Response:
    """The response that carries a problem."""
    return Response(problem_body(status, code, detail, **extra), status, dict(headers), MEDIA_TYPE)


def problem_body(status: int, code: str, detail: str, **extra: Any) -> bytes:
    """The document of a problem."""
    document = {"type": f"urn:midflight:problem:{code}", "title": code, "status": status, "detail": detail, **extra}
    return orjson.dumps(document)


def status_of(error: TrustError) -> int:
    """The HTTP status for something that is not believed."""
    if error.reason == "oversized":
        return 413
    return 401 if isinstance(error, RequestRefused | CertificateRefused) else 400


def install(app: FastAPI) -> None:
    """Let every error of the app leave as a problem."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> Response:
        return problem_response(error.status, error.code, str(error), error.headers, **error.extra)

    @app.exception_handler(TrustError)
    async def untrusted(_request: Request, error: TrustError) -> Response:
        return problem_response(status_of(error), error.reason, str(error), {})

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"where": "/".join(str(part) for part in each["loc"]), "what": str(each["msg"])} for each in error.errors()
        ]
        first = errors[0] if errors else {"where": "the request", "what": "is invalid"}
        return problem_response(422, "invalid", f"{first['where']}: {first['what']}", {}, errors=errors)

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, f"http-{error.status_code}")
        return problem_response(error.status_code, code, str(error.detail), error.headers or {})

    @app.exception_handler(InputError)
    async def bad_input(_request: Request, error: InputError) -> Response:
        return problem_response(422, "invalid", str(error), {})

    @app.exception_handler(DatabaseError)
    @app.exception_handler(PoolTimeout)
    async def unreachable(request: Request, error: Exception) -> Response:
        # what the person reads is all they need; whoever looks after the server needs the reason as well
        _log.warning("%s %s: the database does not answer: %s", request.method, request.url.path, reason(error))
        return problem_response(503, "unavailable", "the database does not answer; try again", {"Retry-After": "5"})

    @app.exception_handler(StillCounting)
    async def counting(_request: Request, error: StillCounting) -> Response:
        return problem_response(503, "still-counting", str(error), {"Retry-After": "5"})

    @app.exception_handler(DataError)
    async def unstorable(_request: Request, _error: DataError) -> Response:
        return problem_response(422, "invalid", "a text with NUL, or a number too large; send what can be kept", {})

    @app.exception_handler(OverflowError)
    async def too_large(request: Request, error: OverflowError) -> Response:
        _log.warning("%s %s: %s", request.method, request.url.path, error)
        return problem_response(422, "invalid", "a number or a time is too large to be reckoned with", {})

    @app.exception_handler(StatementError)
    async def unbindable(request: Request, error: StatementError) -> Response:
        # what a column refuses to take, before the database is asked
        if isinstance(error.orig, InputError):
            return await bad_input(request, error.orig)
        if isinstance(error.orig, OverflowError):
            return await too_large(request, error.orig)
        raise error

    @app.exception_handler(DBAPIError)
    async def database(request: Request, error: DBAPIError) -> Response:
        retry.note(request.scope, error)
        if retry.lost(request.scope) or error.connection_invalidated or type(error.orig).__name__ == "OperationalError":
            return await unreachable(request, error)
        raise error
