"""Thousands of transactions on one target under load: nothing crashes, nothing leaks, nothing is disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.live.soak import soak

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

CYCLES = int(os.environ.get("MIDFLIGHT_SOAK", "2000"))


def test_many_cycles_leave_no_trace(tmp_path: Path) -> None:
    figures = soak(tmp_path, CYCLES)
    print(figures)
    for key in ("maps", "size", "files", "threads"):
        assert figures.after[key] == figures.before[key], key
    # Heaps of 32 allocating threads breathe by some pages.
    assert figures.after["resident"] <= figures.before["resident"] + 2048
    assert figures.engine_after["files"] == figures.engine_before["files"]
    # An object for every twentieth transaction would be a leak. Pages are held by the allocator, and for the largest
    # stop so far, which a busy machine makes larger.
    assert figures.engine_after["objects"] <= figures.engine_before["objects"] + CYCLES // 20
    assert figures.engine_after["resident"] <= figures.engine_before["resident"] + 8192
    assert figures.rounds > CYCLES
