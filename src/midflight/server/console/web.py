"""What all pages share: who looks at it, the templates, the security headers, and errors as pages."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from midflight import __version__
from midflight.server.access.authenticate import to_provider, uses_provider
from midflight.server.api.problems import Problem
from midflight.server.console import display, static_files, times
from midflight.server.console.api import Api, Refused

MAX_FORM = 256 * 1024
_SECRETS = ("password", "current", "new", "again")
THEMES = ("auto", "light", "dark")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""Nothing inline, nothing from elsewhere, nothing evaluated, in nobody's frame (docs/adr/0086)."""


@dataclass(slots=True)
class Console:
    """A page being made: who looks, and how they like it."""

    request: Request
    api: Api
    name: str = ""
    kind: str = ""
    scopes: frozenset[str] = frozenset()
    csrf: str = ""
    theme: str = "auto"
    zone: tzinfo = UTC
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    sent: Form | None = None
    """The form that this request brought."""

    def again(self, name: str, value: Any) -> Any:
        """What a field shows: what was typed, when the form was refused; otherwise ``value``."""
        return self.sent.raw(name) if self.sent is not None and self.sent.has(name) else value

    def ticked(self, name: str, value: str, before: bool) -> bool:
        """Whether a box is ticked: as sent, when the form was refused and has such boxes; otherwise ``before``."""
        row = re.match(r"[a-z]+-\d+-", name)
        if self.sent is None or not (name in self.sent.all("boxes") or (row and self.sent.has(row[0] + "here"))):
            return before
        return value in self.sent.all(name)

    def typed(self, values: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """What somebody typed into a form that was refused; a field that is not in it is empty."""
        return defaultdict(str, values or {})

    def may(self, scope: str) -> bool:
        """Whether to show what needs the scope. The API decides; this only spares people buttons that it refuses."""
        return scope in self.scopes

    def page(self, template: str, status: int = 200, /, **values: Any) -> Response:
        """A page, or a fragment of one. With an ``error`` its fields show again what was sent."""
        if not values.get("error"):
            self.sent = None
        text = environment().get_template(template).render(console=self, **values)
        return HTMLResponse(text, status, {"Cache-Control": "no-store"})

    async def form(self) -> Form:
        """What was sent; its CSRF token goes along with whatever the API is asked to do.

        Raises:
            Refused: it is no form, or too large.
        """
        form = await read_form(self.request)
        self.api = Api(self.request, form.one("csrf"))
        self.sent = form
        return form


class Form:
    """A form as it was sent."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def one(self, name: str, default: str = "") -> str:
        """The (last) value of a field, without surrounding space."""
        return next((value.strip() for key, value in reversed(self.pairs) if key == name), default)

    def raw(self, name: str) -> str:
        """The (last) value of a field as it was typed: passwords may begin or end with spaces."""
        return next((value for key, value in reversed(self.pairs) if key == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a field that is not empty."""
        return [value.strip() for key, value in self.pairs if key == name and value.strip()]

    def has(self, name: str) -> bool:
        """Whether a box is ticked."""
        return any(key == name for key, _ in self.pairs)

    def number(self, name: str) -> float | int | None:
        """A number, None when the field is empty.

        Raises:
            Refused: it is none.
        """
        text = self.one(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise Refused(422, "invalid", f"{name}: {text[:40]!r} is no number") from None
        return int(value) if value.is_integer() else value


async def read_form(request: Request) -> Form:
    """The body of a form's request.

    Raises:
        Refused: it is no form, or too large.
    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Refused(415, "unsupported", "this is no form; use the console's own")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise Refused(413, "oversized", f"the form is larger than {MAX_FORM // 1024} KiB")
    try:
        return Form(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=2000))
    except ValueError:
        raise Refused(422, "invalid", "the form is not well formed; reload the page and send it again") from None


@cache
def environment() -> Environment:
    """The templates: everything escaped, nothing invisible, no name that is not there."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=display.visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "breakable": display.breakable,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "duration": display.duration,
        "id_and_name": lambda item: (item["id"], item["name"]),
        "in_unit": times.in_unit,
        "label": display.label,
        "label_pair": lambda word: (str(word), display.label(word)),
        "number": display.number,
        "owner": display.reason_owner,
        "reason": display.reason_text,
        "share": display.share,
        "size": display.size,
    }
    made.globals |= {
        "ago": display.ago_tag,
        "at": display.time_tag,
        "field_time": times.field_time,
        "moment": display.moment,
        "once": lambda: secrets.token_urlsafe(16),
        "static": static_files.url,
        "query": lambda **values: urlencode({k: v for k, v in values.items() if v not in (None, "")}),
        "path": lambda *parts: "/" + "/".join(quote(str(part), safe="") for part in parts),
        "version": __version__,
    }
    return made


def console_for(request: Request) -> Console:
    """A page for whoever it is, not signed in perhaps."""
    theme = request.cookies.get("mf_theme", "auto")
    return Console(
        request,
        Api(request),
        theme=theme if theme in THEMES else "auto",
        zone=display.zone_named(unquote(request.cookies.get("mf_zone", ""))),
    )


async def signed_in(request: Request) -> Console:
    """A page for somebody who is signed in.

    Raises:
        Refused: 401, nobody is (or nobody of whom the provider has said so lately, and it can be asked).
    """
    console = console_for(request)
    me = await console.api.get("/api/v1/session")
    if me["renew"] and request.method == "GET" and not _is_fragment(request) and uses_provider(request):
        raise Refused(401, "renew", "the provider is asked again")
    console.name, console.kind, console.scopes = me["name"], me["kind"], frozenset(me["scopes"])
    console.csrf = me["csrf"] or ""
    return console


def _is_fragment(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


SignedIn = Annotated[Console, Depends(signed_in)]


class ConsoleRoute(APIRoute):
    """A route of the console: its errors are pages, and every answer carries the security headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with both around it."""
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handler(request)
            except Refused as error:
                unsent = await unsent_page(request) if error.status == 401 else None
                response = unsent or error_page(request, error)
            except Problem as error:
                response = error_page(request, Refused(error.status, error.code, str(error)))
            except RequestValidationError as error:
                first = error.errors()[0] if error.errors() else {"loc": ("the address",), "msg": "is invalid"}
                where = "/".join(str(part) for part in first["loc"])
                response = error_page(request, Refused(422, "invalid", f"{where}: {first['msg']}"))
            for name, value in SECURITY_HEADERS.items():
                response.headers[name] = value
            return response

        return handled


async def unsent_page(request: Request) -> Response | None:
    """For a form of somebody whose login has ended: the form as it was sent, to send it again after signing in.

    None for anything else, and for passwords: they are not written into pages."""
    if request.method != "POST":
        return None
    try:
        form = await read_form(request)
    except Refused:
        return None
    fields = [(name, value) for name, value in form.pairs if name != "csrf"]
    if not fields or any(name in _SECRETS for name, _ in fields):
        return None
    return console_for(request).page("unsent.html", 401, path=request.url.path, fields=fields)


def error_page(request: Request, error: Refused) -> Response:
    """An error as a page. Who is not signed in is led to the login, and back from there."""
    console = console_for(request)
    fragment = _is_fragment(request)
    if error.status == 401:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        where = "/login" + (f"?{urlencode({'next': here})}" if request.method == "GET" and here != "/" else "")
        if uses_provider(request) and request.method == "GET":
            # the page asks the provider and comes back
            return Response(headers={"HX-Refresh": "true"}) if fragment else RedirectResponse(to_provider(here), 303)
        if fragment:
            return Response(status_code=200, headers={"HX-Redirect": "/login"})
        return RedirectResponse(where, 303)
    return console.page("fragment_error.html" if fragment else "error.html", error.status, error=error)


def new_router() -> APIRouter:
    """A router for pages: not part of the API's description."""
    return APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=HTMLResponse)


def done(path: str, what: str = "") -> Response:
    """After something was done: the page that shows it, which says so."""
    return RedirectResponse(path + (f"{'&' if '?' in path else '?'}done={quote(what)}" if what else ""), 303)


def digest(*shown: Any) -> str:
    """Stands for what a live part of a page shows: with the same one, nothing has changed."""
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]


def query_of(request: Request, *names: str) -> Mapping[str, str]:
    """Some parameters of the address; empty when not given."""
    return {name: request.query_params.get(name, "")[:500] for name in names}
