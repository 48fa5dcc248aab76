"""Signing in and out, how the pages look, the own account; and what the pages load."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request, Response
from fastapi.responses import RedirectResponse

from midflight.server.access.authenticate import drop_cookie, local_path
from midflight.server.console import static_files
from midflight.server.console.api import Answer, Api, Refused
from midflight.server.console.web import THEMES, Console, SignedIn, console_for, done, new_router, read_form
from midflight.server.settings import Settings

router = new_router()
_YEAR = 365 * 86400


@router.get("/static/{name:path}")
def static(request: Request, name: Annotated[str, Path(max_length=200)]) -> Response:
    """A file that pages load. Its address changes with its content, so it may be kept for ever."""
    file = static_files.files().get(name)
    if file is None:
        raise Refused(404, "not-found", "there is no such file")
    keep = "public, max-age=31536000, immutable" if request.query_params.get("v") == file.digest else "no-cache"
    return Response(file.content, 200, {"Cache-Control": keep}, file.media_type)


def _login(console: Console, next: str, name: str = "", error: Refused | None = None) -> Response:
    settings: Settings = console.request.app.state.settings
    single = "/login/oidc" if "oidc" in settings.extra else ""
    status = error.status if error else 200
    return console.page("login.html", status, next=next, name=name, error=error, single_sign_on=single)


@router.get("/login")
async def login_page(request: Request) -> Response:
    """The form to sign in with."""
    return _login(console_for(request), local_path(request.query_params.get("next", "/")))


@router.post("/login")
async def login(request: Request) -> Response:
    """Sign in: the API's login, its cookie handed on to the browser."""
    form = await read_form(request)
    next = local_path(form.one("next", "/"))
    credentials = {"name": form.one("name"), "password": form.raw("password")}
    try:
        answer = await Api(request).call("POST", "/api/v1/login", credentials)
    except Refused as error:
        return _login(console_for(request), next, form.one("name"), error)
    return _with_cookies(RedirectResponse(next, 303), answer)


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Sign out."""
    console = console_for(request)
    await console.form()
    try:
        answer = await console.api.call("POST", "/api/v1/logout")
    except Refused as error:
        if error.status != 401:
            raise
        response = done("/login", "ended")
        drop_cookie(request, response)
        return response
    return _with_cookies(done("/login", "ended"), answer)


@router.post("/preferences")
async def preferences(request: Request) -> Response:
    """Choose light or dark; kept in the browser alone."""
    form = await read_form(request)
    response = RedirectResponse(local_path(form.one("back", "/")), 303)
    theme = form.one("theme", "auto")
    secure = request.url.scheme == "https"
    if theme in THEMES:
        response.set_cookie("mf_theme", theme, max_age=_YEAR, path="/", samesite="lax", secure=secure, httponly=True)
    return response


@router.get("/account")
async def account(console: SignedIn) -> Response:
    """The own account."""
    return await _account(console)


@router.post("/account/password")
async def change_password(console: SignedIn) -> Response:
    """Change the own password."""
    form = await console.form()
    try:
        if form.raw("new") != form.raw("again"):
            raise Refused(422, "invalid", "the new password was not typed the same twice")
        body = {"current": form.raw("current"), "new": form.raw("new")}
        answer = await console.api.call("PUT", "/api/v1/account/password", body)
    except Refused as error:
        return await _account(console, error)
    return _with_cookies(done("/account", "password"), answer)


async def _account(console: Console, error: Refused | None = None) -> Response:
    values: dict[str, Any] = {"scopes": sorted(console.scopes), "error": error}
    return console.page("account.html", error.status if error else 200, **values)


def _with_cookies(response: Response, answer: Answer) -> Response:
    for cookie in answer.cookies:
        response.headers.append("set-cookie", cookie)
    return response
