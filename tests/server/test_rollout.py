"""A rollout as administrators and devices see it: rings, gates, pause, failure, revert, revocation; through real
requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.devices import Outcome
from midflight.server.store.events import Event
from midflight.server.work.tasks import Context, Timer
from midflight.trust.content import Content
from tests.server.conftest import on_sqlite
from tests.server.device import NGINX, Device
from tests.server.publisher import Publisher

Make = Callable[..., Device]
RINGS = [
    {"name": "first", "kind": "first", "amount": 1, "gate": {"soak": "PT0S"}},
    {"name": "rest", "kind": "rest", "gate": {"soak": "PT0S", "max_failures": 1}},
]


@dataclass
class Fleet:
    """A server with an administrator, and somebody who lets time pass."""

    admin: TestClient
    context: Context
    publisher: Publisher
    ahead: timedelta = timedelta(0)

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def work(self) -> None:
        """All background work once, twice: what one task begins another may go on with. Who was seen is written before
        it, which otherwise happens every few seconds."""
        cast(FastAPI, self.admin.app).state.checkins.presence.flush()
        for _ in range(2):
            Timer(self.context).tick(self.now)

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        response = self.admin.post(f"/api/v1{path}", json=body)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    def get(self, path: str) -> Any:
        response = self.admin.get(f"/api/v1{path}")
        assert response.status_code == 200, response.text
        return response.json()

    def policy(self, **document: Any) -> str:
        """A policy for every device that is named web-…"""
        group = self.post("/groups", 201, name="web", rule='hostname like "web-*"')["id"]
        whole = {"audience": {"groups": [group]}, "rings": RINGS} | document
        return str(self.post("/policies", 201, name="web", document=whole)["id"])

    def deploy(self, policy: str, sequence: int = 1, **values: Any) -> tuple[str, Content]:
        """Publish a hotpatch for nginx, deploy it, and let it start (approved by the administrator)."""
        content = self.publisher.publish("nginx", sequence, (NGINX.build_id,))
        self.work()
        made = self.post("/deployments", 201, content=f"hotpatch:nginx:{sequence}", policy=policy, **values)
        self.post(f"/deployments/{made['id']}/approve")
        self.work()
        return str(made["id"]), content

    def states(self, deployment: str) -> dict[str, str]:
        return {line["device"]: line["state"] for line in self.get(f"/deployments/{deployment}/devices")["items"]}


@pytest.fixture
def fleet(admin: TestClient, database: Database, settings: Settings, publisher: Publisher) -> Fleet:
    return Fleet(admin, Context(database, settings), publisher)


def apply(device: Device, content: Content, sequence: int = 1) -> None:
    """The device does what it was told, and says so."""
    outcome = device.outcome("applied", processes=4, stopped_us=150)
    device.runs("nginx", sequence, content.sha256)
    device.check_in([outcome])


def who_has_orders(devices: list[Device]) -> list[Device]:
    for device in devices:
        device.check_in()
    return [device for device in devices if device.orders]


def test_one_device_first_then_the_rest_and_everybody_is_accounted_for(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(4)]
    other = new_device("db-1")
    deployment, content = fleet.deploy(fleet.policy())
    (first,) = who_has_orders(devices)
    assert first.orders == [("apply", content.path)]
    assert other.check_in().instructions is None and other.orders == []
    assert sorted(fleet.states(deployment).values()) == ["offered", "pending", "pending", "pending"]
    apply(first, content)
    fleet.work()
    rest = who_has_orders(devices)
    assert len(rest) == 3 and first not in rest
    for device in rest:
        apply(device, content)
    fleet.work()
    shown = fleet.get(f"/deployments/{deployment}")
    assert (shown["effective"], shown["why"]["reason"]) == ("done", "done_offered")
    assert [ring["tally"] for ring in fleet.get(f"/deployments/{deployment}/rings")] == [{"applied": 1}, {"applied": 3}]
    fleet.ahead += timedelta(minutes=5)
    fleet.work()
    compliance = fleet.get("/compliance")
    assert compliance["states"] == {"compliant": 4, "unassigned": 1} and compliance["hotpatched"] == 4
    newcomer = new_device()
    fleet.work()
    newcomer.check_in()
    assert newcomer.orders == [("apply", content.path)]


def test_a_failure_beyond_the_gate_halts_and_only_a_person_resumes(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(3)]
    deployment, _ = fleet.deploy(fleet.policy())
    (first,) = who_has_orders(devices)
    first.check_in([first.outcome("failed", reason="crashed", detail="SIGSEGV in nginx (17)")])
    fleet.work()
    shown = fleet.get(f"/deployments/{deployment}")
    assert (shown["effective"], shown["why"]["reason"]) == ("halted", "halted_by_failures")
    assert shown["why"]["owner"] == "administrator"
    assert who_has_orders(devices) == []
    fleet.ahead += timedelta(days=30)
    fleet.work()
    assert fleet.get(f"/deployments/{deployment}")["effective"] == "halted"
    fleet.ahead = timedelta(0)
    assert fleet.post(f"/deployments/{deployment}/resume")["effective"] == "offering"


@on_sqlite
def test_a_policy_may_order_a_revert_when_the_gate_halts(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(4)]
    deployment, content = fleet.deploy(fleet.policy(revert_on_halt=True))
    (first,) = who_has_orders(devices)
    apply(first, content)
    fleet.work()
    for device in who_has_orders(devices)[:2]:
        device.check_in([device.outcome("failed")])
    fleet.work()
    assert fleet.get(f"/deployments/{deployment}")["effective"] == "reverting"
    (reverting,) = who_has_orders(devices)
    assert reverting is first and first.orders == [("revert", content.path)]
    outcome = first.outcome("reverted")
    first.runs_nothing()
    first.check_in([outcome])
    fleet.work()
    shown = fleet.get(f"/deployments/{deployment}")
    assert (shown["effective"], shown["why"]["reason"]) == ("done", "done_reverted")
    assert fleet.states(deployment)[first.id] == "reverted"


@on_sqlite
def test_what_is_paused_offers_nothing_and_goes_on_when_resumed(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(2)]
    deployment, content = fleet.deploy(fleet.policy())
    assert fleet.post(f"/deployments/{deployment}/pause")["effective"] == "paused"
    assert who_has_orders(devices) == []
    fleet.work()
    assert who_has_orders(devices) == []
    assert (
        fleet.admin.post(f"/api/v1/deployments/{deployment}/pause", json={"until": "2020-01-01T00:00:00Z"}).status_code
        == 409
    )
    fleet.post(f"/deployments/{deployment}/resume")
    (first,) = who_has_orders(devices)
    assert first.orders == [("apply", content.path)]
    fleet.post(f"/deployments/{deployment}/stop")
    assert who_has_orders(devices) == []
    assert fleet.admin.post(f"/api/v1/deployments/{deployment}/resume", json={}).json()["title"] == "not-possible"


@on_sqlite
def test_revoked_content_is_offered_to_nobody_from_that_moment_on(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(2)]
    deployment, content = fleet.deploy(fleet.policy())
    assert len(who_has_orders(devices)) == 1
    fleet.publisher.revoke(content.path)
    fleet.post("/catalogue/refresh")
    assert who_has_orders(devices) == []
    fleet.work()
    shown = fleet.get(f"/deployments/{deployment}")
    assert (shown["effective"], shown["why"]["reason"]) == ("faulted", "faulted_revoked")
    refused = fleet.admin.post("/api/v1/deployments", json={"content": "hotpatch:nginx:1", "policy": shown["policy"]})
    assert (refused.status_code, refused.json()["title"]) == (409, "revoked")


def test_an_outcome_that_is_sent_again_is_counted_once(fleet: Fleet, new_device: Make, database: Database) -> None:
    device = new_device()
    fleet.deploy(fleet.policy())
    device.check_in()
    outcome = device.outcome("applied", processes=4)
    for _ in range(3):
        device.check_in([outcome])
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Outcome)) == 1
        assert session.scalar(select(func.count()).where(Event.kind == "patch.applied")) == 1


@on_sqlite
def test_silence_after_an_offer_is_a_failure(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(2)]
    deployment, _ = fleet.deploy(fleet.policy())
    (first,) = who_has_orders(devices)
    fleet.ahead = timedelta(hours=25)
    fleet.work()
    assert fleet.states(deployment)[first.id] == "silent"
    assert fleet.get(f"/deployments/{deployment}")["why"]["reason"] == "halted_by_silence"


def test_a_device_that_vanishes_after_its_success_halts_its_gate(fleet: Fleet, new_device: Make) -> None:
    devices = [new_device() for _ in range(3)]
    gate = {"min_sample": 1, "soak": "PT1H", "silence_after": "PT24H"}
    rings = [{"name": "first", "kind": "first", "amount": 1, "gate": gate}, RINGS[1]]
    deployment, content = fleet.deploy(fleet.policy(rings=rings))
    (first,) = who_has_orders(devices)
    apply(first, content)
    fleet.work()
    fleet.ahead = timedelta(hours=2)
    fleet.work()
    assert fleet.states(deployment)[first.id] == "applied"
    why = fleet.get(f"/deployments/{deployment}")["why"]
    assert why["reason"] == "soaking" and "heard of after" in why["detail"]
    fleet.ahead = timedelta(hours=26)
    fleet.work()
    assert fleet.states(deployment)[first.id] == "silent"
    assert fleet.get(f"/deployments/{deployment}")["why"]["reason"] == "halted_by_silence"
    # it comes back with the content running: its success stands again, the halt is a person's to take back
    fleet.ahead = timedelta(0)
    first.check_in()
    fleet.work()
    assert fleet.get(f"/deployments/{deployment}")["why"]["reason"] == "halted_by_silence"
    assert sorted(fleet.states(deployment).values()) == ["applied", "pending", "pending"]


@on_sqlite
def test_exclusion_wins_and_takes_effect_at_once(fleet: Fleet, new_device: Make) -> None:
    device, other = new_device(), new_device()
    spared = fleet.post("/groups", 201, name="spared")["id"]
    policy = fleet.policy()
    shown = fleet.admin.get(f"/api/v1/policies/{policy}")
    document = shown.json()["document"]
    document["audience"]["excluded"] = [spared]
    body = {"name": "web", "document": document}
    edit = fleet.admin.put(f"/api/v1/policies/{policy}", json=body, headers={"If-Match": shown.headers["ETag"]})
    assert edit.status_code == 200
    late = fleet.admin.put(f"/api/v1/policies/{policy}", json=body, headers={"If-Match": shown.headers["ETag"]})
    assert (late.status_code, late.json()["title"]) == (412, "version-conflict")
    fleet.deploy(policy)
    (first,) = who_has_orders([device, other])
    fleet.post(f"/groups/{spared}/members", devices=[first.id])
    assert who_has_orders([first]) == []


@on_sqlite
def test_a_held_combination_is_not_offered_until_the_safeguard_is_lifted(fleet: Fleet, new_device: Make) -> None:
    device = new_device()
    held = fleet.post("/safeguards", 201, reason="hangs on this kernel", package="nginx", kernel="6.1.0-28*")["id"]
    deployment, _ = fleet.deploy(fleet.policy())
    assert who_has_orders([device]) == []
    assert fleet.states(deployment) == {device.id: "held"}
    fleet.post(f"/safeguards/{held}/lift")
    fleet.work()
    assert who_has_orders([device]) == [device]


@on_sqlite
def test_a_barred_device_tries_again_when_somebody_looked(fleet: Fleet, new_device: Make) -> None:
    device = new_device()
    deployment, content = fleet.deploy(fleet.policy())
    device.check_in()
    first_action = device.outcome("failed", reason="health_failed")
    from midflight.trust.checkin import Bar

    bar = Bar("nginx", 1, content.sha256, "health_failed", datetime.now(UTC).replace(microsecond=0))
    device.state = replace(device.state, bars=(bar,))
    device.check_in([first_action])
    fleet.work()
    assert fleet.states(deployment) == {device.id: "failed"}
    fleet.post(f"/devices/{device.id}/retry", 204, content="hotpatch:nginx:1")
    fleet.post(f"/deployments/{deployment}/resume")
    device.check_in()
    assert device.instructions is not None
    assert device.orders == [("apply", content.path)]
    assert device.instructions.policy["lift_bars"] == [content.sha256]
    assert device.instructions.actions[0].id != first_action.action, "a new attempt is a new action"


@on_sqlite
def test_approval_rules_deploy_by_themselves_after_their_delay(fleet: Fleet, new_device: Make) -> None:
    device = new_device()
    rule = {"mode": "automatic", "min_severity": "high", "delay": "P2D"}
    fleet.policy(approvals=[rule])
    fleet.publisher.publish("nginx", 1, (NGINX.build_id,))
    fleet.work()
    (line,) = fleet.get("/deployments")["items"]
    assert (line["effective"], line["why"]["reason"]) == ("scheduled", "scheduled_for_delay")
    assert who_has_orders([device]) == []
    fleet.ahead = timedelta(days=2, minutes=1)
    fleet.work()
    assert who_has_orders([device]) == [device]
    fleet.publisher.publish("other", 2, ("ff" * 20,), severity="low")
    fleet.work()
    assert len(fleet.get("/deployments")["items"]) == 1


@on_sqlite
def test_an_unplanned_baseline_says_beforehand_whom_it_takes_off_the_track(fleet: Fleet, new_device: Make) -> None:
    new_device()
    fleet.policy()
    fleet.publisher.publish("nginx", 1, (NGINX.build_id,), kind="baseline")
    fleet.publisher.publish("nginx", 5, ("b5" * 20,), kind="baseline")
    fleet.work()
    path = "/content/baseline:nginx:5"
    assert fleet.get(f"{path}/preview")["off_track"] == 0
    response = fleet.admin.put(f"/api/v1{path}", json={"on_track": False}, headers={"If-Match": '"v1"'})
    assert response.status_code == 200, response.text
    shown = fleet.get(f"{path}/preview")
    assert shown["text"].startswith("this takes 1 device off the hotpatch track until 20")
    assert (shown["off_track"], shown["restarts"], shown["by_reason"]) == (1, 1, {"eligible": 1})


def test_a_post_with_a_key_is_carried_out_once(fleet: Fleet) -> None:
    headers = {"Idempotency-Key": "make-the-group-1"}
    first = fleet.admin.post("/api/v1/groups", json={"name": "a"}, headers=headers)
    again = fleet.admin.post("/api/v1/groups", json={"name": "a"}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json() and again.headers["Idempotency-Replayed"] == "true"
    assert len(fleet.get("/groups")["items"]) == 1
    other = fleet.admin.post("/api/v1/groups", json={"name": "b"}, headers=headers)
    assert (other.status_code, other.json()["title"]) == (422, "idempotency-reused")


def test_lists_are_read_page_by_page(fleet: Fleet, new_device: Make) -> None:
    names = [new_device(f"web-{n}", report=False).state.hostname for n in range(5)]
    found, after = [], ""
    while True:
        page = fleet.get(f"/devices?limit=2{after}")
        found += [item["hostname"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == names
    assert fleet.admin.get("/api/v1/devices?after=nonsense").status_code == 422


@on_sqlite
def test_a_window_that_is_far_away_is_not_taken_for_none(fleet: Fleet, new_device: Make) -> None:
    device = new_device()
    start = (datetime.now(UTC) + timedelta(days=40)).strftime("%Y-%m-%dT02:00:00")
    yearly = {"rrule": "FREQ=YEARLY", "start": start, "duration": "PT3H"}
    over = {"rrule": "FREQ=DAILY;COUNT=1", "start": "2020-01-01T02:00:00", "duration": "PT3H"}
    deployment, content = fleet.deploy(fleet.policy(windows=[yearly]))
    device.check_in()
    assert device.instructions is not None and device.orders == [("apply", content.path)]
    (window,) = device.instructions.windows
    assert timedelta(days=38) < window.start - datetime.now(UTC) < timedelta(days=42)
    (line,) = fleet.get(f"/deployments/{deployment}/devices")["items"]
    assert line["why"]["reason"] in ("awaiting_window", "no_window")
    policy = fleet.get("/policies")["items"][0]
    document = policy["document"] | {"windows": [over]}
    body = {"name": "web", "document": document}
    fleet.admin.put(f"/api/v1/policies/{policy['id']}", json=body, headers={"If-Match": "*"}).raise_for_status()
    device.check_in()
    assert [window.start.year for window in device.instructions.windows] == [2099]


def test_who_cannot_be_hotpatched_gets_the_baseline_in_its_place(fleet: Fleet, new_device: Make) -> None:
    fixed = replace(NGINX, build_id="b2" * 20, version="1.2")
    device, other = new_device(), new_device()
    deployment, _ = fleet.deploy(fleet.policy(deadline="P5D"))
    (first,) = who_has_orders([device, other])
    first.check_in([first.outcome("refused", reason="kernel_too_old", detail="5.10, needs 6.1")])
    assert first.orders == []
    baseline = fleet.publisher.publish("nginx", 2, (fixed.build_id,), "baseline")
    fleet.work()
    first.check_in()
    assert first.orders == [("baseline", baseline.path)] and first.instructions is not None
    assert first.instructions.actions[0].options["restart_within_s"] == 5 * 86400
    assert who_has_orders([device, other]) == [first], "the ring of the other one is not open"
    first.check_in([first.outcome("staged", reason="restart_needed")])
    told = first.held
    first.check_in()
    assert first.held == told and fleet.states(deployment)[first.id] == "ineligible"
    first.inventory = (fixed,)
    first.check_in([first.outcome("applied", processes=4)])
    assert first.orders == [] and fleet.states(deployment)[first.id] == "superseded"
    outcomes = fleet.get(f"/devices/{first.id}/outcomes")["items"]
    said = {line["content"] for line in outcomes if line["result"] in ("staged", "applied")}
    assert said == {"baseline:nginx:2"}
    fleet.ahead += timedelta(minutes=5)
    fleet.work()
    shown = fleet.get(f"/devices/{first.id}")
    assert (shown["compliance"], shown["compliance_why"]["reason"]) == ("compliant", "up_to_date_restarted")


def test_a_policy_may_leave_baselines_to_people(fleet: Fleet, new_device: Make) -> None:
    device = new_device()
    fleet.deploy(fleet.policy(fallback=False))
    device.check_in()
    fleet.publisher.publish("nginx", 2, ("b2" * 20,), "baseline")
    fleet.work()
    device.check_in([device.outcome("failed", reason="apply_failed")])
    assert device.orders == []
