"""Runs ``midflight`` as a user does, on Linux and in the Windows Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIDFLIGHT = (sys.executable, "-m", "midflight")
PATIENCE = 60.0
"""Seconds before a target that says nothing is declared dead; far beyond what any machine needs."""


def until(what: Callable[[], Any], wanted: str | Callable[[], str]) -> Any:
    """Wait for something to be true; returns it. ``wanted``: what is said when it does not become so."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, f"not {wanted if isinstance(wanted, str) else wanted()}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Ran:
    """One finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its JSON document."""
        return json.loads(self.out)


def midflight(
    *words: str | Path, status: int | None = 0, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Ran:
    """Run ``midflight``; fails unless it ends with ``status`` (None: any) in time, and on any traceback."""
    done = subprocess.run(
        [*MIDFLIGHT, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in ran.err, ran.err
    assert status is None or ran.status == status, f"{words}: status {ran.status}\n{ran.out}\n{ran.err}"
    return ran
