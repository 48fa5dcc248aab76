"""Runs the commands that tell whether the machine is well: any exit status but 0, or none in time, says that it is
not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence


def start_probe(command: str, pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a shell command (of cmd on Windows) with the patched processes in MIDFLIGHT_PIDS.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        command if sys.platform == "win32" else ["sh", "-c", command],
        shell=sys.platform == "win32",
        env={**os.environ, "MIDFLIGHT_PIDS": " ".join(map(str, pids))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_probe(probe: subprocess.Popen[bytes]) -> None:
    """End a probe, and what it started where the system can tell."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            probe.kill()
        else:
            os.killpg(probe.pid, 9)
    probe.wait()


def why_failed(command: str, status: int) -> str:
    """In words."""
    return f"{command!r} ended with status {status}"


def run_probes(commands: Sequence[str], pids: Sequence[int], timeout: float) -> str | None:
    """Run probes one after the other, and wait for each up to ``timeout`` seconds; why one failed, or None.

    Raises:
        OSError: one cannot be started.
    """
    for command in commands:
        probe = start_probe(command, pids)
        try:
            status = probe.wait(timeout)
        except subprocess.TimeoutExpired:
            end_probe(probe)
            return why_late(command, timeout)
        except BaseException:
            end_probe(probe)
            raise
        if status:
            return why_failed(command, status)
    return None


def why_late(command: str, timeout: float) -> str:
    """In words."""
    return f"{command!r} did not end within {timeout:g} s"


class ProbeRound:
    """The same without waiting: ``step`` is called from time to time until it says what came of it."""

    def __init__(self, commands: Sequence[str], pids: Sequence[int], timeout: float) -> None:
        self._commands, self._pids, self._timeout = list(commands), pids, timeout
        self._running: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0

    def step(self) -> str | None:
        """None: still at it; "": all is well; otherwise why a probe failed."""
        while True:
            if self._running is None:
                if not self._commands:
                    return ""
                try:
                    self._running = start_probe(self._commands[0], self._pids)
                except OSError as error:
                    return f"{self._commands[0]!r} cannot be started ({error.strerror})"
                self._deadline = time.monotonic() + self._timeout
            status = self._running.poll()
            if status is None:
                if time.monotonic() < self._deadline:
                    return None
                self.close()
                return why_late(self._commands[0], self._timeout)
            self._running = None
            command = self._commands.pop(0)
            if status:
                return why_failed(command, status)

    def close(self) -> None:
        """End what runs."""
        if self._running is not None:
            end_probe(self._running)
            self._running = None
