"""Kills the engine with SIGKILL at every one of its steps, and says what became of the target.

Run as ``python -m tests.live.kills FOLDER THREADS [STEP]``: prints a JSON document. Each engine is a forked child of
this process, so that a kill costs milliseconds; the children die by ``midflight.process.faults``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Armed before anything imports the points: the children only choose the step.
os.environ["MIDFLIGHT_KILL_LOG"] = os.devnull

from midflight.engine import integrity, journal, ledger
from midflight.engine.apply import apply
from midflight.engine.ledger import State
from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits
from midflight.process import faults
from midflight.process.linux import LinuxProcess
from tests.engine.handmade import Handmade, compile_c, leaf_frames, make, returns
from tests.live.harness import Target
from tests.live.programs import SENSITIVE

PATIENT = Limits(busy=60, stop=30, call=30)
Engine = Callable[[LinuxProcess, Files], object]


def killed_at(step: int, pid: int, engine: Engine) -> bool:
    """Run an engine that dies at ``step``; False when it had no such step and ended by itself."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faults._kill_at, faults._passed = str(step), 0
            with LinuxProcess(pid) as process, Files() as files:
                engine(process, files)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the engine failed by itself"
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def applies(hotpatch: Handmade) -> Engine:
    return lambda process, files: _good(apply(process, hotpatch, files, PATIENT).outcome, "applied")


def reverts(process: LinuxProcess, files: Files) -> None:
    _good(revert(process, files, PATIENT, lambda one: True).outcome, "reverted")


def recovers(process: LinuxProcess, files: Files) -> None:
    outcome = recover(process, files, PATIENT)
    assert outcome.outcome in ("recovered", "nothing"), outcome.reason


def _good(outcome: str, wanted: str) -> None:
    assert outcome == wanted, outcome


def mapped(pid: int) -> list[str]:
    """Code and constants of the address space; stacks and heap may grow."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "rw-p" not in line]


class Trial:
    """One target, killed over and over."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.before = mapped(target.pid)
        self.kills = 0
        self.steps: dict[str, int] = {}

    def answers(self, *allowed: str) -> None:
        """The target lives, was not disturbed, and does what it may do."""
        answer, other, errors, _ = self.target.ask().split()
        assert errors == "0", f"the target was disturbed {errors} times"
        assert f"{answer} {other}" in allowed, f"{answer} {other} is not one of {allowed}"

    def clean(self) -> State | None:
        """After a recovery everything is explained; the state of the hotpatch in force, if any."""
        with LinuxProcess(self.target.pid) as process, Files() as files:
            recovers(process, files)
            found = ledger.find(process)
            report = integrity.check(process)
        assert report.clean, report.differences
        assert all(one.state in (State.APPLIED, State.RETIRED) for one in found), found
        assert not any(a.pid == self.target.pid for a in journal.announced())
        return State.APPLIED if any(one.in_force for one in found) else None

    def undo(self) -> None:
        """Back to the beginning, and nothing left in the process."""
        with LinuxProcess(self.target.pid) as process, Files() as files:
            revert(process, files, PATIENT, lambda one: True)
            recovers(process, files)
            left = ledger.find(process)
        if not left:
            assert mapped(self.target.pid) == self.before

    def run(self, name: str, setup: Engine | None, engine: Engine, old: str, new: str, only: int | None) -> None:
        """Kill ``engine`` at each of its steps."""
        halves = {f"{a} {b}" for a in (old.split()[0], new.split()[0]) for b in (old.split()[1], new.split()[1])}
        step = only or 1
        while True:
            if setup is not None:
                with LinuxProcess(self.target.pid) as process, Files() as files:
                    setup(process, files)
            died = killed_at(step, self.target.pid, engine)
            # Each function runs its old or its new version, whatever was cut off.
            self.answers(*halves)
            self.clean()
            self.answers(old, new)
            self.undo()
            self.answers("1 10")
            if not died:
                break
            self.kills += 1
            step += 1
            if only:
                break
        self.steps[name] = step - 1

    def second_deaths(self, hotpatch: Handmade, steps: int) -> None:
        """The recovery from a death is killed, too."""
        for step in range(2, steps, 2):
            killed_at(step, self.target.pid, applies(hotpatch))
            for again in range(1, 200, 2):
                if not killed_at(again, self.target.pid, recovers):
                    break
                self.kills += 1
                self.answers("1 10", "2 10", "1 20", "2 20")
            self.clean()
            self.undo()
            self.answers("1 10")


def main(folder: Path, threads: str, only: int | None) -> None:
    """All operations on one target."""
    program = compile_c(folder, f"sensitive{threads}", SENSITIVE)
    code = {"answer": returns(2), "other": returns(20)}
    first = make(program, code, sequence=1)
    second = make(program, {"answer": returns(3)}, sequence=2)
    unwinding = make(program, code, "unwinding", eh_frame=leaf_frames(code))
    with Target.start(program, threads) as target:
        trial = Trial(target)
        trial.run("apply", None, applies(first), "1 10", "2 20", only)
        trial.run("revert", applies(first), reverts, "2 20", "1 10", only)
        trial.run("register", None, applies(unwinding), "1 10", "2 20", only)
        trial.run("deregister", applies(unwinding), reverts, "2 20", "1 10", only)
        trial.run("replace", applies(first), applies(second), "2 20", "3 10", only)
        if not only and threads == "0":
            trial.second_deaths(first, trial.steps["apply"])
        print(json.dumps({"kills": trial.kills, "steps": trial.steps, "answer": target.ask()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
