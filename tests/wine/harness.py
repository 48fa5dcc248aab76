"""Starts the programs that ``tests.wine.build`` made, asks them, and patches them with the commands that a user has."""

from __future__ import annotations

import queue
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "wine"
PATIENCE = 60.0
"""Seconds before a target that says nothing is declared dead; far beyond what any machine needs."""


class Target:
    """A running target: one line in, one line out."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [str(PROGRAMS / program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROGRAMS,
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
