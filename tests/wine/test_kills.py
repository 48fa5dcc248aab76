"""The engine is ended by TerminateProcess at every one of its steps: the target goes on, and what was left half-done is
finished or undone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from midflight.process import guardian, suspended
from tests.wine.harness import Target, applied, clean, hotpatch_file, load, midflight, recovered, reverted

pytestmark = pytest.mark.timeout(1500)
KILLED = 15
"""The exit status that os.kill gives."""


DOOMED = """
import os, sys
step, pid, *hotpatch = sys.stdin.readline().split("|")[:-1]
os.environ["MIDFLIGHT_KILL_AT"] = step
from midflight.engine.apply import apply
from midflight.engine.modules import Files
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits
from midflight.patch.hotpatch import read_unverified
from midflight.process.windows import WindowsProcess
with WindowsProcess(int(pid)) as process, Files() as files:
    if hotpatch:
        outcome = apply(process, read_unverified(*hotpatch), files, Limits(busy=30))
    else:
        outcome = revert(process, files, Limits(busy=30), lambda _: True)
assert outcome.outcome in ("applied", "reverted"), outcome
"""
"""An engine without its command line, which takes most of the time."""


class Doomed:
    """Engines that end at a step. The next one starts while the last one's traces are cleared away: under Wine, that a
    process starts takes longer than what it does here."""

    def __init__(self) -> None:
        self._next = self._started()

    def _started(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", DOOMED], stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def die(self, step: int, target: Target, *hotpatch: Path) -> bool:
        """Run one that ends at a step; False when it had no such step and went to its end."""
        one, self._next = self._next, self._started()
        words = [str(step), str(target.pid), *map(str, hotpatch)]
        said = one.communicate("".join(f"{word}|" for word in words) + "\n", timeout=120)
        assert one.returncode in (0, KILLED), (one.returncode, said)
        return one.returncode == KILLED

    def __enter__(self) -> Doomed:
        return self

    def __exit__(self, *_: object) -> None:
        self._next.kill()
        self._next.communicate()


def settle(target: Target, *allowed: str) -> None:
    """Each function runs its old or its new version, after a recovery both run the same; and then nothing is left."""
    halves = {f"{a} {b} 0" for a in ("1", "2") for b in ("10", "20")}
    assert target.ask() in halves
    recovered(target)
    assert target.ask() in allowed
    clean(target)


@pytest.mark.parametrize(
    ("program", "name"), [("threads.exe", "both2"), ("hotprologue.exe", "hotpatch2")], ids=["near", "hotpatch"]
)
def test_every_step_of_an_apply(program: str, name: str, record_property: Callable[[str, object], None]) -> None:
    with Target(program, "3") as target, Doomed() as engines:
        step = 1
        while engines.die(step, target, hotpatch_file(name)):
            settle(target, "1 10 0", "2 20 0")
            if target.ask() == "2 20 0":
                reverted(target)
                recovered(target)
            assert target.ask() == "1 10 0"
            step += 1
        assert target.ask() == "2 20 0"
        clean(target)
        assert step > 20, "there are more steps than that"
        record_property("figures of kills", {"kills of an apply": step - 1})


def test_every_step_of_a_revert(record_property: Callable[[str, object], None]) -> None:
    with Target("threads.exe", "3") as target, Doomed() as engines:
        step = 1
        while True:
            applied(target, load("both2"))
            if not engines.die(step, target):
                break
            settle(target, "1 10 0", "2 20 0")
            if target.ask() == "2 20 0":
                reverted(target)
            recovered(target)
            assert target.ask() == "1 10 0"
            step += 1
        assert target.ask() == "1 10 0"
        clean(target)
        assert step > 15, "there are more steps than that"
        record_property("figures of kills", {"kills of a revert": step - 1})


def test_engine_and_guardian_are_both_killed() -> None:
    code = (
        "import os, sys, signal\n"
        "from midflight.process import guardian\n"
        "from midflight.process.windows import WindowsProcess\n"
        "stop = WindowsProcess(int(sys.argv[1])).stop(1).__enter__()\n"
        "guardian._started.kill(); guardian._started.wait()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    with Target("threads.exe", "5") as target:
        done = subprocess.run([sys.executable, "-c", code, str(target.pid)], timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == KILLED
        assert target.process.stdin is not None
        target.process.stdin.write("\n")
        target.process.stdin.flush()
        time.sleep(0.5)
        assert target._lines.empty(), "it was not stopped at all"
        said = midflight("recover", "--pid", str(target.pid)).out
        assert "6 threads" in said, said
        assert target.line() == "1 10 0"
        assert not suspended.left(pid=target.pid)


def test_a_stop_that_does_not_end_is_ended_by_the_guardian() -> None:
    code = (
        "import sys, time\n"
        "from midflight.process.windows import WindowsProcess\n"
        "with WindowsProcess(int(sys.argv[1])).stop(1):\n"
        "    time.sleep(100)\n"
    )
    with Target("threads.exe", "2") as target:
        done = subprocess.run([sys.executable, "-c", code, str(target.pid)], timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == guardian.STUCK
        assert target.ask() == "1 10 0"
        assert not suspended.left(pid=target.pid)


def test_a_thread_that_the_program_itself_suspended_stays_so() -> None:
    """The record knows how often a thread was suspended before us."""
    import ctypes

    from midflight.process.win32 import THREAD_STOP, api
    from midflight.process.windows import WindowsProcess

    with Target("threads.exe", "2") as target, WindowsProcess(target.pid) as process:
        handles = process.thread_handles(THREAD_STOP)
        _, handle = handles[-1]
        api().SuspendThread(handle)
        with process.stop(1.0) as stopped:
            assert len(stopped.threads) == 3
            left = suspended.left(owner=suspended.owner_of_this())
            assert len(left) == 1
            # Somebody else lets go what we hold: as the guardian would.
            rows = left[0].read_bytes()
        assert rows.startswith(b"MFSTOP")
        assert api().SuspendThread(handle) == 1, "our stop changed what the program had done"
        api().ResumeThread(handle)
        api().ResumeThread(handle)
        for _, one in handles:
            api().CloseHandle(one)
        assert target.ask() == "1 10 0"
        assert ctypes.sizeof(ctypes.c_void_p) == 8 and os.name == "nt"
