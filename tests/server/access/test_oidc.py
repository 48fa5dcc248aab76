"""Signing in at an OpenID Connect provider, a real one: what works, and every answer that must not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from joserfc.jwk import RSAKey

from midflight.errors import InputError
from midflight.server.access.oidc import CALLBACK_PATH, Provider
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
