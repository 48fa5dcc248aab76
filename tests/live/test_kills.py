"""The engine is killed at every one of its steps; the target never notices, and recovery ends in a clean state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The reports of targets with several sets of threads."""
    return [_report(tmp_path_factory.mktemp("kills"), threads) for threads in ("0", "5", "12")]


def _report(folder: Path, threads: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.live.kills", str(folder), threads], capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def test_no_target_is_lost_whenever_the_engine_dies(killed: list[dict[str, object]]) -> None:
    total = sum(int(str(report["kills"])) for report in killed)
    print(f"{total} kills: {killed}")
    assert total >= 500


def test_every_operation_was_killed_at_many_steps(killed: list[dict[str, object]]) -> None:
    for report in killed:
        steps = report["steps"]
        assert isinstance(steps, dict)
        assert set(steps) == {"apply", "revert", "register", "deregister", "replace"}
        # There are more steps when memory can be given back at once, which depends on what the stacks hold.
        assert all(steps[name] >= 15 for name in ("apply", "register", "replace"))
        assert all(steps[name] >= 5 for name in ("revert", "deregister"))
