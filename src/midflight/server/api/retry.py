"""A request whose transaction lost against another one (a deadlock, a serialization failure) is carried out again.

Nothing of it was kept, so it is as if it had come a moment later. This is done here alone, around the whole of a
request, as the transaction ends after the route has returned."""

from __future__ import annotations

import asyncio
import random

from sqlalchemy.exc import DBAPIError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midflight.server.store.database import lost_a_race

ATTEMPTS = 4
_LOST = "midflight.lost_a_race"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def note(scope: Scope, error: DBAPIError) -> None:
    """Say of a request, before it is answered, that it lost a race (if the error says so)."""
    scope[_LOST] = lost_a_race(error)


def lost(scope: Scope) -> bool:
    """Whether that was said."""
    return bool(scope.get(_LOST))


class RetryLost:
    """An ASGI application around another that answers with an error what lost a race, having called :func:`note`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, a few times at most."""
        if scope["type"] != "http" or scope["method"] in _SAFE:
            await self._app(scope, receive, send)
            return
        heard: list[Message] = []
        for attempt in range(1, ATTEMPTS + 1):
            if await self._lost(dict(scope), _replay(heard, receive), send, last=attempt == ATTEMPTS):
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # two that met must not meet again
            else:
                return

    async def _lost(self, scope: Scope, receive: Receive, send: Send, last: bool) -> bool:
        again = False

        async def answer(message: Message) -> None:
            nonlocal again
            if message["type"] == "http.response.start" and lost(scope) and not last:
                again = True
            if not again:
                await send(message)

        await self._app(scope, receive, answer)
        return again


def _replay(heard: list[Message], receive: Receive) -> Receive:
    """What was received before, and then what comes; kept for the next time. The body has its limit elsewhere."""
    position = 0

    async def hear() -> Message:
        nonlocal position
        if position == len(heard):
            heard.append(await receive())
        position += 1
        return heard[position - 1]

    return hear
