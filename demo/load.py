"""The steady load on the server: wrk, and what it counted."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from demo.server import DemoError

CONNECTIONS = 16
LONGEST = 3600
"""Seconds after which the load ends by itself."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What wrk counted. Times in seconds."""

    requests: int
    answers: int
    wrong: int
    connect: int
    read: int
    write: int
    timeout: int
    status: int
    seconds: float
    slowest: float
    typical: float

    @property
    def failed(self) -> int:
        """Requests that did not get their right answer, for whatever reason."""
        return self.connect + self.read + self.write + self.timeout + max(self.wrong, self.status)


class Load:
    """wrk, asking all the time; a context manager that ends it."""

    def __init__(self, port: int) -> None:
        wrk = shutil.which("wrk")
        if wrk is None:
            raise DemoError("wrk is missing; install it with: apt-get install wrk")
        script = Path(__file__).with_name("load.lua")
        # Two seconds without an answer count as a failure.
        command = [wrk, "-t", "1", "-c", str(CONNECTIONS), "-d", str(LONGEST), "--timeout", "2s", "-s", str(script)]
        self._process = subprocess.Popen(
            [*command, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._since = time.monotonic()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise when the load has ended by itself."""
        if self._process.poll() is not None:
            raise DemoError(f"wrk ended early: {self._process.communicate()[0].strip()}")

    def finish(self) -> LoadReport:
        """End the load and return what it counted."""
        self.check()
        self._process.send_signal(signal.SIGINT)  # wrk then prints its report
        output, _ = self._process.communicate(timeout=30)
        counted = [line for line in output.splitlines() if line.startswith("{")]
        if not counted:
            raise DemoError(f"wrk gave no report: {output.strip()}")
        return LoadReport(**json.loads(counted[-1]))
