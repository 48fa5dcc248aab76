"""The ground that the other tests stand on: a genuine Windows Python, which can start programs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

from tests.wine.harness import PROGRAMS


def test_a_windows_python_runs_these_tests() -> None:
    assert sys.platform == "win32"
    assert "MSC" in sys.version, "not the python311.dll of the Python Software Foundation"
    assert getattr(ctypes, "WinDLL")("kernel32").GetCurrentProcessId() == os.getpid()  # noqa: B009


def test_it_starts_windows_programs() -> None:
    done = subprocess.run([str(PROGRAMS / "threads.exe"), "1"], input="\n", capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[:2] == ["ready", "1 10 0"], done
