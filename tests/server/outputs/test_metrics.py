"""What Prometheus scrapes, read by Prometheus's own parser."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from midflight.server.store.database import Database
from midflight.server.store.devices import Device as Row
from tests.server.device import NGINX, Device


def test_the_fleet_in_numbers_for_who_has_the_scope(
    admin: TestClient, client: TestClient, new_device: Callable[..., Device]
) -> None:
    assert client.get("/metrics").status_code == 401
    device, _other = new_device(), new_device()
    device.runs("nginx-hp", 1, "ab" * 32, NGINX)
    device.check_in()
    answer = admin.get("/metrics")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert values[("midflight_devices",)] == 2
    assert values[("midflight_devices_hotpatched",)] == 1
    assert values[("midflight_stopped_seconds",)] == 0.00015
    assert values[("midflight_devices_integrity_violated",)] == 0


def test_a_disabled_device_alarms_nobody(
    admin: TestClient, database: Database, new_device: Callable[..., Device]
) -> None:
    device, other = new_device(), new_device()
    for each in (device, other):
        each.check_in()
    with database.write() as session:
        session.execute(update(Row).values(integrity_violated=True, restart_pending=True, hotpatched=True))
    assert admin.post(f"/api/v1/devices/{other.id}/disable", json={"reason": "gone"}).status_code == 204
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(admin.get("/metrics").text)
        for sample in family.samples
    }
    for name in ("devices", "devices_integrity_violated", "devices_restart_pending"):
        assert values[f"midflight_{name}"] == 1, name
    assert values["midflight_devices_hotpatched"] == 2, "what runs, runs"
