"""A fleet for tests: PostgreSQL, two API processes and a worker behind nginx, and three devices with a daemon each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.fleet.control import ControlPlane, until
from demo.fleet.daemon import Builds
from demo.fleet.gateway import Gateway
from demo.fleet.load import Load
from demo.fleet.machines import SERVER, Machine, enroll_all
from tests.server.postgresql import PostgreSQL

API = ("127.0.0.1:19441", "127.0.0.1:19442")
FRONT, GATE = 19443, 19444


@dataclass
class Rig:
    """All of it, up and running; the devices are enrolled and in a policy with two rings."""

    plane: ControlPlane
    database: PostgreSQL
    gateway: Gateway
    machines: list[Machine]
    loads: list[Load]
    policy: str

    @property
    def canary(self) -> Machine:
        """The device that is first."""
        return self.machines[0]

    @property
    def others(self) -> list[Machine]:
        """The devices of the second ring."""
        return self.machines[1:]

    def served(self) -> None:
        """Every request until now was answered, and right."""
        for machine, load in zip(self.machines, self.loads, strict=True):
            assert load.failed == [], f"{machine.name}: {load.failed[:3]} of {load.requests}"
            assert load.requests > 20

    def done(self, deployment: str) -> None:
        """Wait until a deployment is through."""
        until(lambda: self.plane.effective(deployment)[0] == "done", "the deployment is done")


@contextmanager
def running(folder: Path, builds: Builds) -> Iterator[Rig]:
    """The fleet; whatever happens, nothing of it is left."""
    with ExitStack() as stack:
        folder.chmod(0o755)
        database = PostgreSQL(fsync=True)
        stack.callback(database.remove)
        machines = []
        for number in (1, 2, 3):
            machines.append(Machine(folder, number, builds.program))
            stack.callback(machines[-1].off)
            machines[-1].start_daemon()
        plane = ControlPlane(
            folder / "server", f"https://{SERVER}:{FRONT}", API, database.create(), proxied=True
        )  # fmt: skip
        gateway = Gateway(folder / "nginx", plane.folder, API, GATE, plane.gate_token(), FRONT)
        stack.callback(gateway.stop)
        plane.start()
        stack.callback(plane.kill)
        plane.wait()
        plane.sign_in()
        plane.trust_vendor(builds.key)
        enroll_all(machines, plane.url, plane.invite(len(machines)), plane.pin)
        until(lambda: all(line["last_seen"] for line in devices(plane)), "all devices have reported")
        policy = plane.make_policy([machine.device for machine in machines], [machines[0].device])
        loads = [Load(machine.network) for machine in machines]
        for load in loads:
            stack.callback(load.stop)
        try:
            yield Rig(plane, database, gateway, machines, loads, policy)
        except BaseException:
            # what a failure is understood by; pytest shows it with that alone
            for file in (plane.log, *(machine.log for machine in machines)):
                print(f"--- {file}\n{file.read_text()[-3000:]}")
            raise


def devices(plane: ControlPlane) -> list[dict[str, object]]:
    """All of them, as the API shows them."""
    found: list[dict[str, object]] = plane.get("/devices")["items"]
    return found
