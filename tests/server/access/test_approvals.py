"""Two-person approval, as the persons see it: who asked cannot approve, and who approved is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from midflight.server.access import accounts
from midflight.server.access.credentials import csrf_of
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.work.tasks import Context
from midflight.server.work.upkeep import take_catalogue
from tests.server.device import NGINX
from tests.server.publisher import Publisher
from tests.server.test_rollout import Fleet

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def people(app: FastAPI, database: Database) -> Iterator[dict[str, TestClient]]:
    """Four persons at their browsers. All may operate and approve, so that only the rule stands between them."""
    with ExitStack() as stack:
        found = {}
        for name in ("ann", "bob", "cat", "dan"):
            with database.write() as session:
                account = accounts.create(session, name, ["operator", "approver"], datetime.now(UTC))
                cookie = accounts.open_session(session, account, "", "", datetime.now(UTC), how="test").cookie
            headers = {"x-csrf-token": csrf_of(cookie), "cookie": f"__Host-midflight={cookie}"}
            found[name] = stack.enter_context(TestClient(app, base_url="https://localhost:8443", headers=headers))
        yield found


def test_who_asked_cannot_approve_and_two_others_can(
    people: dict[str, TestClient], admin: TestClient, database: Database, settings: Settings, publisher: Publisher
) -> None:
    fleet = Fleet(admin, Context(database, settings), publisher)
    policy = fleet.policy(approvals=[{"mode": "two_person"}])
    publisher.publish("nginx", 1, (NGINX.build_id,))
    take_catalogue(database, settings, fleet.now)  # before the rule deploys it by itself
    made = people["ann"].post("/api/v1/deployments", json={"content": "hotpatch:nginx:1", "policy": policy})
    assert made.status_code == 201, made.text
    url = f"/api/v1/deployments/{made.json()['id']}"

    def approve(who: TestClient) -> tuple[int, str]:
        answer = who.post(f"{url}/approve", json={})
        return answer.status_code, answer.json().get("title", "")

    def state() -> tuple[str, str]:
        fleet.work()
        found = fleet.get(url.removeprefix("/api/v1"))
        return found["effective"], found["why"]["reason"]

    assert approve(people["ann"]) == (403, "own-request")
    assert approve(admin) == (403, "no-person")
    assert state() == ("scheduled", "awaiting_approval")
    assert approve(people["bob"])[0] == 200
    assert approve(people["bob"])[0] == 200, "the same person again is no second one"
    assert state() == ("scheduled", "awaiting_second_approval")
    assert approve(people["cat"])[0] == 200
    assert state() == ("scheduled", "audience_empty"), "approved: it waits for a device to exist, and for nobody"
    audit = people["dan"].get("/api/v1/audit", params={"target": url.rpartition("/")[2]}).json()["items"]
    assert [(entry["outcome"], "bob" in entry["detail"]) for entry in audit] == [
        ("done", False),
        ("done", True),
        ("done", True),
    ]


def test_the_requester_may_reject(
    people: dict[str, TestClient], admin: TestClient, database: Database, settings: Settings, publisher: Publisher
) -> None:
    fleet = Fleet(admin, Context(database, settings), publisher)
    policy = fleet.policy(approvals=[{"mode": "two_person"}])
    publisher.publish("nginx", 1, (NGINX.build_id,))
    take_catalogue(database, settings, fleet.now)  # before the rule deploys it by itself
    made = people["ann"].post("/api/v1/deployments", json={"content": "hotpatch:nginx:1", "policy": policy}).json()
    url = f"/api/v1/deployments/{made['id']}/approve"
    assert people["ann"].post(url, json={"approved": False, "comment": "too early"}).status_code == 200
    fleet.work()
    assert fleet.get(f"/deployments/{made['id']}")["why"]["reason"] == "approval_rejected"
