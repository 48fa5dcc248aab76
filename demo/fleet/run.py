"""The fleet's demonstration, step by step: ``make demo-fleet``, or ``python -m demo.fleet.run``.

Everything is made below a folder in /tmp that goes away at the end; network namespaces need root.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo.fleet import daemon
from demo.fleet.control import USER, ControlPlane, until
from demo.fleet.gateway import Gateway
from demo.fleet.load import Load
from demo.fleet.machines import SERVER, Machine, enroll_all
from demo.run import Story
from demo.server import DemoError

STEPS = 8
PORT, GATE = 18443, 18444


class FleetDemo:
    """One run."""

    def __init__(self, folder: Path, stack: ExitStack, as_json: bool) -> None:
        self.folder, self.stack = folder, stack
        self.story = Story(STEPS, sys.stderr if as_json else sys.stdout)
        self.figures: dict[str, Any] = {}

    def run(self) -> ControlPlane:
        """Tell the whole story; returns the server, which still runs."""
        story = self.story
        story.step("Build webd, a small web server with a real hole, its hotpatch, and a second hotpatch that is bad")
        builds = daemon.build(self.folder / "vendor")
        story.say(f"{daemon.CVE}: {daemon.EXPLOIT} runs over the name into the field beside it, and makes an admin.")
        self.start(builds)
        story.step("Three devices, each a network namespace with webd, an agent, and steady requests")
        self.enroll()
        self.show_hole()
        story.step("Publish the hotpatch: the offline keys sign, the server decides who gets it when")
        self.first_fix(builds)
        story.step("nginx asks the server about each device that comes")
        self.gate()
        story.step("Publish a bad hotpatch: with it, webd says that it is not well")
        self.bad_patch(builds)
        story.step("Somebody changes webd's code in the memory of one device")
        self.intruder()
        story.step("Publish webd 1.1, which has the fix built in: it needs a restart, and then no hotpatch")
        self.release(builds)
        return self.plane

    def start(self, builds: daemon.Builds) -> None:
        """The server: one command."""
        self.story.step("Start the server: one command, SQLite, no other service")
        self.machines = []
        for number in (1, 2, 3):
            self.machines.append(Machine(self.folder, number, builds.program))
            self.stack.callback(self.machines[-1].off)
            self.machines[-1].start_daemon()
        listen = f"{SERVER}:{PORT}"
        self.plane = ControlPlane(self.folder / "server", f"https://{listen}", (listen,))
        self.story.show(f"$ midflight server init DIR --listen {listen}\n$ midflight server run DIR", bright=True)
        self.plane.start()
        self.stack.callback(self.plane.kill)
        self.plane.wait()
        self.plane.sign_in()
        self.plane.trust_vendor(builds.key)
        folder = self.folder / "nginx"
        self.gateway = Gateway(folder, self.plane.folder, (listen,), GATE, self.plane.gate_token(), None)
        self.stack.callback(self.gateway.stop)
        self.story.say("Its offline keys are moved to where it cannot read them: it can withhold code, never make any.")

    def enroll(self) -> None:
        """The devices."""
        self.story.show("$ midflight agent enroll --server URL --token T --pin PIN\n$ midflight agent run", bright=True)
        enroll_all(self.machines, self.plane.url, self.plane.invite(len(self.machines)), self.plane.pin)
        until(lambda: all(line["last_seen"] for line in self.plane.get("/devices")["items"]), "all devices reported")
        ids = [machine.device for machine in self.machines]
        self.policy = self.plane.make_policy(ids, ids[:1])
        self.loads = [Load(machine.network) for machine in self.machines]
        for load in self.loads:
            self.stack.callback(load.stop)
        self.begun = {machine.name: machine.pid for machine in self.machines}
        self.story.say("Policy: ring 1 is web-1; its gate takes no failure; ring 2 is all others.")

    def show_hole(self) -> None:
        """Try it."""
        for machine in self.machines:
            verdict = "VULNERABLE" if machine.vulnerable else "fixed"
            self.story.show(f"{machine.name}: {machine.ask(daemon.EXPLOIT)}   {verdict}")

    def first_fix(self, builds: daemon.Builds) -> None:
        """Through the rings."""
        plane, story, first = self.plane, self.story, self.machines[0]
        story.show("$ midflight repo add … && midflight repo sign … && midflight repo publish …", bright=True)
        began = time.monotonic()
        deployment = plane.deploy(plane.publish(builds.fix, 1), self.policy)
        until(lambda: not first.vulnerable, "ring 1 is patched")
        story.say(f"{time.monotonic() - began:.0f} s: ring 1 (web-1) is fixed; ring 2 waits for its gate")
        if not all(machine.vulnerable for machine in self.machines[1:]):
            raise DemoError("ring 2 did not wait for ring 1")
        until(lambda: not any(machine.vulnerable for machine in self.machines), "ring 2 is patched")
        story.say(f"{time.monotonic() - began:.0f} s: ring 2 is fixed")
        self.show_hole()
        until(lambda: plane.effective(deployment)[0] == "done", "the deployment is done")
        self.figures["rollout_s"] = round(time.monotonic() - began, 1)

    def gate(self) -> None:
        """All may in."""
        wanted = {"compliant"}
        until(lambda: {state for state, _ in self.plane.compliance().values()} == wanted, "all are compliant")
        self.show_visits()

    def show_visits(self) -> dict[str, int]:
        """Who is let in; returns the answers."""
        answers = {}
        for machine in self.machines:
            answers[machine.name], reason = machine.visit(self.gateway.url)
            self.story.show(f"{machine.name} -> nginx: {answers[machine.name]} ({reason})")
        return answers

    def bad_patch(self, builds: daemon.Builds) -> None:
        """It stops by itself, and goes by itself."""
        plane, story, first = self.plane, self.story, self.machines[0]
        deployment = plane.deploy(plane.publish(builds.careless, 2), self.policy)
        until(lambda: first.ask("/health") == "503", "the bad hotpatch is in ring 1")
        story.say("web-1 has it, and its health probe fails")
        until(lambda: first.ask("/health") == "200", "it is taken out by itself")
        story.say("web-1 took it out again by itself, and bars it; the first fix stands")
        until(lambda: plane.effective(deployment)[0] == "done", "the server stops it")
        states = plane.states(deployment)
        for machine in self.machines:
            story.show(f"{machine.name}: {states[machine.device]}")
        story.say(f"the deployment: {' because of '.join(plane.effective(deployment))}; ring 2 never got it")
        if [states[machine.device] for machine in self.machines[1:]] != ["pending", "pending"] or first.vulnerable:
            raise DemoError(f"the bad hotpatch was not stopped at ring 1: {states}")
        self.figures["restarted"] = {machine.name: machine.pid for machine in self.machines} != self.begun
        for load in self.loads:
            load.stop()
        self.figures["requests"] = sum(load.requests for load in self.loads)
        self.figures["failed"] = sum(len(load.failed) for load in self.loads)
        self.figures["slowest_ms"] = round(1000 * max(load.slowest for load in self.loads), 1)

    def intruder(self) -> None:
        """Tampering is no compliance."""
        machine = self.machines[2]
        machine.tamper()
        wanted = ("noncompliant", "integrity_violated")
        until(lambda: self.plane.compliance()[machine.device] == wanted, "it is noticed")
        self.story.say("its agent compared memory with disk and ledger, and the server knows")
        if self.show_visits() != {"web-1": 200, "web-2": 200, "web-3": 403}:
            raise DemoError("nginx let the wrong ones in")

    def release(self, builds: daemon.Builds) -> None:
        """Baseline."""
        deployment = self.plane.deploy(self.plane.publish_baseline(builds.release, 3), self.policy)
        until(lambda: self.plane.effective(deployment)[0] == "done", "the release runs on all devices")
        wanted = {("compliant", "up_to_date_restarted")}
        until(lambda: set(self.plane.compliance().values()) == wanted, "all are compliant by their baseline")
        self.show_hole()
        if set(self.show_visits().values()) != {200} or any(machine.vulnerable for machine in self.machines):
            raise DemoError("not every device is well with the release")

    def summary(self) -> None:
        """Figures; fails when something was not as it should be."""
        figures = self.figures
        figures["seconds"] = round(time.monotonic() - self.story.started)
        rows = [
            ("from published to all devices", f"{figures['rollout_s']:.0f} s, through two rings"),
            ("requests until the restart", f"{figures['requests']:,}"),
            ("requests that failed", f"{figures['failed']:,}"),
            ("slowest answer of all", f"{figures['slowest_ms']:.1f} ms"),
            ("the bad hotpatch", "stopped at ring 1, taken out by itself"),
            ("the tampered device", "refused by nginx until it was restarted"),
            ("this demo", f"{figures['seconds']} s"),
        ]
        for label, text in rows:
            self.story.row(label, text)
        if figures["failed"] or figures["restarted"]:
            raise DemoError("requests failed, or a daemon was restarted before its time")


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="end by itself, and print the figures as JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: the fleet's part makes network namespaces, which needs root; it is left out", file=sys.stderr)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="midflight-fleet-"))
    folder.chmod(0o755)
    try:
        with ExitStack() as stack:
            demo = FleetDemo(folder, stack, options.json)
            plane = demo.run()
            demo.summary()
            if options.json:
                print(json.dumps(demo.figures))
            elif sys.stdin.isatty() and sys.stdout.isatty():
                demo.story.say(
                    f"The console: {plane.url}/ (its certificate is its own), user {USER}, "
                    f"password {plane.password} (made for this run). Ctrl-C or ENTER ends everything."
                )
                select.select([sys.stdin], [], [])
    except (DemoError, RuntimeError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: ended", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
