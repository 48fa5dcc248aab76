"""What devices ask for: to be enrolled, a new certificate, and (before the framework, for speed) to check in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import cast

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midflight.server import enrollment
from midflight.server.api.answers import respond
from midflight.server.api.problems import MEDIA_TYPE, problem_body, status_of
from midflight.server.checkin import pace
from midflight.server.checkin.receive import CheckIns, Sent
from midflight.server.keys import ServerKeys
from midflight.server.repository import newest_root
from midflight.server.settings import Settings
from midflight.server.store.database import UNAVAILABLE, Database
from midflight.trust.checkin import (
    CHECK_IN_PATH,
    ENROLL_PATH,
    MAX_CHECK_IN,
    RENEW_PATH,
    Renewal,
    decode_renewal,
    encode_renewal,
)
from midflight.trust.enrollment import MAX_MESSAGE, EnrollmentResponse, decode_request, encode_response
from midflight.trust.errors import TrustError

router = APIRouter(tags=["devices' own"], include_in_schema=False)
_JSON = "application/json"
_SMALL = 64 << 10
"""Bodies up to this are read even when their sender is sent away: a connection that is closed with something unread is
reset, and the answer may be lost with it."""
BODY_S = 30.0
"""The body of a check-in must be there by then."""
LARGE_AT_ONCE = 32
"""Check-ins with larger bodies that are read at a time."""


@router.post(ENROLL_PATH)
async def enroll(request: Request) -> Response:
    """Take a device in that has a token; answers with its certificate."""
    body = await read_body(request, MAX_MESSAGE)
    return Response(await run_in_threadpool(_enroll, request, body), 200, media_type=_JSON)


def _enroll(request: Request, body: bytes) -> bytes:
    settings = cast(Settings, request.app.state.settings)
    keys = cast(ServerKeys, request.app.state.keys)
    database = cast(Database, request.app.state.database)
    asked = decode_request(body)
    with database.write() as session:
        certificate = enrollment.enroll(session, asked, keys.authority, datetime.now(UTC))
    return encode_response(
        EnrollmentResponse(
            device=certificate.device,
            certificate=certificate.pem,
            authority=keys.authority.pem,
            root=newest_root(settings),
            repository_urls=(settings.public_url.rstrip("/") + "/repo",),
            interval_s=1,
        )
    )


@router.post(RENEW_PATH)
async def renew(request: Request) -> Response:
    """The next certificate of a device; the request is signed with the current one."""
    sent = await sent_by(request, MAX_MESSAGE)
    return Response(await run_in_threadpool(_renew, request, sent), 200, media_type=_JSON)


def _renew(request: Request, sent: Sent) -> bytes:
    keys = cast(ServerKeys, request.app.state.keys)
    checkins = cast(CheckIns, request.app.state.checkins)
    now = datetime.now(UTC)
    with checkins.database.write() as session:
        device = checkins.authenticated(session, sent, now)
        asked = decode_renewal(sent.body).certificate_request
        certificate = enrollment.renew(session, asked, device.certificate, keys.authority, now)
    return encode_renewal(Renewal(certificate=certificate.pem, authority=keys.authority.pem))


async def sent_by(request: Request, most: int) -> Sent:
    """A request as its device signed it, with a body of at most ``most`` bytes.

    Raises:
        TrustError: it is larger (reason ``oversized``).
    """
    return Sent(
        dict(request.headers),
        request.scope["raw_path"].decode("latin-1"),
        request.scope["query_string"].decode("latin-1"),
        await read_body(request, most),
    )


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, if it is not larger than ``most``.

    Raises:
        TrustError: it is (reason ``oversized``).
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TrustError(f"the message is larger than {most} bytes; it was not read", "oversized")
        parts.append(part)
    return b"".join(parts)


class _Crowded(Exception):
    """Too many send large bodies."""


class CheckInGate:
    """An ASGI application that answers check-ins itself and hands everything else on.

    Check-ins are nearly all that a server hears, so they skip the framework. At most ``checkin_limit`` of them are
    worked on or wait; who comes on top is sent away at once, unheard, to come again at a time that is drawn for it.
    """

    def __init__(self, app: ASGIApp, checkins: CheckIns, settings: Settings) -> None:
        self._app = app
        self._checkins = checkins
        self._limit = settings.checkin_limit
        self._mean_s = settings.checkin_interval
        self._running = 0
        self._large = 0
        self._random = random.Random()
        self._threads = ThreadPoolExecutor(max(2, min(8, settings.database_connections // 2)), "check-in")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CHECK_IN_PATH:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            await respond(send, 405, problem_body(405, "method-not-allowed", "check-ins are POSTed"), MEDIA_TYPE)
            return
        if self._running >= self._limit and _declared(scope) > _SMALL:
            await self._away(send, "overloaded", "the server has more to do than it can; come again")
            return
        try:
            # before it counts: who sends slowly, or never to the end, keeps nobody away
            async with asyncio.timeout(BODY_S):
                body = await self._body(receive)
        except TimeoutError:
            await respond(send, 408, problem_body(408, "slow", f"not sent within {BODY_S:g} s"), MEDIA_TYPE)
            return
        except _Crowded:
            await self._away(send, "overloaded", "too many send large messages at once; come again")
            return
        if body is None:
            await respond(send, 413, problem_body(413, "oversized", f"more than {MAX_CHECK_IN} bytes"), MEDIA_TYPE)
            return
        if self._running >= self._limit:
            await self._away(send, "overloaded", "the server has more to do than it can; come again")
            return
        self._running += 1
        try:
            await self._check_in(scope, body, send)
        finally:
            self._running -= 1

    async def _body(self, receive: Receive) -> bytes | None:
        """The body; None when it is too large. Large ones are taken from a few at a time: they take memory.

        Raises:
            _Crowded: too many send large ones already.
        """
        size, parts, large = 0, [], False
        try:
            async for part in _parts(receive):
                parts.append(part)
                size += len(part)
                if size > MAX_CHECK_IN:
                    return None
                if size > _SMALL and not large:
                    if self._large >= LARGE_AT_ONCE:
                        raise _Crowded
                    self._large += 1
                    large = True
            return b"".join(parts)
        finally:
            self._large -= large

    async def _check_in(self, scope: Scope, body: bytes, send: Send) -> None:
        sent = Sent(
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            scope["raw_path"].decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            body,
        )
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, self._checkins.handle, sent, datetime.now(UTC))
        except TrustError as error:
            status = status_of(error)
            await respond(send, status, problem_body(status, error.reason, str(error)), MEDIA_TYPE)
        except UNAVAILABLE:
            await self._away(send, "unavailable", "the database does not answer; come again")
        else:
            await respond(send, 200, answer, _JSON)

    async def _away(self, send: Send, code: str, text: str) -> None:
        after = pace.retry_after(self._mean_s, self._random)
        await respond(send, 503, problem_body(503, code, text), MEDIA_TYPE, [(b"retry-after", str(after).encode())])


def _declared(scope: Scope) -> int:
    """The length of the body by its header; a large number when there is none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 1 << 62


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message: Message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)
