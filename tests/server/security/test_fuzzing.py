"""Every operation of the OpenAPI document with what schemathesis makes up for it: no answer is a server error."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case

EXAMPLES = 4
"""For each operation. More: nightly, by hand."""


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_no_made_up_request_breaks_the_server(app: FastAPI, admin_token: str) -> None:
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app)
    headers = {"Authorization": f"Bearer {admin_token}"}
    seen: list[str] = []
    for result in schema.get_all_operations():
        operation = cast(Any, result).ok()
        seen.append(operation.label)

        @settings(
            max_examples=EXAMPLES, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case: Case[Any]) -> None:
            answer = case.call(headers=headers)
            assert answer.status_code < 500, f"{case.as_curl_command()}: {answer.text}"

        ask()
    assert len(seen) >= 30


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("text", ["\x00", "\ud800", "a" * 5000, "%00", "‮"])
def test_texts_that_a_database_cannot_hold_are_refused_or_mended(app: FastAPI, admin_token: str, text: str) -> None:
    headers = {"Authorization": f"Bearer {admin_token}", "content-type": "application/json"}
    with TestClient(app, headers=headers) as client:
        for url, body in (
            ("/api/v1/accounts", {"name": "eve", "full_name": text, "roles": [], "password": "correct horse battery"}),
            ("/api/v1/webhooks", {"name": text, "url": "https://93.184.215.14/"}),
            ("/api/v1/login", {"name": text, "password": text}),
        ):
            assert client.post(url, content=json.dumps(body)).status_code < 500, url
        for url in ("/api/v1/audit?target=", "/api/v1/audit?actor=", "/api/v1/accounts/", "/api/v1/webhooks/"):
            assert client.get(url + text.encode("utf-8", "surrogatepass").hex()).status_code < 500
            if text.isascii():
                assert client.get(url + quote(text, safe="")).status_code < 500, url
