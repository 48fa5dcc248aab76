"""How the console speaks with the API: within the process, as the person at the browser, by the API's own routes.

Every request of a page goes through the whole application (authentication, scopes, validation, audit log), with the
person's cookie, address and CSRF token. So the console can do nothing that the person could not do by the API, and
whatever it does is recorded there in the same way (docs/adr/0085).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
from fastapi import Request

from midflight.errors import MidflightError

_log = logging.getLogger(__name__)
_PASSED_ON = ("cookie", "user-agent", "origin", "sec-fetch-site", "accept-language")
"""What of the browser's request the API sees: who it is, and from where it was sent."""

Query = Mapping[str, str | int | Sequence[str] | None]


class Refused(MidflightError):
    """The API refused: ``status``, ``code`` and further members as in its problem document, the text is its detail."""

    def __init__(self, status: int, code: str, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.extra = extra or {}


class Answer:
    """What the API answered: the JSON document (None without a body), and its headers."""

    def __init__(self, response: httpx2.Response) -> None:
        self.document: Any = response.json() if response.content else None
        self.headers = response.headers
        self.cookies = response.headers.get_list("set-cookie")

    @property
    def etag(self) -> str:
        """The version of what was shown, for If-Match."""
        return str(self.headers.get("etag", ""))


class Api:
    """The API as one person may use it."""

    def __init__(self, request: Request, csrf: str = "") -> None:
        self._request = request
        self._csrf = csrf

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. ``None`` in the query is left out.

        Raises:
            Refused: any answer from 400 on.
        """
        response = await self.raw(method, path, body, query, headers)
        if response.status_code >= 400:
            raise _refused(response)
        return Answer(response)

    async def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """The response as it is, whatever its status."""
        scope = self._request.scope
        passed = {name: value for name in _PASSED_ON if (value := self._request.headers.get(name)) is not None}
        if method != "GET":
            passed["x-csrf-token"] = self._csrf
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        target = path + ("?" + urlencode(given, doseq=True) if given else "")
        base = f"{scope.get('scheme', 'http')}://{self._request.headers.get('host', 'localhost')}"
        transport = httpx2.ASGITransport(app=self._request.app, client=scope.get("client") or ("", 0))
        async with httpx2.AsyncClient(transport=transport, base_url=base, trust_env=False) as client:
            content = {} if body is None else {"json": body}
            try:
                return await client.request(method, target, headers={**passed, **(headers or {})}, **content)
            except Exception:  # a fault of the API: nobody else would log it, as it does not leave this process
                _log.exception("%s %s failed", method, path)
                return httpx2.Response(500)

    async def get(self, path: str, **query: str | int | Sequence[str] | None) -> Any:
        """A document.

        Raises:
            Refused: any answer from 400 on.
        """
        return (await self.call("GET", path, query=query)).document

    async def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """Do something; returns what it answers.

        Raises:
            Refused: any answer from 400 on.
        """
        return (await self.call("POST", path, body, headers=headers)).document


def below(*parts: str) -> str:
    """A path below ``/api/v1`` of parts that may hold anything."""
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


def _refused(response: httpx2.Response) -> Refused:
    try:
        problem = response.json()
        return Refused(response.status_code, str(problem.get("title", "")), str(problem["detail"]), problem)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Refused(response.status_code, "error", "the server could not do this; its log says why")
