"""Requests to the API take turns: never more of them are worked on than there are threads for (docs/adr/0091).

A request that has a database connection goes from thread to thread (who asks, the route, the commit). If all threads
could be taken by others that wait for a connection, or for what it has locked, none of them would ever get on.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midflight.server.api.answers import respond
from midflight.server.api.problems import MEDIA_TYPE, problem_body

AT_ONCE = 32
"""Of the 40 threads that anyio has; the others do what ends by itself: background work, files."""
PATIENCE_S = 30.0
"""For so long a request waits for its turn."""
_PATHS = ("/api/", "/auth/", "/device/", "/login/oidc", "/metrics", "/readyz")
"""What works on the database. The console's pages do not: they ask the API, and must not wait for their own turn."""


def takes_a_turn(path: str) -> bool:
    """Whether requests to this path wait for their turn."""
    return path.startswith(_PATHS)


class Turns:
    """An ASGI application that lets requests through in the order in which they came, once their body is there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._free = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on when it is its turn; 503 when that takes too long."""
        if scope["type"] != "http" or not takes_a_turn(scope["path"]):
            await self._app(scope, receive, send)
            return
        whole = await _whole(receive)  # before it has a turn: who sends slowly holds up nobody
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._free.acquire()
        except TimeoutError:
            body = problem_body(503, "overloaded", "the server has more to do than it can; try again")
            await respond(send, 503, body, MEDIA_TYPE, [(b"retry-after", b"5")])
            return
        has_turn = True

        async def answer(message: Message) -> None:
            nonlocal has_turn
            if has_turn and message["type"] == "http.response.start":
                has_turn = False
                self._free.release()  # what is left is sending: who reads slowly holds up nobody either
            await send(message)

        try:
            await self._app(scope, whole, answer)
        finally:
            if has_turn:
                self._free.release()


async def _whole(receive: Receive) -> Receive:
    """Read the request to its end; gives what then says the same again. An error (too large) is raised there too."""
    heard: list[Message | Exception] = []
    more = True
    while more:
        try:
            message = await receive()
        except Exception as error:
            heard.append(error)
            break
        heard.append(message)
        more = message["type"] == "http.request" and message.get("more_body", False)
    again = iter(heard)

    async def replay() -> Message:
        said = next(again, None)
        if isinstance(said, Exception):
            raise said
        return said if said is not None else await receive()

    return replay
