"""Builds small programs, starts them, and patches them with the commands that a user has.

A scenario is two versions of a source, a program that says what it does (its own output is the assertion), and the
commands ``midflight build``, ``apply``, ``check``, ``revert``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.commands import PATIENCE, Ran, midflight


@dataclass(frozen=True)
class Lab:
    """A folder with a signing key, in which programs and hotpatches are built."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "key.key"

    @property
    def trust(self) -> Path:
        """The public key."""
        return self.folder / "key.pub"

    @classmethod
    def create(cls, folder: Path) -> Lab:
        """Make the key."""
        folder.mkdir(parents=True, exist_ok=True)
        midflight("keygen", folder / "key")
        return cls(folder)

    def tree(self, name: str, files: Mapping[str, str]) -> Path:
        """Write a source tree."""
        root = self.folder / name
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    def fix(
        self,
        name: str,
        before: Mapping[str, str],
        after: Mapping[str, str],
        make: str = "cc -O2 -pthread -o target target.c",
        image: str = "target",
        sequence: int = 1,
        options: Sequence[str] = (),
        status: int | None = 0,
        reviewed: str | None = None,
    ) -> Fix:
        """Build the program that runs, and the hotpatch from ``before`` to ``after`` (files that change) for it.

        ``reviewed``: the fix must ask for sign-offs, and this is the reason that a reviewer gives for each of them.
        """
        source = self.tree(f"{name}/source", before)
        fixed = self.tree(f"{name}/fixed-{sequence}", {**before, **after})
        running = self.folder / name / "running"
        if not running.exists():
            # At a path of its own, as a distribution would have built it.
            shutil.copytree(source, running)
            subprocess.run(["sh", "-ec", make], cwd=running, check=True, capture_output=True)
        out = self.folder / name / f"{sequence}.hotpatch"
        words: list[str | Path] = [
            "build", "--source", source, "--fix", fixed, "--make", make, "--image", image, "--running", running / image,
            "--name", name, "--sequence", str(sequence), "--key", self.key, "-o", out, "--json", *options,
        ]  # fmt: skip
        if reviewed is not None:
            found = midflight(*words, status=3).json["report"]["findings"]
            asked = {(item["code"], item["symbol"]) for item in found if item["kind"] == "sign-off"}
            assert asked and not [item for item in found if item["kind"] == "refusal"], found
            words += ["--reviewer", "A Tester <tester@example.org>"]
            words += [word for code, symbol in asked for word in ("--override", f"{code}:{symbol}={reviewed}")]
        return Fix(self, running / image, out, midflight(*words, status=status))


@dataclass(frozen=True)
class Fix:
    """A program that runs, and a hotpatch for it."""

    lab: Lab
    image: Path
    hotpatch: Path
    built: Ran

    def apply(self, *pids: int, options: Sequence[str] = (), status: int | None = 0) -> Any:
        """``midflight apply``; returns its JSON."""
        words = [word for pid in pids for word in ("--pid", str(pid))]
        ran = midflight("apply", self.hotpatch, "--trust", self.lab.trust, "--json", *words, *options, status=status)
        return ran.json

    def revert(self, *pids: int, options: Sequence[str] = (), status: int | None = 0) -> Any:
        """``midflight revert``; returns its JSON."""
        words = [word for pid in pids for word in ("--pid", str(pid))]
        return midflight("revert", self.hotpatch, "--json", *words, *options, status=status).json


def check(*pids: int, status: int | None = 0) -> Any:
    """``midflight check``; returns its JSON."""
    return midflight("check", "--json", *(word for pid in pids for word in ("--pid", str(pid))), status=status).json


@dataclass
class Target:
    """A running program: lines in on its standard input, lines out on its standard output."""

    process: subprocess.Popen[bytes]
    _buffer: bytes = field(default=b"")

    @classmethod
    def start(cls, program: Path, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Target:
        """Start a program; it must print a line when it is ready, which is read here."""
        process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            **options,
        )
        target = cls(process)
        assert target.line() == "ready"
        return target

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the target says nothing (pid {self.pid}, so far {self._buffer!r})"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the target ended with status {self.process.wait(10)} ({self._buffer!r})"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def ask(self, question: str = "") -> str:
        """Send a line, and return the line that comes back."""
        assert self.process.stdin is not None
        self.process.stdin.write(question.encode() + b"\n")
        self.process.stdin.flush()
        return self.line()

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End it; returns its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal_number)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return self.process.returncode

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


ASK = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* One line in, one line out, for ever; what the line is, the scenario says. */
static void answer(const char *line);
int main(int argc, char **argv) {
  char line[256];
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) { line[strcspn(line, "\n")] = 0; answer(line); }
  return 0;
}
"""
"""The frame of a target that answers questions: define ``static void answer(const char *line)`` after it."""
