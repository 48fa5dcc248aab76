"""Every route, asked by everybody. The routes come from the app itself: one that is new and has no rule fails here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from httpx2 import Response

from midflight.server.access import accounts, apitokens
from midflight.server.access.credentials import csrf_of
from midflight.server.access.roles import GRANTS, PERSONAL, Role
from midflight.server.api.scopes import ALL_SCOPES, Scope
from midflight.server.store.database import Database

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/api/openapi.json"),
    ("GET", "/.well-known/jwks.json"),
    ("POST", "/api/v1/login"),
    ("GET", "/login/oidc"),
    ("GET", "/login/oidc/callback"),
}
"""No authentication at all, on purpose."""
SIGNED = {
    ("POST", "/device/v1/enroll"),
    ("POST", "/device/v1/renew"),
    ("POST", "/device/v1/compliance-token"),
}
"""For devices: authenticated by a token or a signature in the message itself."""
ANYBODY_KNOWN = {("GET", "/api/v1/session"), ("POST", "/api/v1/logout")}
"""For whoever is signed in or shows a token."""
STATIC = ("/repo", "/static")
"""Public files."""
PAGES = "midflight.server.console."
"""Where the console's pages are from. They have no scopes of their own: each asks the routes here, as the person that
looks at it."""
OPEN_PAGES = {
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("POST", "/preferences"),
    ("GET", "/{path:path}"),
}


@dataclass(frozen=True)
class Rule:
    """A route and what it demands."""

    method: str
    path: str
    scopes: frozenset[Scope]
    page: bool = False
    """Of the console."""

    def ask(self, client: TestClient) -> Response:
        """Send a request that names nothing that exists."""
        url = re.sub(r"\{[^}]*\}", "none", self.path)
        body: dict[str, str] | None = {} if self.method in ("POST", "PUT", "PATCH") else None
        return client.request(self.method, url, json=body, follow_redirects=False)


def rules(app: FastAPI) -> Iterator[Rule]:
    """All routes."""
    for context in iter_route_contexts(app.routes):
        dependant = getattr(context, "dependant", None)
        scopes = frozenset(_scopes(dependant)) if isinstance(dependant, Dependant) else frozenset()
        for method in sorted((context.methods or {"GET"}) - {"HEAD", "OPTIONS"}):
            page = getattr(getattr(context, "endpoint", None), "__module__", "").startswith(PAGES)
            yield Rule(method, context.path or "", scopes, page)


def _scopes(dependant: Dependant) -> Iterator[Scope]:
    scope = getattr(dependant.call, "midflight_scope", None)
    if scope is not None:
        yield scope
    for inner in dependant.dependencies:
        yield from _scopes(inner)


def guarded(app: FastAPI) -> list[Rule]:
    return [rule for rule in rules(app) if rule.scopes]


def refused(answer: Response) -> bool:
    """Whether it was refused for want of a scope."""
    return answer.status_code == 403 and answer.json()["title"] == "forbidden"


def test_every_route_has_a_rule(app: FastAPI) -> None:
    known = PUBLIC | SIGNED | ANYBODY_KNOWN
    without = [
        (rule.method, rule.path)
        for rule in rules(app)
        if not rule.scopes
        and not rule.page
        and (rule.method, rule.path) not in known
        and not rule.path.startswith(STATIC)
    ]
    assert without == [], "give them require(Scope.…), or name them here with the reason"
    assert all((rule.method, rule.path) not in known for rule in guarded(app))
    assert len(guarded(app)) >= 25


def test_a_page_shows_nobody_anything_and_does_nothing_by_itself(app: FastAPI, client: TestClient) -> None:
    pages = [rule for rule in rules(app) if rule.page and not rule.path.startswith(STATIC)]
    assert len(pages) >= 60 and not any(rule.scopes for rule in pages)
    for rule in pages:
        if (rule.method, rule.path) not in OPEN_PAGES:
            answer = rule.ask(client)
            assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login"), rule
            assert answer.content == b""


def test_no_route_that_changes_something_is_content_with_a_scope_to_read(app: FastAPI) -> None:
    wrong = [
        (rule.method, rule.path)
        for rule in guarded(app)
        if rule.method != "GET"
        and not any(scope is Scope.SELF or scope.value.endswith(":write") for scope in rule.scopes)
    ]
    assert wrong == []


def test_every_answer_tells_browsers_to_take_it_for_data(client: TestClient) -> None:
    for path in ("/healthz", "/api/openapi.json", "/api/v1/session", "/api/nowhere", "/.well-known/jwks.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert (headers["x-frame-options"], headers["referrer-policy"]) == ("DENY", "no-referrer")
        assert "strict-transport-security" not in headers, "not for all that this machine serves on localhost"


def test_a_huge_body_is_refused_unread(client: TestClient) -> None:
    assert client.post("/api/v1/login", content=b"x" * (2 << 20)).status_code == 413


def test_nobody_gets_nothing(app: FastAPI, client: TestClient) -> None:
    for rule in guarded(app):
        answer = rule.ask(client)
        assert (answer.status_code, answer.json()["title"]) == (401, "unauthenticated"), rule
    for method, path in ANYBODY_KNOWN:
        assert client.request(method, path).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer mft_" + "x" * 49},
        {"authorization": "Bearer mfb_guess"},
        {"authorization": "Bearer "},
        {"authorization": "Basic cm9vdDpyb290"},
        {"cookie": "__Host-midflight=guess"},
        {"cookie": "__Host-midflight="},
    ],
)
def test_made_up_credentials_are_nobody_s(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/api/v1/session", headers=headers).status_code == 401


@pytest.mark.parametrize("role", Role)
def test_a_role_opens_what_it_grants_and_nothing_else(role: Role, app: FastAPI, database: Database) -> None:
    now = datetime.now(UTC)
    with database.write() as session:
        account = accounts.create(session, role, [role], now)
        cookie = accounts.open_session(session, account, "", "", now, how="test").cookie
    headers = {"x-csrf-token": csrf_of(cookie), "cookie": f"__Host-midflight={cookie}"}
    with TestClient(app, base_url="https://localhost:8443", headers=headers) as client:
        for rule in guarded(app):
            answer = rule.ask(client)
            assert answer.status_code != 401, rule
            assert refused(answer) == (not rule.scopes <= GRANTS[role]), (rule, answer.text)


def test_a_token_opens_what_its_scopes_say_and_nothing_else(app: FastAPI, database: Database) -> None:
    now, secrets = datetime.now(UTC), {}
    with database.write() as session:
        account = accounts.create(session, "root", ["admin"], now)
        for scope in ALL_SCOPES - PERSONAL:
            for kind, scopes in (("with", {scope}), ("without", ALL_SCOPES - PERSONAL - {scope})):
                made = apitokens.create(session, account, kind, scopes, timedelta(days=1), now)
                secrets[scope, kind] = made.secret
        anything = apitokens.create(session, account, "all", ALL_SCOPES - PERSONAL, timedelta(days=1), now).secret
    with TestClient(app) as client:
        for rule in guarded(app):
            for scope in rule.scopes:
                if scope in PERSONAL:
                    client.headers["authorization"] = f"Bearer {anything}"
                    assert refused(rule.ask(client)), (rule, "no token is a person")
                    continue
                client.headers["authorization"] = f"Bearer {secrets[scope, 'without']}"
                assert refused(rule.ask(client)), rule
                client.headers["authorization"] = f"Bearer {secrets[scope, 'with']}"
                assert refused(rule.ask(client)) == (len(rule.scopes) > 1), rule
