"""Runs the command line as a user would: as a process of its own, with its JSON report read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.building import CACHE, Prepared
from tests.corpus.model import AnyCase

REVIEWER = "Corpus Reviewer <reviewer@corpus.example>"
"""Who answers for the reasons in ``Case.reviewed``."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one command said."""

    command: str
    status: int
    document: Any
    errors: str

    def __str__(self) -> str:
        """For the message of a failed test."""
        shown = json.dumps(self.document, indent=1)
        return f"{self.command} ended with {self.status}\n{self.errors[-3000:]}\n{shown[:6000]}"


def midflight(*words: str | Path) -> Report:
    """Run one command with ``--json``: whatever its exit status, it must print JSON, and no traceback."""
    command = ["midflight", *map(str, words), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *command], check=False, capture_output=True, text=True, errors="replace", timeout=1500
    )
    shown = " ".join(command)
    assert "Traceback" not in done.stderr, f"{shown}: {done.stderr}"
    assert done.stdout.strip(), f"{shown} printed no JSON: {done.stderr}"
    return Report(shown, done.returncode, json.loads(done.stdout), done.stderr)


def build(case: AnyCase, ready: Prepared, output: Path, key: Path) -> Report:
    """Make the hotpatch of a case for the production image that runs."""
    return midflight(
        *("build", *ready.words, *(("--cve", case.cve) if case.cve.startswith("CVE-") else ())),
        *("-o", output, "--key", key, "--cache", CACHE / "forge"),
        *(("--reviewer", REVIEWER) if case.reviewed else ()),
        *(word for finding, reason in case.reviewed.items() for word in ("--override", f"{finding}={reason}")),
    )


def on_processes(command: str, pids: Sequence[int]) -> list[str]:
    """The words of a command that name processes."""
    return [command, *(word for pid in pids for word in ("--pid", str(pid)))]
