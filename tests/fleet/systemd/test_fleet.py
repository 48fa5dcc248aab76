"""A device with a server under a systemd that runs: baselines come in at a restart by hand, by the policy, and of the
machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.fleet.control import ControlPlane
from demo.fleet.daemon import build_id
from tests.commands import until
from tests.fleet.systemd.machine import HERE, Booted
from tests.fleet.systemd.test_service import AGENT, SANDBOXES, installed, service
from tests.fleet.systemd.thing import PLACE, Things

LISTEN = f"{HERE}:19450"
SETTINGS = f"""\
rescan = 1.0
[server.files]
thing = "{PLACE}"
"""
DROP_IN = "[Service]\nExecStartPre=+-/usr/bin/midflight agent swap-baseline thing\n"


class Rig:
    """A server here, the machine as its device, and ``thing`` on it, in every sandbox there is."""

    def __init__(self, machine: Booted, plane: ControlPlane, things: Things) -> None:
        self.machine, self.plane, self.things = machine, plane, things

    def policy(self, **more: Any) -> str:
        """The one policy, with these settings beside what all have."""
        group = self.plane.post("/groups", name="all", rule='hostname like "*"')["id"]
        ring = {"name": "all", "kind": "rest", "gate": {"min_sample": 1, "max_failures": 0, "soak": "PT0S"}}
        document = {"audience": {"groups": [group]}, "rings": [ring], "check_in_s": 10, **more}
        made = str(self.plane.post("/policies", name="all", document=document)["id"])
        until(lambda: self.plane.get(f"/policies/{made}")["devices"] == 1, "the policy governs the device")
        return made

    def mended(self, policy: str) -> None:
        """The hotpatch has come from the server."""
        self.plane.release("add", self.things.hotpatch, "--severity", "critical")
        self.plane.post("/catalogue/refresh")
        self.plane.deploy("hotpatch:thing:1", policy)
        until(lambda: self.machine.ask("thing", 7000) == "mended", "the hotpatch of the server is in")

    def baseline(self, policy: str, file: Path) -> str:
        """Publish and order a baseline; it lies ready when this returns."""
        about = ["--name", "thing", "--sequence", "2", "--image", build_id(self.things.release), "--severity", "high"]
        if file.suffix != ".deb":
            about += ["--version", "2.0", "--architecture", "amd64"]
        self.plane.release("add", file, *about)
        self.plane.post("/catalogue/refresh")
        made = self.plane.deploy("baseline:thing:2", policy)
        until(lambda: self.state, "the baseline is here")
        return made

    @property
    def state(self) -> str:
        """Of the baseline on the device."""
        found = self.machine.midflight("agent", "baselines", status=None).get("baselines")
        return str(found[0]["state"]) if found else ""

    def done(self, deployment: str) -> None:
        """The new program runs, and the server has heard of it."""
        assert (self.machine.root_now / PLACE[1:]).read_bytes() == self.things.release.read_bytes()
        until(lambda: self.machine.ask("thing", 7000) == "mended", "what is built in answers")
        until(lambda: self.state == "current", "the baseline runs")
        until(lambda: set(self.plane.states(deployment).values()) == {"applied"}, "the server knows")
        assert not [one for one in self.machine.midflight("agent", "status")["hotpatches"] if one["processes"]]
        self.machine.run("midflight", "check", "--pid", str(self.machine.main_pid("thing")))


@pytest.fixture
def rig(machine: Booted, things: Things, tmp_path: Path) -> Iterator[Rig]:
    """See the class; the agent is enrolled and runs."""
    plane = ControlPlane(tmp_path / "server", f"https://{LISTEN}", (LISTEN,))
    plane.start()
    try:
        plane.wait()
        plane.sign_in()
        plane.trust_vendor(things.key)
        machine.copy(things.old_package, "/root/old.deb")
        machine.run("dpkg", "-i", "/root/old.deb")
        wanted = "\n[Install]\nWantedBy=multi-user.target"
        service(machine, "thing.service", SANDBOXES["everything"] + wanted, f"{PLACE} 7000")
        machine.run("systemctl", "enable", "--now", "thing")
        machine.write("/etc/midflight/agent.toml", SETTINGS)
        words = ("--server", plane.url, "--token", plane.invite(1), "--pin", plane.pin)
        machine.midflight("agent", "enroll", *words)
        installed(machine, "--baselines")
        yield Rig(machine, plane, things)
        print(plane.get("/deployments"), plane.log.read_text()[-3000:])
    finally:
        plane.kill()


def test_a_baseline_comes_in_when_somebody_restarts_the_service(rig: Rig) -> None:
    machine, policy = rig.machine, rig.policy(restart="never")
    machine.write("/etc/systemd/system/thing.service.d/midflight.conf", DROP_IN)
    machine.run("systemctl", "daemon-reload")
    rig.mended(policy)
    deployment = rig.baseline(policy, rig.things.release)
    before = machine.main_pid("thing")
    assert rig.state == "staged" and (machine.root_now / PLACE[1:]).read_bytes() == rig.things.program.read_bytes()
    machine.run("systemctl", "restart", "thing")
    assert machine.main_pid("thing") != before
    rig.done(deployment)


def test_the_policy_restarts_the_service_and_warns_whoever_is_logged_in(rig: Rig) -> None:
    machine, policy = rig.machine, rig.policy(restart="at_deadline", deadline="PT1S", grace="PT15S")
    rig.mended(policy)
    machine.run("systemd-run", "--unit=somebody", "script", "-qfc", "login -f root", "/root/seen")
    until(lambda: "root" in machine.run("who"), "somebody is logged in")
    before = machine.main_pid("thing")
    deployment = rig.baseline(policy, rig.things.new_package)
    until(lambda: "A service of this machine restarts at" in machine.read("/root/seen"), "they were warned")
    until(lambda: machine.main_pid("thing") not in (0, before), "the service was restarted")
    assert machine.run("dpkg-query", "-Wf", "${Version}", "thing") == "2.0"
    rig.done(deployment)
    (restarted,) = [one for one in machine.journal(AGENT) if "the policy has it restarted" in one["MESSAGE"]]
    assert restarted["MESSAGE"].endswith("systemctl restart thing.service")
    machine.run("midflight", "agent", "rollback-baseline", "thing")
    assert machine.run("dpkg-query", "-Wf", "${Version}", "thing") == "1.0"


def test_a_baseline_comes_in_when_the_machine_starts_before_anything_runs_the_old_one(rig: Rig) -> None:
    machine, policy = rig.machine, rig.policy(restart="never")
    rig.mended(policy)
    deployment = rig.baseline(policy, rig.things.new_package)
    assert rig.state == "staged"
    machine.reboot()
    rig.done(deployment)
    swapped = int(machine.show("midflight-baselines", "ExecMainExitTimestampMonotonic"))
    assert 0 < swapped <= int(machine.show("thing", "ExecMainStartTimestampMonotonic"))
