"""A device, and the server as administrators start it: from the token to the reverted hotpatch and the baseline."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from midflight.server.install import OFFLINE_KEYS
from midflight.trust.content import Content, Description, Package
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.signers import open_signer
from midflight.trust.signing import sign
from tests.agent.fleet.conftest import Fixes, build_id
from tests.agent.fleet.harness import Device
from tests.agent.fleet.waiting import until
from tests.commands import midflight
from tests.live.harness import Target
from tests.server.test_faults import Server

pytestmark = pytest.mark.live
RINGS = [{"name": "all", "kind": "rest", "gate": {"soak": "PT0S"}}]


def add(server: Server, source: Path, about: Description) -> Content:
    """Publish with the offline keys that init made."""
    repository = Repository(server.settings.path(server.settings.repository))
    content = repository.add(source, f"{about.name}/{about.sequence}.{about.kind}", about, datetime.now(UTC))
    sign(repository, open_signer(str(server.settings.folder / OFFLINE_KEYS / "targets.key")))
    publish(repository, datetime.now(UTC))
    return content


def test_from_the_token_to_the_baseline(fixes: Fixes, tmp_path: Path) -> None:
    place = tmp_path / "sbin" / "answers"
    place.parent.mkdir()
    shutil.copy2(fixes.program, place)
    server = Server(tmp_path / "server", None)
    with (server.settings.folder / "server.toml").open("a") as file:
        file.write("checkin_active_interval = 1\n")
    server.start()
    try:
        journey(server, fixes, place, tmp_path)
    finally:
        server.kill()


def journey(server: Server, fixes: Fixes, place: Path, tmp_path: Path) -> None:
    token = midflight("server", "enroll-token", server.settings.folder, "--json").json
    device = Device(tmp_path / "device", f'[server.files]\nfleet-answers = "{place}"\n')
    words = ["--server", token["server"], "--token", token["token"], "--pin", token["pin"]]
    midflight("agent", "enroll", *words, "--root-sha256", token["root"], env=device.env)

    group = server.post("/groups", name="all", rule='hostname like "*"')["id"]
    document = {"audience": {"groups": [group]}, "rings": RINGS, "check_in_s": 10, "restart": "never"}
    policy = server.post("/policies", name="all", document=document)["id"]

    def deploy(content: str) -> str:
        server.wait(lambda: server.admin.get(f"/api/v1/content/{content}").status_code == 200)
        made = str(server.post("/deployments", content=content, policy=policy)["id"])
        server.post(f"/deployments/{made}/approve")
        return made

    def state(deployment: str) -> Any:
        found = server.admin.get(f"/api/v1/deployments/{deployment}/devices").json()["items"]
        return found[0]["state"] if found else None

    def now() -> None:
        """Let the device ask at once: policies have it ask every ten seconds at most."""
        device.stop()
        device.start()

    with Target.start(place) as running, device:
        add(server, fixes.first.hotpatch, Description(
            "hotpatch", "fleet-answers", 1, fixes.images, ("CVE-2026-10001",), "security", "high", None, "",
        ))  # fmt: skip
        first = deploy("hotpatch:fleet-answers:1")
        now()
        until(lambda: running.ask() == "2", "patched")
        server.wait(lambda: state(first) == "applied")
        server.post(f"/deployments/{first}/revert")
        now()
        until(lambda: running.ask() == "1", "taken out")
        server.wait(lambda: state(first) == "reverted")
        baseline = Package("file", "fleet-answers", "2", "amd64")
        add(server, fixes.fixed, Description(
            "baseline", "fleet-answers", 2, (build_id(fixes.fixed),), ("CVE-2026-10001",), "security", "high", None, "",
            (), baseline,
        ))  # fmt: skip
        second = deploy("baseline:fleet-answers:2")
        now()
        until(lambda: device.ask("baselines", status=None)["baselines"], "laid ready")
        running.stop()
        until(lambda: place.read_bytes() == fixes.fixed.read_bytes(), "swapped in")
        with Target.start(place) as fresh:
            assert fresh.ask() == "2"
            server.wait(lambda: state(second) == "applied")
    log = device.log.read_text()
    assert log.count("of the server: baseline") == 1, "what was done is not ordered again"
