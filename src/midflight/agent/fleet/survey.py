"""What runs on this machine: which images processes map, and which hotpatches are in their memory.

Processes say it themselves: nothing here comes from what an agent remembers. Only looking, no process is stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from midflight.agent import clocks
from midflight.engine.inventory import BuildIds, find_ledgers
from midflight.engine.modules import Files
from midflight.errors import MidflightError
from midflight.process.live import LiveProcess, command_name

YOUNG = 2.0
"""Seconds. What lives shorter is not reported as inventory: else each shell command would be news for the server."""
_BREATH = 0.0005
"""Seconds between two processes: the agent's loop shares the processor with this thread."""


@dataclass(slots=True)
class Running:
    """A hotpatch in memory, for one image."""

    name: str
    sequence: int
    sha256: str
    build_id: str
    pids: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    """Processes that map the image and do not have it."""
    stopped_us: int = 0
    """The longest time that one of them was stopped for it."""


@dataclass(slots=True)
class Survey:
    """What one look at everything found."""

    images: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Processes by build-id and path."""
    host: set[str] = field(default_factory=set)
    """Paths that are files of this system, not of a container."""
    running: dict[tuple[str, str], Running] = field(default_factory=dict)
    """By sha256 of the hotpatch, and build-id."""
    commands: dict[int, str] = field(default_factory=dict)
    """Names of the processes that carry a hotpatch."""
    young: set[int] = field(default_factory=set)
    """Processes that began only now."""
    took: float = 0.0
    """Seconds."""

    def users(self, build_ids: Collection[str]) -> set[int]:
        """Processes that map one of these images."""
        return {pid for (build_id, _), pids in self.images.items() if build_id in build_ids for pid in pids}

    def carriers(self, sha256: str) -> set[int]:
        """Processes that run a hotpatch."""
        return {pid for (digest, _), one in self.running.items() if digest == sha256 for pid in one.pids}

    def stopped_us(self, sha256: str) -> int:
        """The longest stop for a hotpatch, microseconds."""
        return max((one.stopped_us for (digest, _), one in self.running.items() if digest == sha256), default=0)


def survey(
    processes: Iterable[LiveProcess], files: Files, breathe: Callable[[float], None] = time.sleep, root: str = ""
) -> Survey:
    """Look at processes.

    Args:
        root: that of a process of this system (:func:`root_of`).
    """
    begin = time.monotonic()
    found = Survey()
    known = BuildIds(files)
    for process in processes:
        try:
            _one(process, found, known, root)
        except MidflightError:
            continue  # ended, or not ours to look at
        finally:
            process.close()
        breathe(_BREATH)
    _missing(found)
    found.took = time.monotonic() - begin
    return found


def _one(process: LiveProcess, found: Survey, known: BuildIds, root: str) -> None:
    images = {(build_id, m.path) for m in process.code() if (build_id := known.of(process, m)) is not None}
    if not images:
        return
    same = not root or root_of(process.pid) == root
    if sys.platform != "win32" and clocks.uptime() - process.start_time / os.sysconf("SC_CLK_TCK") < YOUNG:
        found.young.add(process.pid)
    for image in images:
        found.images.setdefault(image, set()).add(process.pid)
        if same:
            found.host.add(image[1])
    for ledger in find_ledgers(process):
        if not ledger.in_force:
            continue
        record = ledger.record
        key = (record.digest, record.build_id)
        one = found.running.setdefault(key, Running(record.name, record.sequence, *key))
        one.pids.add(process.pid)
        one.stopped_us = max(one.stopped_us, ledger.stopped // 1000)
        found.commands[process.pid] = command_name(process.pid)


def _missing(found: Survey) -> None:
    """Who maps an image that others have patched, and has neither that hotpatch nor a later one of its series."""
    for one in found.running.values():
        users = found.users({one.build_id})
        later = {
            pid
            for other in found.running.values()
            if other.name == one.name and other.build_id == one.build_id and other.sequence > one.sequence
            for pid in other.pids
        }
        one.missing = users - one.pids - later - found.young


def root_of(pid: int | str) -> str:
    """Names the root directory of a process; empty when it cannot be told. A container has its own. A service with a
    sandbox of systemd (the agent is one) has mounts of its own, but the root of the system."""
    try:
        state = os.stat(f"/proc/{pid}/root/")
    except OSError:
        return ""
    return f"{state.st_dev}:{state.st_ino}"


def ended(pid: int) -> bool:
    """Whether a process of Linux is not there any more, or is a zombie, which has no program."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
