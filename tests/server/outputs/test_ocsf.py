"""Security events, each valid by the OCSF schema of its class."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from midflight.server.outputs.jwtkeys import JwtKeys
from midflight.server.outputs.ocsf import SCHEMA, Host
from midflight.server.outputs.render import Happened, render, takes

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOST = Host("dev-1", "web1.example.com", "linux-x86_64")
PATCH = {"content": "con-1", "processes": 4, "stopped_us": 180, "detail": "", "reason": ""}
BAD = {"violations": [{"path": "/usr/sbin/nginx", "process": "nginx (77)", "detail": "at 0x5580"}]}
EVENTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "patch.applied": (PATCH, 7001, 4),
    "patch.failed": ({**PATCH, "reason": "busy", "detail": "a thread is in the way"}, 7001, 4),
    "patch.reverted": (PATCH, 7001, 3),
    "patch.health_failed": (PATCH, 7001, 3),
    "patch.revert_failed": (PATCH, 7001, 3),
    "device.integrity_violated": (BAD, 2004, 1),
    "compliance.changed": ({"state": "noncompliant", "before": "in_grace", "reason": "fix_missing"}, 2003, 1),
}


@lru_cache(maxsize=1)
def schemas() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(SCHEMA))


def told(kind: str, data: dict[str, Any], host: Host | None = HOST) -> dict[str, Any]:
    event = Happened("e-1", kind, NOW, "dev-1", data, host, "nginx-1.22.1-hp1", ["CVE-2026-1111"])
    message = render(event, "ocsf", "https://m.example", "", JwtKeys(()), NOW)
    assert message is not None and message.content_type == "application/json"
    document: dict[str, Any] = orjson.loads(message.body)
    name = schemas().lookup_class_name_from_uid(document["class_uid"])
    problems = Draft202012Validator(schemas().get_class_schema(name, ["host"])).iter_errors(document)
    assert [f"{error.json_path}: {error.message}" for error in problems] == []
    return document


@pytest.mark.parametrize("kind", EVENTS)
def test_each_event_is_valid_and_of_its_class(kind: str) -> None:
    data, class_uid, activity = EVENTS[kind]
    document = told(kind, data)
    assert (document["class_uid"], document["activity_id"]) == (class_uid, activity)
    assert (document["device"]["hostname"], document["metadata"]["uid"]) == ("web1.example.com", "e-1")


def test_what_a_siem_reads_is_in_it() -> None:
    applied = told("patch.applied", PATCH)
    assert applied["status"] == "Success"
    assert "nginx-1.22.1-hp1 (CVE-2026-1111) put into 4 processes" in applied["message"]
    assert applied["unmapped"]["stopped_ms"] == 0.18
    assert told("patch.failed", PATCH)["status"] == "Failure"
    found = told("device.integrity_violated", BAD)
    assert (found["is_alert"], found["evidences"][0]["process"]["pid"]) == (True, 77)
    assert found["finding_info"]["attacks"][0]["technique"]["uid"] == "T1055"


@pytest.mark.parametrize(
    "violations", [[], [{}], [{"process": 7, "path": 3}], [{"process": "x" * 30 + "9" * 30}], [{"path": "\x1b[2J"}]]
)
def test_whatever_a_device_reports_the_event_is_valid(violations: list[dict[str, object]]) -> None:
    told("device.integrity_violated", {"violations": violations}, None)
    told("patch.applied", {"processes": None, "stopped_us": None}, None)


def test_other_kinds_have_no_place() -> None:
    assert not takes("ocsf", "deployment.created")
    assert not takes("caep", "patch.applied")
    assert takes("cloudevents", "anything.at_all")
