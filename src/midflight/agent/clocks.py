"""Time that no setting of a clock changes, over restarts of the agent: seconds since this machine started, and which
start that was."""

from __future__ import annotations

import sys
import time
from functools import cache


def uptime() -> float:
    """Seconds since the machine started, sleep included (Linux: CLOCK_BOOTTIME; Windows: GetTickCount64)."""
    if sys.platform == "win32":
        return time.monotonic()
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot() -> str:
    """Names this start of the machine. Windows has no such name: the time at which its oldest process began stands for
    it, which setting the clock does not change."""
    if sys.platform == "win32":
        from midflight.process.snapshots import Snapshots

        return f"{min(filter(None, Snapshots().created().values()), default=0):x}"
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
