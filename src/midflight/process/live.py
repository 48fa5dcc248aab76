"""The processes of this machine, whatever its system: all of them, one by number, their names, and how they ended."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, TypeAlias

from midflight.errors import ProcessError, ProcessGone

if TYPE_CHECKING:
    from midflight.process.linux import LinuxProcess
    from midflight.process.windows import WindowsProcess

LiveProcess: TypeAlias = "LinuxProcess | WindowsProcess"


def open_process(pid: int) -> LiveProcess:
    """One process.

    Raises:
        ProcessGone: there is none with that number.
        ProcessError: we may not look at it.
    """
    if sys.platform == "win32":
        from midflight.process.windows import WindowsProcess

        return WindowsProcess(pid)
    from midflight.process.linux import LinuxProcess

    return LinuxProcess(pid)


def all_processes() -> list[LiveProcess]:
    """All that we may look at; the oldest first, so that parents come before their children."""
    if sys.platform == "win32":
        from midflight.process.windows import processes
    else:
        from midflight.process.linux import processes

    return sorted(processes(), key=lambda process: (process.start_time, process.pid))


def command_name(pid: int) -> str:
    """The short name of a process, for people."""
    if sys.platform == "win32":
        from midflight.process.windows import process_names

        return process_names().get(pid, "?")
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "?"


def alive(process: LiveProcess) -> bool:
    """Whether a process has not ended, as far as we can look at it."""
    try:
        process.maps()
    except ProcessGone:
        return False
    except ProcessError:
        return True
    return True


class Held(Protocol):
    """A process that is held open, so that it can be asked afterwards how it ended."""

    def ending(self) -> tuple[int, int] | None:
        """The signal that ended it (Linux) and its exit status (Windows: 32 bits); None: it lives, or the system does
        not say."""

    def close(self) -> None:
        """Let it go."""


def hold(process: LiveProcess) -> Held:
    """Hold a process open.

    Raises:
        ProcessGone: it ended.
        ProcessError: it cannot be held.
    """
    if sys.platform == "win32":
        from midflight.process.windows import WindowsProcess

        return WindowsProcess(process.pid)
    from midflight.process.pidfd import PidFd

    return PidFd(process.pid, process.start_time)


def holding_tells() -> bool:
    """Whether the system says how a process ended that was held."""
    if sys.platform == "win32":
        return True
    from midflight.process.pidfd import tells

    return tells()


def program_of(pid: int) -> tuple[int, int, int] | None:
    """Identity of the program file that a process runs (device, inode, time of change); None where that is not cheap to
    tell, or it is gone."""
    if sys.platform == "win32":
        return None
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
