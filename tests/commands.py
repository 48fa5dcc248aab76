"""Runs ``midflight`` as a user does, on Linux and in the Windows Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIDFLIGHT = (sys.executable, "-m", "midflight")
PATIENCE = 60.0
"""Seconds before a target that says nothing is declared dead; far beyond what any machine needs."""


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
