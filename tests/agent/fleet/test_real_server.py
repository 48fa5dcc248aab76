"""A device, and the server as administrators start it: from the token to the reverted hotpatch and the baseline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.commands import midflight, until
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


@dataclass(frozen=True)
class Site:
    """A server with one policy, and a device of it with a program that the settings of the device name."""

    server: Server
    device: Device
    policy: str
    place: Path
    fixes: Fixes

    def deploy(self, content: str) -> str:
        """Deploy something that was published, and approve that."""
        self.server.wait(lambda: self.server.admin.get(f"/api/v1/content/{content}").status_code == 200)
        made = str(self.server.post("/deployments", content=content, policy=self.policy)["id"])
        self.server.post(f"/deployments/{made}/approve")
        return made

    def state(self, deployment: str) -> Any:
        """How the device stands in a deployment."""
        found = self.server.admin.get(f"/api/v1/deployments/{deployment}/devices").json()["items"]
        return found[0]["state"] if found else None

    def now(self) -> None:
        """Let the device ask at once: policies have it ask every ten seconds at most."""
        self.device.stop()
        self.device.start()

    def hotpatch(self) -> str:
        """Publish the first hotpatch."""
        add(self.server, self.fixes.first.hotpatch, Description(
            "hotpatch", "fleet-answers", 1, self.fixes.images, ("CVE-2026-10001",), "security", "high", None, "",
        ))  # fmt: skip
        return "hotpatch:fleet-answers:1"

    def baseline(self) -> str:
        """Publish the program with the fix built in."""
        add(self.server, self.fixes.fixed, Description(
            "baseline", "fleet-answers", 2, (build_id(self.fixes.fixed),), ("CVE-2026-10001",), "security", "high",
            None, "", (), Package("file", "fleet-answers", "2", "amd64"),
        ))  # fmt: skip
        return "baseline:fleet-answers:2"


@pytest.fixture
def site(fixes: Fixes, tmp_path: Path) -> Iterator[Site]:
    """From the token to the policy."""
    place = tmp_path / "sbin" / "answers"
    place.parent.mkdir()
    shutil.copy2(fixes.program, place)
    server = Server(tmp_path / "server", None)
    with (server.settings.folder / "server.toml").open("a") as file:
        file.write("checkin_active_interval = 1\n")
    server.start()
    try:
        token = midflight("server", "enroll-token", server.settings.folder, "--json").json
        device = Device(tmp_path / "device", f'[server.files]\nfleet-answers = "{place}"\n')
        words = ["--server", token["server"], "--token", token["token"], "--pin", token["pin"]]
        midflight("agent", "enroll", *words, "--root-sha256", token["root"], env=device.env)
        group = server.post("/groups", name="all", rule='hostname like "*"')["id"]
        document = {"audience": {"groups": [group]}, "rings": RINGS, "check_in_s": 10, "restart": "never"}
        policy = server.post("/policies", name="all", document=document)["id"]
        yield Site(server, device, policy, place, fixes)
    finally:
        server.kill()


def test_from_the_token_to_the_baseline(site: Site) -> None:
    server, device, place = site.server, site.device, site.place
    with Target.start(place) as running, device:
        first = site.deploy(site.hotpatch())
        site.now()
        until(lambda: running.ask() == "2", "patched")
        server.wait(lambda: site.state(first) == "applied")
        server.post(f"/deployments/{first}/revert")
        site.now()
        until(lambda: running.ask() == "1", "taken out")
        server.wait(lambda: site.state(first) == "reverted")
        second = site.deploy(site.baseline())
        site.now()
        until(lambda: device.ask("baselines", status=None)["baselines"], "laid ready")
        running.stop()
        until(lambda: place.read_bytes() == site.fixes.fixed.read_bytes(), "swapped in")
        with Target.start(place) as fresh:
            assert fresh.ask() == "2"
            server.wait(lambda: site.state(second) == "applied")
    log = device.log.read_text()
    assert log.count("of the server: baseline") == 1, "what was done is not ordered again"


def test_who_cannot_have_the_hotpatch_gets_the_baseline_in_its_place(site: Site) -> None:
    server, device, place = site.server, site.device, site.place
    with Target.start(place) as running, device:
        device.ask("bar", "fleet-answers:1", "--reason", "it is slow here")
        site.hotpatch()
        site.baseline()
        deployment = site.deploy("hotpatch:fleet-answers:1")
        site.now()
        server.wait(lambda: site.state(deployment) == "ineligible")
        site.now()
        until(lambda: device.ask("baselines", status=None)["baselines"], "laid ready")
        assert running.ask() == "1" and place.read_bytes() == site.fixes.program.read_bytes(), "until a restart"
        running.stop()
        until(lambda: place.read_bytes() == site.fixes.fixed.read_bytes(), "swapped in")
        with Target.start(place) as fresh:
            assert fresh.ask() == "2"
            device.says("no hotpatch is needed for it any more")
            site.now()
            server.wait(lambda: site.state(deployment) == "superseded")
            (one,) = server.admin.get("/api/v1/devices").json()["items"]
            about = f"/api/v1/devices/{one['id']}"
            server.wait(lambda: server.admin.get(about).json()["compliance_why"]["reason"] == "up_to_date_restarted")
    assert device.log.read_text().count("of the server: baseline") == 1, "what was done is not ordered again"
