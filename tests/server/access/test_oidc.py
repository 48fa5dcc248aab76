"""Signing in at an OpenID Connect provider, a real one: what works, and every answer that must not."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from sqlalchemy import select

from midflight.errors import InputError
from midflight.server.access.oidc import CALLBACK_PATH, Provider
from midflight.server.access.tables import LoginSession
from midflight.server.api.app import create_app
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from tests.server.access.provider import CLIENT, SECRET, OpenIdProvider

PUBLIC = "https://localhost:8443"
pytestmark = [
    pytest.mark.parametrize("database", ["sqlite"], indirect=True),
    pytest.mark.filterwarnings("ignore:The 'grant' parameter"),
]
LOG = [("login", "refused"), ("login", "done"), ("login", "done")]


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    """A provider on a loopback port."""
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # the provider of the test has no TLS
    made = OpenIdProvider(PUBLIC + CALLBACK_PATH)
    yield made
    made.close()
    del os.environ["AUTHLIB_INSECURE_TRANSPORT"]


@pytest.fixture
def browser(provider: OpenIdProvider, settings: Settings, database: Database, tmp_path: Path) -> Iterator[TestClient]:
    """A browser at a server that knows the provider."""
    (tmp_path / "oidc.secret").write_text(SECRET + "\n")
    settings.extra["oidc"] = {  # type: ignore[index]
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret_file": "oidc.secret",
        "roles": {"fleet": "operator", "bosses": ["admin", "approver"]},
    }
    with TestClient(create_app(settings, database), base_url=PUBLIC, follow_redirects=False) as client:
        yield client


def to_provider(browser: TestClient) -> str:
    """Where the browser is sent back to, after the person signed in at the provider."""
    url = browser.get("/login/oidc").headers["location"]
    answer = httpx2.get(url)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def come_back(browser: TestClient, location: str) -> Response:
    return browser.get(location.removeprefix(PUBLIC))


def test_a_person_of_the_provider_signs_in_with_the_roles_of_their_groups(
    browser: TestClient, provider: OpenIdProvider, admin: TestClient
) -> None:
    answer = come_back(browser, to_provider(browser))
    assert (answer.status_code, answer.headers["location"]) == (303, PUBLIC + "/")
    shown = browser.get("/api/v1/session").json()
    assert (shown["name"], "deployments:write" in shown["scopes"], "accounts:read" in shown["scopes"]) == (
        "jane",
        True,
        False,
    )
    provider.person = {**provider.person, "groups": ["bosses", "others"], "name": "Jane Doe"}
    come_back(browser, to_provider(browser))
    (account,) = browser.get("/api/v1/accounts").json()["items"]
    assert (account["roles"], account["full_name"]) == (["approver", "admin"], "Jane Doe")
    assert account["provider"] == provider.issuer
    assert browser.post("/api/v1/login", json={"name": "jane", "password": ""}).status_code == 401
    log = admin.get("/api/v1/audit").json()["items"]
    assert [(item["action"], item["outcome"]) for item in log] == LOG


def test_a_request_to_the_provider_has_pkce_state_and_nonce_and_a_new_one_each_time(browser: TestClient) -> None:
    first, second = (parse_qs(urlsplit(browser.get("/login/oidc").headers["location"]).query) for _ in range(2))
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) >= 43
        assert first[name] != second[name]
    assert (first["code_challenge_method"], first["response_type"]) == (["S256"], ["code"])


def test_an_answer_is_good_once_and_in_the_browser_that_asked(
    browser: TestClient, settings: Settings, database: Database
) -> None:
    location = to_provider(browser)
    with TestClient(create_app(settings, database), base_url=PUBLIC, follow_redirects=False) as other:
        assert come_back(other, location).json()["title"] == "login-refused"
        other.get("/login/oidc")
        assert come_back(other, location).status_code == 403, "a login of somebody else is not taken over"
    cookies = dict(browser.cookies)
    assert come_back(browser, location).status_code == 303
    browser.cookies.update(cookies)
    assert come_back(browser, location).status_code == 403, "the code is used up"


def test_who_is_in_no_group_does_not_enter(browser: TestClient, provider: OpenIdProvider) -> None:
    for groups in ([], ["strangers"], "strangers", {"fleet": 1}, None):
        provider.person = {**provider.person, "groups": groups}
        answer = come_back(browser, to_provider(browser))
        assert (answer.status_code, "none of the groups" in answer.json()["detail"]) == (403, True)
    assert browser.get("/api/v1/session").status_code == 401


@pytest.mark.parametrize(
    "twist",
    [
        {"aud": ["another client"]},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"iss": "https://other.example"},
        {"nonce": "of another login"},
        {"exp": int(time.time()) - 3600},
        {"iat": int(time.time()) + 3600},
    ],
)
def test_id_tokens_for_others_or_out_of_time_are_refused(
    browser: TestClient, provider: OpenIdProvider, twist: dict[str, Any]
) -> None:
    provider.twist = twist
    assert come_back(browser, to_provider(browser)).status_code == 403
    assert browser.get("/api/v1/session").status_code == 401


def _unsigned(claims: dict[str, Any], _provider: OpenIdProvider) -> str:
    return f"{_base64(json.dumps({'alg': 'none'}).encode())}.{_base64(json.dumps(claims).encode())}."


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _by_the_secret(claims: dict[str, Any], _provider: OpenIdProvider) -> str:
    return str(jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET)))


def _by_the_public_key(claims: dict[str, Any], provider: OpenIdProvider) -> str:
    """The known confusion: an RSA key, which everybody has, taken for a secret."""
    text = f"{_base64(json.dumps({'alg': 'HS256'}).encode())}.{_base64(json.dumps(claims).encode())}"
    return f"{text}.{_base64(hmac.digest(provider.key.as_pem(private=False), text.encode(), 'sha256'))}"


def _by_a_key_that_it_brings(claims: dict[str, Any], provider: OpenIdProvider) -> str:
    own = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
    return str(jwt.encode({"alg": "RS256", "kid": "one", "jwk": own.as_dict(private=False)}, claims, own))


@pytest.mark.parametrize("lie", [_unsigned, _by_the_secret, _by_the_public_key, _by_a_key_that_it_brings])
def test_id_tokens_that_are_signed_by_nobody_or_by_anybody_are_refused(
    lie: Callable[[dict[str, Any], OpenIdProvider], str], browser: TestClient, provider: OpenIdProvider
) -> None:
    provider.forge = lambda claims: lie(claims, provider)
    answer = come_back(browser, to_provider(browser))
    assert (answer.status_code, "not signed by the provider" in answer.text) == (403, True)
    assert browser.get("/api/v1/session").status_code == 401


def test_an_answer_that_names_another_issuer_is_refused(browser: TestClient) -> None:
    location = to_provider(browser)
    assert come_back(browser, location + "&iss=https%3A%2F%2Fevil.example").status_code == 403
    assert browser.get("/api/v1/session").status_code == 401


def test_a_provider_that_calls_itself_otherwise_is_not_asked(browser: TestClient, provider: OpenIdProvider) -> None:
    provider.called = "https://evil.example"
    answer = browser.get("/login/oidc")
    assert (answer.status_code, "says that it is" in answer.text) == (502, True)


def test_keys_may_change_but_must_be_the_provider_s(browser: TestClient, provider: OpenIdProvider) -> None:
    assert come_back(browser, to_provider(browser)).status_code == 303
    provider.key = RSAKey.generate_key(2048, {"kid": "two"}, private=True)
    assert come_back(browser, to_provider(browser)).status_code == 403
    provider.published = provider.key
    assert come_back(browser, to_provider(browser)).status_code == 303


def test_a_disabled_account_and_a_taken_name_stay_outside(
    browser: TestClient, provider: OpenIdProvider, admin: TestClient
) -> None:
    come_back(browser, to_provider(browser))
    (account,) = admin.get("/api/v1/accounts").json()["items"]
    assert admin.patch(f"/api/v1/accounts/{account['id']}", json={"disabled": True}).status_code == 200
    assert "disabled" in come_back(browser, to_provider(browser)).json()["detail"]
    provider.person = {**provider.person, "sub": "another person"}
    answer = come_back(browser, to_provider(browser))
    assert (answer.status_code, "there is an account" in answer.json()["detail"]) == (403, True)


def age(database: Database, left: timedelta) -> None:
    """Let the login end so soon."""
    with database.write() as session:
        for login in session.scalars(select(LoginSession)):
            login.ends = datetime.now(UTC) + left


def follow(browser: TestClient, answer: Response) -> Response:
    """As a browser does, by way of the provider, to the page that is shown in the end."""
    for _ in range(6):
        if answer.status_code not in (302, 303):
            return answer
        location = urljoin(PUBLIC, answer.headers["location"])
        answer = httpx2.get(location) if not location.startswith(PUBLIC) else come_back(browser, location)
    raise AssertionError("led in a circle")


def test_the_provider_is_asked_again_while_somebody_works_and_the_login_goes_on(
    browser: TestClient, provider: OpenIdProvider, database: Database
) -> None:
    come_back(browser, to_provider(browser))
    csrf = browser.get("/api/v1/session").json()["csrf"]
    assert browser.get("/groups?after=x").status_code != 303, "nobody is asked again at once"
    assert provider.prompts == [None]
    age(database, timedelta(minutes=15))
    shown = follow(browser, browser.get("/devices?hostname=web"))
    assert (shown.status_code, str(shown.url)) == (200, PUBLIC + "/devices?hostname=web")
    assert provider.prompts == [None, "none"]
    me = browser.get("/api/v1/session").json()
    assert (me["csrf"], me["renew"]) == (csrf, False), "the forms of other pages stay good"
    age(database, timedelta(seconds=-1))
    assert follow(browser, browser.get("/groups")).status_code == 200, "over, but the provider knows the person"
    live = browser.get("/overview/live", headers={"hx-request": "true"})
    assert live.status_code == 200
    age(database, timedelta(seconds=-1))
    live = browser.get("/overview/live", headers={"hx-request": "true"})
    assert live.headers["hx-refresh"] == "true", "the page asks, not a part of it"


def test_a_role_that_the_provider_takes_away_is_gone_within_half_an_hour(
    browser: TestClient, provider: OpenIdProvider, database: Database, admin: TestClient
) -> None:
    come_back(browser, to_provider(browser))
    csrf = browser.get("/api/v1/session").json()["csrf"]
    made = browser.post(
        "/api/v1/account/tokens",
        json={"name": "ci", "scopes": ["devices:read"], "days": 30},
        headers={"x-csrf-token": csrf},
    )
    assert made.status_code == 201, made.text
    bearer = {"authorization": f"Bearer {made.json()['secret']}"}
    with database.read() as session:
        ends = session.scalars(select(LoginSession.ends)).one()
    assert ends - datetime.now(UTC) <= timedelta(minutes=30)
    provider.person = {**provider.person, "groups": ["former"]}
    assert admin.get("/api/v1/devices", headers=bearer).status_code == 200
    age(database, timedelta(minutes=15))
    shown = follow(browser, browser.get("/devices"))
    assert "/login?" in str(shown.url)
    assert browser.get("/api/v1/session").status_code == 401
    assert admin.get("/api/v1/devices", headers=bearer).status_code in (401, 403), "nor do its tokens open anything"
    refused = [item for item in admin.get("/api/v1/audit").json()["items"] if item["outcome"] == "refused"]
    assert [item["target"] for item in refused if item["action"] == "login"] == ["Jane"]


@pytest.mark.parametrize("why", ["signed out", "unreachable"])
def test_a_page_is_shown_all_the_same_until_the_login_ends_when_the_provider_says_nothing(
    why: str, browser: TestClient, provider: OpenIdProvider, database: Database
) -> None:
    come_back(browser, to_provider(browser))
    age(database, timedelta(minutes=15))
    provider.signed_out = True
    if why == "unreachable":
        provider.close()
        browser.app.state.oidc._read_at = float("-inf")  # type: ignore[attr-defined]
    shown = follow(browser, browser.get("/devices"))
    assert (shown.status_code, str(shown.url)) == (200, PUBLIC + "/devices")
    assert browser.get("/devices").status_code == 200, "and is not asked again and again"
    age(database, timedelta(seconds=-1))
    assert "/login?next=%2Fdevices" in browser.get("/devices").headers["location"]


def test_who_signs_out_is_not_signed_in_again_by_itself(browser: TestClient, provider: OpenIdProvider) -> None:
    come_back(browser, to_provider(browser))
    csrf = browser.get("/api/v1/session").json()["csrf"]
    assert browser.post("/api/v1/logout", headers={"x-csrf-token": csrf}).status_code == 204
    assert browser.get("/devices").headers["location"].startswith("/login?")
    assert provider.prompts == [None]


@pytest.mark.parametrize(
    "next", ["https://evil.example/", "//evil.example", "/\\\\evil.example", "javascript:alert(1)"]
)
def test_no_login_leads_to_another_site(browser: TestClient, next: str) -> None:
    answer = browser.get("/login/oidc", params={"next": next, "silent": "true"})
    back = come_back(browser, httpx2.get(answer.headers["location"]).headers["location"])
    assert (back.status_code, back.headers["location"]) == (303, PUBLIC + "/")


def test_settings_that_would_let_anybody_in_are_refused(settings: Settings) -> None:
    good = {"issuer": "https://id.example", "client_id": "x", "roles": {"a": "admin"}}
    changes: tuple[dict[str, Any], ...] = (
        {"issuer": "http://id.example"},
        {"roles": {}},
        {"roles": {"a": "god"}},
        {"client_id": ""},
        {"x": "y"},
    )
    for change in changes:
        settings.extra["oidc"] = {**good, **change}  # type: ignore[index]
        with pytest.raises(InputError):
            Provider.of(settings)
