"""Killed servers, a killed database, killed agents, a pulled cable, all in the middle of a rollout: nothing is lost,
and nothing is done twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from demo.fleet import daemon
from demo.fleet.control import until
from tests.fleet.rig import API, Rig, running

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(900)]


def test_a_rollout_survives_everything(builds: daemon.Builds, tmp_path: Path) -> None:
    with running(tmp_path, builds) as rig:
        plane, canary, (second, third) = rig.plane, rig.canary, rig.others
        third.cut()
        deployment = plane.deploy(plane.publish(builds.fix, 1), rig.policy)
        plane.kill()  # every process of the server, as it begins
        plane.start()
        until(lambda: not canary.vulnerable, "the first ring is patched by a server that was killed")
        canary.kill_agent()  # before or after it could tell
        rig.database.stop(signal.SIGQUIT)
        rig.database.start()
        canary.start_agent()
        plane.kill(API[0], "worker")
        until(lambda: plane.states(deployment)[canary.device] == "applied", "one process alone hears the outcome")
        plane.start()
        second.kill_agent()
        second.start_agent()
        until(lambda: not second.vulnerable, "the second ring is patched")
        assert third.vulnerable, "nobody reaches it"
        assert plane.effective(deployment)[0] == "offering", "nothing is said to be done that is not"
        third.cut(off=False)
        until(lambda: not third.vulnerable, "the one that was cut off is patched")
        rig.done(deployment)
        nothing_twice(rig, deployment)
        rig.served()


def nothing_twice(rig: Rig, deployment: str) -> None:
    plane = rig.plane
    assert plane.states(deployment) == {machine.device: "applied" for machine in rig.machines}
    for machine in rig.machines:
        items = plane.get(f"/devices/{machine.device}/outcomes")["items"]
        assert [item["result"] for item in items if item["deployment"] == deployment] == ["applied"]
        ledger = machine.midflight("status", "--pid", str(machine.pid))["processes"]
        applied = [(one["name"], one["sequence"]) for process in ledger for one in process["hotpatches"]]
        assert applied == [("webd", 1)], "in memory once"
        assert machine.log.read_text().count("webd 1 in process") <= 1, "and applied once"
    events = plane.get("/events?limit=500")["items"]
    for kind, count in (("patch.applied", 3), ("patch.offered", 3), ("deployment.created", 1)):
        assert [event["kind"] for event in events].count(kind) == count
