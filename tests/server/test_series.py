"""A series and the package it changes; and suggestions by the baseline that a patch fails on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.work.tasks import Context
from tests.server.conftest import on_sqlite
from tests.server.device import LIBC, NGINX, Device
from tests.server.outputs.test_reports import came_of, publish
from tests.server.publisher import Publisher
from tests.server.test_rollout import Fleet


@on_sqlite
@pytest.mark.parametrize(("name", "fits"), [("nginx", True), ("nginx-2026-42945", False)])
def test_a_series_named_otherwise_than_the_package_is_said_before_it_is_deployed(
    name: str,
    fits: bool,
    admin: TestClient,
    database: Database,
    settings: Settings,
    publisher: Publisher,
    new_device: Callable[..., Device],
) -> None:
    publisher.publish(name, 1, (NGINX.build_id,))
    Fleet(admin, Context(database, settings), publisher).work()
    path = f"/api/v1/content/hotpatch:{name}:1"
    assert admin.get(path).json()["warning"] == "", "no device has it yet, so nobody knows"
    new_device()
    warning = admin.get(path).json()["warning"]
    assert (warning == "") == fits
    if not fits:
        assert "the package nginx" in warning and "--name nginx" in warning


def test_failures_on_one_baseline_suggest_to_hold_that_baseline(
    admin: TestClient, database: Database, new_device: Callable[..., Device]
) -> None:
    publish(database)
    other = replace(NGINX, build_id="b7" * 20, version="1.22.1-8")
    for number in range(12):
        device = new_device()
        if number < 6:
            device.inventory = (other, replace(other, path="/usr/sbin/nginx-debug"), LIBC)
            device.check_in()
        came_of(database, device.id, "failed" if number < 6 else "applied", 1.0)
    found = admin.get("/api/v1/safeguards/suggestions?content=con-hp").json()
    assert [(each["field"], each["value"], each["failed"], each["tried"]) for each in found] == [
        ("baseline", other.build_id, 6, 6)
    ]
    body = {"reason": "fails there", "content": "con-hp", found[0]["field"]: found[0]["value"]}
    assert admin.post("/api/v1/safeguards", json=body).status_code == 201
