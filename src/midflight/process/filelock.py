"""A lock on an open file that the kernel releases when its holder dies, on every system."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def try_lock(handle: int) -> bool:
    """Lock the whole file for ourselves; False while another process has it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            return True
        except OSError:
            return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is_locked(handle: int) -> bool:
    """Whether another process has it."""
    if sys.platform == "win32":
        import msvcrt

        if not try_lock(handle):
            return True
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file; of one that cannot be opened, nobody has."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return _is_locked(handle)
    finally:
        os.close(handle)
