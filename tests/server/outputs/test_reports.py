"""The report over a small fleet that reported by the real protocol, and the scanners' documents as they are fetched."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from csaf_lib.verification import Verifier
from fastapi.testclient import TestClient

from midflight.server.store import meta
from midflight.server.store.catalogue import Content, ContentCve, ContentImage
from midflight.server.store.database import Database
from midflight.server.store.devices import Outcome
from midflight.trust.checkin import ImageReport
from tests.server.device import LIBC, NGINX, Device

NOW = datetime.now(UTC)
HOTPATCH, BASELINE = "ab" * 32, "cd" * 32
FIXED = ImageReport("b2" * 20, "/usr/sbin/nginx", "nginx", "1.22.1-9+deb12u1", 4)
EVIL = "=cmd|' /C calc'!A0\x1b[2J"


def publish(database: Database) -> None:
    """A hotpatch of two days ago and the baseline of yesterday that contains it."""
    with database.write() as session:
        for id, kind, sequence, sha256, image, age in (
            ("con-hp", "hotpatch", 1, HOTPATCH, NGINX.build_id, 2),
            ("con-base", "baseline", 2, BASELINE, FIXED.build_id, 1),
        ):
            columns = {column.name for column in Content.__table__.columns}
            row: dict[str, Any] = dict.fromkeys(columns, "") | {
                "id": id, "kind": kind, "name": f"nginx-{kind}", "package": "nginx", "sequence": sequence,
                "sha256": sha256, "path": f"{id}.mfp", "length": 1, "cvss": 9.8,
                "classification": "security", "severity": "critical",
                "published": NOW - timedelta(days=age), "deployable_until": None, "supersedes": [], "details": {},
                "revoked": None, "revoked_revert": False, "missing": False, "version": 1,
            }  # fmt: skip
            session.add(Content(**row))
            session.flush()
            session.add(ContentImage(content_id=id, build_id=image))
            session.add(ContentCve(content_id=id, cve="CVE-2026-1111", cvss=9.8, severity="critical", exploited=True))
        meta.bump(session, "catalogue")


def came_of(
    database: Database, device: str, result: str, hours_ago: float, content: str = "con-hp", **more: Any
) -> None:
    at = NOW - timedelta(hours=hours_ago)
    values = {"reason": "", "detail": "", "processes": 4, "stopped_us": 200, "deployment_id": None, **more}
    with database.write() as session:
        session.add(
            Outcome(
                device_id=device,
                action=f"{result}-{content}",
                result=result,
                content_id=content,
                at=at,
                received=at,
                **values,
            )
        )


@pytest.fixture
def fleet(database: Database, new_device: Callable[..., Device]) -> dict[str, Device]:
    """Four devices with nginx (vulnerable, hotpatched, restarted, failed) and one without."""
    publish(database)
    found = {name: new_device(name) for name in ("vulnerable", "hotpatched", "restarted", "failed", "without")}
    found["hotpatched"].runs("nginx-hotpatch", 1, HOTPATCH)
    found["restarted"].inventory = (FIXED, LIBC)
    found["without"].inventory = (LIBC,)
    for device in found.values():
        device.check_in()
    came_of(database, found["hotpatched"].id, "applied", 40)
    came_of(database, found["restarted"].id, "applied", 44)
    came_of(database, found["restarted"].id, "applied", 20, "con-base")
    came_of(database, found["failed"].id, "failed", 10, reason=EVIL, stopped_us=0)
    return found


def test_the_report_says_who_is_covered_how_fast_what_was_saved_and_what_failed(
    fleet: dict[str, Device], admin: TestClient
) -> None:
    found = admin.get("/api/v1/reports/fleet").json()
    (line,) = found["cves"]
    assert [line[name] for name in ("affected", "hotpatched", "restarted", "open")] == [4, 1, 1, 2]
    assert line["covered_percent"] == 50.0
    assert line["hours_to_50_percent"] == pytest.approx(8.0, abs=0.05)
    assert (line["hours_to_90_percent"], line["exploited"], line["fix"]) == (None, True, "nginx-hotpatch")
    # 40 hours up to now on one device, 44 - 20 until the restart on the other
    since = (datetime.now(UTC) - NOW) / timedelta(hours=1)
    assert found["saved"]["exposure_hours"] == pytest.approx(64.0 + since, abs=0.1)
    assert (found["saved"]["restarts_avoided"], found["saved"]["stopped_ms"]) == (2, 0.6)
    (failure,) = found["failures"]
    assert (failure["content"], failure["result"], failure["devices"]) == ("nginx-hotpatch", "failed", 1)
    assert found["devices"]["total"] == 5


def test_what_was_installed_by_hand_counts_where_content_names_its_image(
    fleet: dict[str, Device], admin: TestClient
) -> None:
    for name, image in (("hotpatched", NGINX), ("restarted", FIXED)):
        fleet[name].inventory = (replace(image, package="", version=""), LIBC)
        fleet[name].check_in()
    (line,) = admin.get("/api/v1/reports/fleet").json()["cves"]
    assert [line[name] for name in ("affected", "hotpatched", "restarted", "open")] == [4, 1, 1, 2]


def test_csv_holds_no_formula_and_the_page_no_markup_of_a_device(fleet: dict[str, Device], admin: TestClient) -> None:
    answer = admin.get("/api/v1/reports/fleet", params={"format": "csv", "table": "failures"})
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["reason"].startswith("'=cmd") and "\x1b" not in answer.text and r"\x1b[2J" in row["reason"]
    assert len(list(csv.DictReader(io.StringIO(admin.get("/api/v1/reports/fleet?format=csv").text)))) == 1
    page = admin.get("/api/v1/reports/fleet?format=html")
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "CVE-2026-1111" in page.text and "\x1b" not in page.text and r"\x1b[2J" in page.text
    assert "' /C calc" not in page.text, "quotes are escaped"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_scanners_fetch_the_truth_of_a_device_and_of_the_fleet(
    fleet: dict[str, Device], admin: TestClient, tmp_path: Path
) -> None:
    path = tmp_path / "oval.xml"
    path.write_bytes(admin.get(f"/api/v1/devices/{fleet['hotpatched'].id}/oval", params={"kind": "results"}).content)
    subprocess.run(["oscap", "oval", "validate", "--results", str(path)], check=True, capture_output=True)
    assert "no vulnerable code runs: hotpatch nginx-hotpatch" in path.read_text()
    assert admin.get("/api/v1/devices/dev-none/oval").status_code == 404
    for url in ("/api/v1/reports/vex", f"/api/v1/devices/{fleet['hotpatched'].id}/vex"):
        document = admin.get(url).json()
        assert Verifier(document).run_all().passed
        (vulnerability,) = document["vulnerabilities"]
        assert "nginx:1.22.1-9+nginx-hotpatch" in vulnerability["product_status"]["fixed"]
        assert "nginx:1.22.1-9" in vulnerability["product_status"]["known_affected"]
