"""Signing in: cookies, CSRF, expiry, throttling; what tokens may and may not; as a browser or a program sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import select, text, update

from midflight.server.access import accounts, passwords, throttle
from midflight.server.access.tables import LoginSession
from midflight.server.store.database import Database

PASSWORD = "correct horse battery"
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real algorithm with little memory: these tests are not about its price."""
    from argon2 import PasswordHasher

    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    passwords._nobody.cache_clear()


@pytest.fixture
def make(database: Database) -> Callable[..., str]:
    """Makes accounts; returns the id."""

    def make(name: str, *roles: str) -> str:
        with database.write() as session:
            return accounts.create(session, name, roles or ("admin",), datetime.now(UTC), password=PASSWORD).id

    return make


@pytest.fixture
def browser(app: FastAPI) -> Iterator[Callable[[], TestClient]]:
    """Makes browsers: clients that keep cookies, over https."""
    yield lambda: TestClient(app, base_url="https://localhost:8443")


def sign_in(client: TestClient, name: str, password: str = PASSWORD) -> Response:
    answer = client.post("/api/v1/login", json={"name": name, "password": password})
    if answer.status_code == 204:
        client.headers["x-csrf-token"] = answer.headers["x-csrf-token"]
    return answer


@sqlite
def test_the_cookie_is_bound_to_host_https_and_out_of_reach_of_scripts(
    make: Callable[..., str], browser: Callable[[], TestClient]
) -> None:
    make("ada")
    answer = sign_in(browser(), "Ada")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-midflight=")
    assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}


def test_a_login_is_a_new_session_and_signing_out_ends_it(
    make: Callable[..., str], browser: Callable[[], TestClient]
) -> None:
    make("ada")
    client = browser()
    sign_in(client, "ada")
    first = client.cookies["__Host-midflight"]
    sign_in(client, "ada")
    second = client.cookies["__Host-midflight"]
    assert first != second
    assert client.get("/api/v1/session").json()["name"] == "ada"
    assert browser().get("/api/v1/session", headers={"cookie": f"__Host-midflight={first}"}).status_code == 401
    assert client.post("/api/v1/logout").status_code == 204
    assert browser().get("/api/v1/session", headers={"cookie": f"__Host-midflight={second}"}).status_code == 401


@sqlite
def test_changes_need_the_csrf_token_of_this_session(
    make: Callable[..., str], browser: Callable[[], TestClient]
) -> None:
    make("ada")
    one, other = browser(), browser()
    sign_in(one, "ada")
    sign_in(other, "ada")
    body = {"name": "ci", "scopes": ["devices:read"]}
    for headers in ({"x-csrf-token": ""}, {"x-csrf-token": other.headers["x-csrf-token"]}):
        assert one.post("/api/v1/account/tokens", json=body, headers=headers).json()["title"] == "csrf"
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert one.post("/api/v1/account/tokens", json=body, headers=headers).json()["title"] == "cross-site"
    assert one.post("/api/v1/account/tokens", json=body).status_code == 201


@sqlite
@pytest.mark.parametrize(("field", "age"), [("used", accounts.IDLE), ("ends", timedelta())])
def test_sessions_end_when_idle_and_in_any_case_after_half_a_day(
    field: str, age: timedelta, make: Callable[..., str], browser: Callable[[], TestClient], database: Database
) -> None:
    make("ada")
    client = browser()
    sign_in(client, "ada")
    with database.write() as session:
        login = session.scalars(select(LoginSession)).one()
        assert login.ends - login.created == accounts.LONGEST
        session.execute(update(LoginSession).values({field: datetime.now(UTC) - age}))
    assert client.get("/api/v1/session").status_code == 401


@sqlite
def test_a_new_password_ends_all_other_logins(make: Callable[..., str], browser: Callable[[], TestClient]) -> None:
    make("ada")
    one, other = browser(), browser()
    sign_in(one, "ada")
    sign_in(other, "ada")
    new = "another long phrase"
    assert one.put("/api/v1/account/password", json={"current": "wrong wrong wrong", "new": new}).status_code == 403
    assert one.put("/api/v1/account/password", json={"current": PASSWORD, "new": "ada12345!!!!"}).status_code == 422
    assert one.put("/api/v1/account/password", json={"current": PASSWORD, "new": new}).status_code == 204
    assert one.get("/api/v1/session").status_code == 200
    assert other.get("/api/v1/session").status_code == 401
    assert sign_in(browser(), "ada").status_code == 401
    assert sign_in(browser(), "ada", new).status_code == 204


def test_guessing_is_slowed_down_and_an_unknown_name_looks_like_a_wrong_password(
    make: Callable[..., str], browser: Callable[[], TestClient]
) -> None:
    make("ada")
    client = browser()
    known, unknown = sign_in(client, "ada", "wrong"), sign_in(client, "nobody", "wrong")
    assert known.status_code == unknown.status_code == 401
    assert known.json() == unknown.json()
    for _ in range(throttle.ACCOUNT.free - 1):
        assert sign_in(client, "ada", "wrong").status_code == 401
    blocked = sign_in(client, "ada")
    assert blocked.status_code == 429
    assert int(blocked.headers["retry-after"]) in range(1, 6)


def test_waits_double_are_bounded_and_are_forgotten_after_a_day() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    waits = [throttle.wait(throttle.Failures(n, now), throttle.ACCOUNT, now).total_seconds() for n in range(16)]
    assert waits == [0] * 5 + [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    assert throttle.wait(throttle.Failures(9, now), throttle.ACCOUNT, now + timedelta(days=1)) == timedelta()
    assert throttle.failed(throttle.Failures(9, now), now + timedelta(days=1)).count == 1


def token_of(client: TestClient, *scopes: str) -> dict[str, Any]:
    answer = client.post("/api/v1/account/tokens", json={"name": "ci", "scopes": list(scopes)})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


@sqlite
def test_a_token_does_what_its_scopes_and_its_owner_allow(
    make: Callable[..., str], browser: Callable[[], TestClient], database: Database
) -> None:
    make("root")
    id = make("ada", "admin")
    client, program = browser(), browser()
    sign_in(client, "ada")
    made = token_of(client, "audit:read", "accounts:read")
    program.headers["authorization"] = f"Bearer {made['secret']}"
    assert program.get("/api/v1/audit").status_code == 200
    assert program.get("/api/v1/webhooks").status_code in (403, 404)
    assert program.get("/api/v1/account/tokens").status_code == 403
    for scope in ("accounts:write", "approvals:write", "self"):
        answer = client.post("/api/v1/account/tokens", json={"name": "x", "scopes": [scope]})
        assert (answer.status_code, "person" in answer.json()["detail"]) == (422, True)
    assert client.patch(f"/api/v1/accounts/{id}", json={"roles": ["reader"]}).status_code == 200
    assert program.get("/api/v1/audit").status_code == 403, "the owner lost the role, so the token lost the scope"
    with database.read() as session:
        assert made["secret"] not in str(session.execute(text("SELECT * FROM api_token")).all())
    assert client.delete(f"/api/v1/account/tokens/{made['id']}").status_code == 204
    assert program.get("/api/v1/session").status_code == 401
    assert "secret" not in client.get("/api/v1/account/tokens").text


@sqlite
def test_the_tokens_of_a_disabled_account_are_dead(make: Callable[..., str], browser: Callable[[], TestClient]) -> None:
    make("root")
    id = make("ada", "operator")
    root, ada, program = browser(), browser(), browser()
    sign_in(root, "root")
    sign_in(ada, "ada")
    program.headers["authorization"] = f"Bearer {token_of(ada, 'devices:read')['secret']}"
    assert program.get("/api/v1/session").status_code == 200
    assert root.patch(f"/api/v1/accounts/{id}", json={"disabled": True}).status_code == 200
    assert program.get("/api/v1/session").status_code == ada.get("/api/v1/session").status_code == 401
    assert sign_in(browser(), "ada").status_code == 401


@sqlite
def test_the_only_administrator_cannot_go(make: Callable[..., str], browser: Callable[[], TestClient]) -> None:
    id = make("root")
    client = browser()
    sign_in(client, "root")
    for change in ({"disabled": True}, {"roles": ["reader"]}):
        answer = client.patch(f"/api/v1/accounts/{id}", json=change)
        assert (answer.status_code, "only administrator" in answer.json()["detail"]) == (422, True)


@sqlite
def test_the_bootstrap_token_makes_the_first_administrator_and_ends(
    admin: TestClient, browser: Callable[[], TestClient]
) -> None:
    body = {"name": "root", "roles": ["admin"], "password": PASSWORD}
    assert admin.get("/api/v1/account/tokens").json()["title"] == "no-account"
    assert admin.post("/api/v1/accounts", json={**body, "name": "eve", "roles": ["reader"]}).status_code == 201
    assert admin.post("/api/v1/accounts", json=body).status_code == 201
    assert admin.get("/api/v1/accounts").status_code == 401
    client = browser()
    sign_in(client, "root")
    assert [item["name"] for item in client.get("/api/v1/accounts").json()["items"]] == ["eve", "root"]


def test_what_administrators_do_is_written_down_and_what_is_refused_too(
    make: Callable[..., str], browser: Callable[[], TestClient]
) -> None:
    make("root")
    make("eve", "reader")
    root, eve = browser(), browser()
    sign_in(root, "root")
    sign_in(eve, "eve")
    new = {"name": "bob", "roles": ["operator"], "password": PASSWORD}
    assert eve.post("/api/v1/accounts", json=new).status_code == 403
    assert root.post("/api/v1/accounts", json=new).status_code == 201
    assert root.post("/api/v1/accounts", json=new).status_code == 422
    log = root.get("/api/v1/audit").json()["items"]
    told = [(item["action"], item["outcome"], "bob" in item["detail"]) for item in log]
    assert told == [
        ("POST /api/v1/accounts", "done", True),
        ("POST /api/v1/accounts", "refused", True),
        ("login", "done", False),
        ("login", "done", False),
    ]
    assert PASSWORD not in str(log)
    assert eve.get("/api/v1/audit").status_code == 403
    head = root.get("/api/v1/audit/head").json()
    assert (head["sequence"], head["hash"]) == (log[0]["sequence"], log[0]["hash"])
