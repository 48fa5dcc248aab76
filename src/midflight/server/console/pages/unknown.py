"""Addresses of the console at which there is nothing: a page says so. Those of programs are answered as ever."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.routing import Match
from starlette.types import Scope

from midflight.server.console.api import Refused
from midflight.server.console.web import ConsoleRoute

OF_PROGRAMS = ("/.well-known", "/api", "/auth", "/device/", "/healthz", "/metrics", "/readyz", "/repo", "/static")


class _Elsewhere(ConsoleRoute):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Everything that no other route has, but for addresses of programs."""
        if scope["type"] == "http" and scope["path"].startswith(OF_PROGRAMS):
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=_Elsewhere, include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/{path:path}")
async def unknown(request: Request) -> Response:
    """No page."""
    raise Refused(404, "not-found", f"there is no page {request.url.path[:80]}; the menu leads to those that there are")
