"""Headers that every answer carries, so that a browser takes it for nothing else than it is."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""For whatever says nothing itself: data, no page."""
_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
"""RFC 6797."""


class SafeHeaders:
    """Adds them, where the route has not set its own."""

    def __init__(self, app: ASGIApp, public_url: str) -> None:
        self._app = app
        parts = urlsplit(public_url)
        # it holds for all ports of a host, so "localhost" must not have it: other programs serve http there
        strict = parts.scheme == "https" and parts.hostname not in (None, "localhost", "127.0.0.1", "::1")
        self._added = (*_ALWAYS, _POLICY, *((_TRANSPORT,) if strict else ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and complete the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                given = {name.lower() for name, _value in headers}
                message["headers"] = [*headers, *(pair for pair in self._added if pair[0] not in given)]
            await send(message)

        await self._app(scope, receive, complete)
