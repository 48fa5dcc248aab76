"""Starts the programs that ``tests.wine.build`` made, asks them, and patches them with the commands that a user has."""

from __future__ import annotations

import queue
import subprocess
import threading
from functools import partial
from pathlib import Path

from midflight.engine import integrity, journal, ledger
from midflight.engine.apply import apply
from midflight.engine.ledger import State
from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits, Outcome
from midflight.patch.hotpatch import Hotpatch, read_hotpatch
from midflight.process.windows import WindowsProcess
from midflight.trust.keys import load_public_key
from tests import commands
from tests.commands import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "wine"


midflight = partial(commands.midflight, timeout=240)


def hotpatch_file(name: str) -> Path:
    """A hotpatch that ``tests.wine.build`` made."""
    return PROGRAMS / f"{name}.hotpatch"


TRUST = ("--trust", PROGRAMS / "test.pub")


def load(name: str) -> Hotpatch:
    """The same, read and verified."""
    return read_hotpatch(hotpatch_file(name), [load_public_key(PROGRAMS / "test.pub")])


def applied(target: Target, hotpatch: Hotpatch, limits: Limits | None = None) -> Outcome:
    """Put it in, by the engine itself; it must work."""
    with WindowsProcess(target.pid) as process, Files() as files:
        outcome = apply(process, hotpatch, files, limits or Limits(busy=30))
    assert outcome.outcome == "applied", outcome
    return outcome


def reverted(target: Target) -> Outcome:
    """Take everything out; it must work."""
    with WindowsProcess(target.pid) as process, Files() as files:
        outcome = revert(process, files, Limits(busy=30), lambda _: True)
    assert outcome.outcome == "reverted", outcome
    return outcome


def recovered(target: Target) -> str:
    """Finish or undo what a killed engine left; it must work."""
    with WindowsProcess(target.pid) as process, Files() as files:
        outcome = recover(process, files, Limits(busy=30))
    assert outcome.outcome in ("recovered", "nothing"), outcome
    return outcome.reason


def refused(target: Target, hotpatch: Hotpatch, limits: Limits | None = None) -> str:
    """The reason why it does not go in; nothing of it stays in the process."""
    with WindowsProcess(target.pid) as process, Files() as files:
        before = len(ledger.find(process))
        outcome = apply(process, hotpatch, files, limits or Limits(busy=0.3))
        assert outcome.outcome in ("failed", "skipped"), outcome
        assert len(ledger.find(process)) == before
    return outcome.reason


def clean(target: Target) -> None:
    """Every byte of code is explained, and nothing is left half-done or announced."""
    with WindowsProcess(target.pid) as process:
        report = integrity.check(process)
        assert report.clean, (report.differences, report.unreadable)
        ledgers = ledger.find(process)
        assert all(one.state in (State.APPLIED, State.RETIRED) for one in ledgers)
        maps = process.maps()
        assert not [m for m in maps if m.writable and m.executable], "code was left open to writing"
        assert not [m for m in maps if m.writable and m.start in [one.base for one in ledgers]]
    assert not any(one.pid == target.pid for one in journal.announced())


def kept(target: Target) -> int:
    """How many hotpatches have memory in the process."""
    with WindowsProcess(target.pid) as process:
        return len(ledger.find(process))


class Target:
    """A running target: one line in, one line out."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [str(PROGRAMS / program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=(PROGRAMS / program).parent,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self.line() == "ready"

    def _listen(self) -> None:
        # Pipes of Windows cannot be waited for with a time limit.
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\r\n"))

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def line(self) -> str:
        """The next line of its output."""
        try:
            return self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"the target says nothing (pid {self.pid}, status {self.process.poll()})") from None

    def ask(self, question: str = "") -> str:
        """Send a line, and return the line that comes back."""
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.line()

    def stop(self) -> int:
        """End it; returns its status."""
        self.process.kill()
        return self.process.wait(10)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
