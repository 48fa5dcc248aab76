"""A fleet from the first hotpatch to the restart that makes it unnecessary. Nothing is simulated: PostgreSQL, two API
processes and a worker, nginx, devices in network namespaces, daemons with a hole that is tried, and steady requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.fleet import daemon
from demo.fleet.control import until
from demo.fleet.machines import Machine
from tests.fleet.rig import Rig, running

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(900)]


def test_from_a_hole_in_every_device_to_a_release_that_needs_no_hotpatch(
    builds: daemon.Builds, tmp_path: Path
) -> None:  # fmt: skip
    with running(tmp_path, builds) as rig:
        assert all(machine.vulnerable for machine in rig.machines)
        begun = {machine.name: machine.pid for machine in rig.machines}
        the_fix_goes_through_the_rings(rig, builds)
        a_bad_patch_stops_at_the_first_ring(rig, builds)
        assert {machine.name: machine.pid for machine in rig.machines} == begun, "nothing was restarted"
        rig.served()
        for load in rig.loads:
            load.stop()
        tampered = rig.others[-1]
        who_is_tampered_with_is_refused(rig, tampered)
        the_release_comes_at_a_restart(rig, builds)
        until(lambda: tampered.visit(rig.gateway.url)[0] == 200, "nginx lets the restarted device in")


def the_fix_goes_through_the_rings(rig: Rig, builds: daemon.Builds) -> None:
    plane, canary = rig.plane, rig.canary
    until(lambda: canary.visit(rig.gateway.url)[0] == 200, "nothing is required of it yet")
    deployment = plane.deploy(plane.publish(builds.fix, 1), rig.policy)
    until(lambda: not canary.vulnerable, "the first ring is patched")
    assert [machine.vulnerable for machine in rig.others] == [True, True], "the second waits for the soak of the first"
    until(lambda: not any(machine.vulnerable for machine in rig.others), "the second ring is patched")
    rig.done(deployment)
    assert plane.states(deployment) == {machine.device: "applied" for machine in rig.machines}
    rings = plane.get(f"/deployments/{deployment}/rings")
    assert [ring["tally"] for ring in rings] == [{"applied": 1}, {"applied": 2}]
    want = dict.fromkeys(plane.states(deployment), ("compliant", "up_to_date_hotpatched"))
    until(lambda: plane.compliance() == want, "all devices are compliant")
    until(lambda: [machine.visit(rig.gateway.url)[0] for machine in rig.machines] == [200] * 3, "nginx lets all in")


def a_bad_patch_stops_at_the_first_ring(rig: Rig, builds: daemon.Builds) -> None:
    plane, canary = rig.plane, rig.canary
    deployment = plane.deploy(plane.publish(builds.careless, 2), rig.policy)
    until(lambda: canary.ask("/health") == "503", "the bad patch is in the first ring")
    until(lambda: plane.effective(deployment)[0] in ("halted", "reverting", "done"), "the gate stops it")
    until(lambda: canary.ask("/health") == "200", "it is taken out again, by itself")
    until(lambda: plane.states(deployment)[canary.device] == "failed", "the server knows")
    until(lambda: plane.effective(deployment) == ("done", "done_reverted"), "the deployment is over")
    assert not canary.vulnerable, "the first fix is there again"
    for machine in rig.others:
        assert machine.ask("/health") == "200"
        assert {one["result"] for one in outcomes(rig, machine, deployment)} == set(), "never offered to ring 2"
    bars = plane.get(f"/devices/{canary.device}")["state"]["bars"]
    assert [(bar["name"], bar["sequence"]) for bar in bars] == [("webd", 2)]


def who_is_tampered_with_is_refused(rig: Rig, machine: Machine) -> None:
    plane = rig.plane
    until(lambda: machine.visit(rig.gateway.url) == (200, "up_to_date_hotpatched"), "the device is judged anew")
    machine.tamper()
    until(lambda: plane.compliance()[machine.device] == ("noncompliant", "integrity_violated"), "it is noticed")
    until(lambda: machine.visit(rig.gateway.url) == (403, "integrity_violated"), "nginx refuses it")
    others = [other for other in rig.machines if other is not machine]
    until(lambda: all(other.visit(rig.gateway.url)[0] == 200 for other in others), "the others may go on")
    events = plane.get("/events?limit=500")["items"]
    assert any(event["kind"] == "device.integrity_violated" and event["subject"] == machine.device for event in events)


def the_release_comes_at_a_restart(rig: Rig, builds: daemon.Builds) -> None:
    plane = rig.plane
    before = {machine.name: machine.pid for machine in rig.machines}
    deployment = plane.deploy(plane.publish_baseline(builds.release, 3), rig.policy)
    rig.done(deployment)
    for machine in rig.machines:
        assert machine.pid != before[machine.name], "restarted, as the policy says"
        assert machine.program.read_bytes() == builds.release.read_bytes()
        assert not machine.vulnerable
        (baseline,) = machine.midflight("agent", "baselines")["baselines"]
        assert (baseline["name"], baseline["state"]) == ("webd", "current")
        assert patches_of(machine) == []
    want = dict.fromkeys(plane.states(deployment), ("compliant", "up_to_date_restarted"))
    until(lambda: plane.compliance() == want, "all devices are compliant")


def patches_of(machine: Machine) -> list[object]:
    """What midflight finds in the daemon's memory."""
    shown = machine.midflight("status", "--pid", str(machine.pid))
    return [patch for process in shown["processes"] for patch in process["hotpatches"]]


def outcomes(rig: Rig, machine: Machine, deployment: str) -> list[dict[str, str]]:
    items = rig.plane.get(f"/devices/{machine.device}/outcomes")["items"]
    return [item for item in items if item["deployment"] == deployment]
