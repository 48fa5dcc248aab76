"""What counts as a crash, and which checks are due. Pure: time is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHECKS = (60.0, 300.0, 900.0)
"""Seconds after a hotpatch came into force on this machine at which the probes run."""
CRASH_WINDOW = 900.0
"""Seconds after an apply within which the crash of a process counts against its hotpatches."""

# SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGSEGV SIGSYS (signal(7)): those that a program earns by what it does. Who is
# ended by SIGKILL or SIGTERM was ended by somebody.
_CRASHES = {4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV", 31: "SIGSYS"}
# Exit codes of Windows that an unhandled exception leaves are NTSTATUS values of severity "error" ([MS-ERREF] 2.3);
# two that somebody else brings about do not count: Ctrl-C, and the failure to find a DLL at the start.
_NT_ERROR = 0xC0000000
_NOT_CRASHES = (0xC000013A, 0xC0000135, 0xC0000142)


def crash(signal: int, status: int | None) -> str | None:
    """How a process crashed, by the signal that ended it (Linux) or its exit code (Windows); None: it did not."""
    if signal:
        return f"by {_CRASHES[signal]}" if signal in _CRASHES else None
    if status is not None and status >= _NT_ERROR and status not in _NOT_CRASHES:
        return f"with the exit code {status:#010x}"
    return None


def blamed(applied: Sequence[tuple[str, int, float]], now: float, window: float) -> list[tuple[str, int]]:
    """Which hotpatches of a process that crashed at ``now`` came into it within the ``window`` before; ``applied``
    has name, sequence and time of each."""
    return [(name, sequence) for name, sequence, at in applied if 0 <= now - at <= window]


@dataclass(frozen=True, slots=True)
class Watch:
    """One hotpatch under observation since it came into force on this machine; ``passed`` checks are behind it."""

    name: str
    sequence: int
    since: float
    """Uptime in seconds."""
    passed: int


def due(watch: Watch, now: float, checks: Sequence[float] = CHECKS) -> int:
    """How many checks should have passed by ``now``; more than ``watch.passed`` means that the probes are to run:
    once, also when several were missed because nobody was there."""
    return max(watch.passed, sum(watch.since + after <= now for after in checks))


def next_due(watch: Watch, checks: Sequence[float] = CHECKS) -> float | None:
    """Uptime of the next check; None: all are over."""
    return watch.since + checks[watch.passed] if watch.passed < len(checks) else None
