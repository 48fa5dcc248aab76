"""Addresses at which there is nothing: a page for people, a problem document for programs."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient


@pytest.mark.parametrize("path", ["/nothing", "/devices/a%2Fb", "/devices/x/y/z", "/<b>x</b>"])
def test_people_get_a_page(admin: TestClient, path: str) -> None:
    answer = admin.get(path)
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")
    assert "there is no page" in answer.text and "<b>x" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/nothing", 404),
        ("/api/v1/login", 405),
        ("/repo/nothing", 404),
        ("/device/v1/check-in", 405),
        ("/api", 404),
    ],
)
def test_programs_get_a_problem(admin: TestClient, path: str, status: int) -> None:
    answer = admin.get(path)
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
