"""The one place where a test may kill us: ``point("name")`` marks a step at which dying must do no harm.

``MIDFLIGHT_KILL_AT`` names the step: a point's name, or a number N for the N-th point that is passed. The process then
kills itself with SIGKILL, as the out-of-memory killer would
(on Windows: with TerminateProcess). ``MIDFLIGHT_KILL_LOG`` names a file that gets the name of
each point passed, one a line, so that a test can list the points first. When neither is set, ``point`` is an empty
function.
"""

from __future__ import annotations

import os
import signal

_kill_at = os.environ.get("MIDFLIGHT_KILL_AT", "")
_log = os.environ.get("MIDFLIGHT_KILL_LOG", "")
_passed = 0


def _disarmed(name: str) -> None:
    """Do nothing: no fault is asked for."""


def _armed(name: str) -> None:
    """Count and record the point, and die here when the test says so."""
    global _passed
    _passed += 1
    if _log:
        fd = os.open(_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            os.write(fd, name.encode() + b"\n")
        finally:
            os.close(fd)
    if _kill_at == name or _kill_at == str(_passed):
        # What os.kill calls on Windows, for any signal but two, is TerminateProcess.
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def disarm() -> None:
    """Pass all further points unharmed: for a child that is to outlive us."""
    global _kill_at
    _kill_at = ""


point = _armed if _kill_at or _log else _disarmed
"""Mark a step by name; costs an empty function call unless a fault is asked for."""
