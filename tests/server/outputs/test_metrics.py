"""What Prometheus scrapes, read by Prometheus's own parser."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

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
