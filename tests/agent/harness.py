"""Starts the agent as a user does, with folders of its own, and waits for what can be seen of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.commands import MIDFLIGHT, PATIENCE, midflight, until
from tests.live.harness import ASK

PROGRAM = (
    ASK
    + r"""
__attribute__((noinline)) int value(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
static void answer(const char *line) {
  if (!strcmp(line, "crash")) *(volatile int *)8 = 0;
  printf("%d\n", value(1));
}
"""
)
"""Answers 1 until its fix makes that 2, and crashes when it is asked to."""


def fill(path: Path) -> None:
    """Take all the space that there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * (1 << 20)):
                pass
        except OSError:
            pass
        try:
            while file.write(b"\0" * 512):
                pass
        except OSError:
            pass


class RunningAgent:
    """An agent in the foreground: its folders are below ``home``, and stay when it is started again."""

    def __init__(self, home: Path, trust: Path, settings: str = "", before: Sequence[str] = ()) -> None:
        self.home, self._trust, self._before = home, trust, before
        self.folder = home / "hotpatches"
        self.environment = {"MIDFLIGHT_STATE": str(home / "state"), "MIDFLIGHT_CONFIG": str(home / "config")}
        self.folder.mkdir(parents=True, exist_ok=True)
        (home / "config").mkdir(exist_ok=True)
        (home / "config" / "agent.toml").write_text(settings)
        self.log = home / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        """Start it, and wait until it has looked at its orders."""
        said = self.log.read_text().count("orders: in force") if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._before, *MIDFLIGHT, "agent", "run", "--folder", str(self.folder), "--trust", str(self._trust)],
                env={**os.environ, **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: self.log.read_text().count("orders: in force") > said or self.ended(), "started")
        assert not self.ended(), self.log.read_text()

    def ended(self) -> bool:
        """Whether it is not there any more."""
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns its status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def order(self, hotpatch: Path, name: str = "") -> Path:
        """Put a hotpatch into the folder, as the documentation says."""
        final = self.folder / (name or hotpatch.name)
        shutil.copy(hotpatch, self.folder / "new.tmp")
        return (self.folder / "new.tmp").rename(final)

    def says(self, text: str) -> bool:
        """Whether it has told that."""
        return text in self.log.read_text()

    def ask(self, *words: str, status: int | None = 0) -> Any:
        """``midflight agent …``; returns its JSON."""
        return midflight("agent", *words, "--json", status=status, env=self.environment).json

    def __enter__(self) -> RunningAgent:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self.log.read_text())
        if not self.ended():
            self.stop()
        assert "internal error" not in self.log.read_text(), self.log.read_text()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
