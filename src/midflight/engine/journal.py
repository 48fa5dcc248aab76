"""The journal: announces memory in a target before it exists, so that it can be found before it carries a ledger.

One small file a transaction, in the run folder (``midflight.machine.places``), written
before the memory is mapped and removed when the ledger stands. What a killed engine leaves here is what ``recover``
unmaps.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from midflight.errors import EngineError
from midflight.machine import places
from midflight.machine.ownership import make_closed_folder
from midflight.process.filelock import is_locked, try_lock
from midflight.process.model import Mapping


@dataclass(frozen=True, slots=True)
class Announcement:
    """Memory that is about to be mapped in the process (pid, start_time).

    ``regions`` are (address, parts), each part (size, protection) as given to ``Process.map_memory``.
    """

    pid: int
    start_time: int
    regions: tuple[tuple[int, tuple[tuple[int, str], ...]], ...]

    def matches(self, maps: Sequence[Mapping], address: int) -> bool:
        """Whether exactly what was announced at ``address`` (or a part of it, the rest not accessible yet) is mapped.

        Any other mapping there is the program's own, and must not be touched.
        """
        parts = next((p for a, p in self.regions if a == address), ())
        size = sum(s for s, _ in parts)
        found = [m for m in maps if m.start < address + size and m.end > address]
        if not found or found[0].start != address or found[-1].end != address + size:
            return False
        if all(m.allocation == address for m in found):
            # On Windows one allocation is one announcement; what is being written may be open to writing.
            return size > 0 and not any(m.path or (m.writable and m.executable) for m in found)
        at = address
        expected = []
        for part, protection in parts:
            expected.append((at, at + part, protection))
            at += part
        return all(
            m.private
            and not m.inode
            and not m.path
            and (
                not (m.readable or m.writable or m.executable)
                or all(_protection(m) == p for low, high, p in expected if m.start < high and m.end > low)
            )
            for m in found
        )


def _protection(m: Mapping) -> str:
    return ("r" if m.readable else "") + ("w" if m.writable else "") + ("x" if m.executable else "")


def folder() -> Path:
    """Where announcements lie. ``MIDFLIGHT_RUN`` overrides it."""
    return places.run_folder()


def _path(announcement: Announcement) -> Path:
    first = announcement.regions[0][0]
    return folder() / f"{announcement.pid}-{announcement.start_time}-{first:x}.json"


def _make_folder(path: Path) -> None:
    try:
        make_closed_folder(path)
    except PermissionError as error:
        raise EngineError(
            f"{path} cannot be used ({error.strerror}): remove it, or set MIDFLIGHT_RUN to a folder of your own"
        ) from None


def announce(announcement: Announcement) -> None:
    """Write the announcement, complete or not at all.

    Raises:
        EngineError: it cannot be written; then nothing may be mapped.
    """
    path = _path(announcement)
    try:
        _make_folder(path.parent)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(announcement)))
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"cannot write the journal {path} ({error.strerror}): nothing was changed") from error


def withdraw(announcement: Announcement) -> None:
    """The memory carries its ledger, or is gone again."""
    _path(announcement).unlink(missing_ok=True)


def announced() -> Iterator[Announcement]:
    """What killed engines left; damaged files (a full disk) are passed over."""
    try:
        paths = sorted(folder().glob("*.json"))
    except OSError:
        return
    for path in paths:
        try:
            raw = json.loads(path.read_text())
            regions = tuple((int(a), tuple((int(s), str(p)) for s, p in parts)) for a, parts in raw["regions"])
            if regions:
                yield Announcement(int(raw["pid"]), int(raw["start_time"]), regions)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _open_locked(path: Path) -> int | None:
    """A handle that holds the lock; None while another engine has it, or has just removed the file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except PermissionError:
        if sys.platform == "win32" and path.parent.is_dir():
            return None  # just being removed
        raise
    # The name must still be this file's: whoever held it before removes it when done.
    with contextlib.suppress(OSError):
        if try_lock(handle) and os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    os.close(handle)
    return None


@contextmanager
def lock(pid: int, start_time: int, timeout: float = 10.0) -> Iterator[None]:
    """Keep every other engine on this machine away from one process. Released by the kernel if we are killed.

    Raises:
        EngineError: another one works on it for longer than ``timeout`` seconds.
    """
    path = folder() / f"{pid}-{start_time}.lock"
    deadline = time.monotonic() + timeout
    try:
        _make_folder(path.parent)
        while (handle := _open_locked(path)) is None:
            if time.monotonic() >= deadline:
                raise EngineError(f"process {pid} is being patched by another midflight: try again later")
            time.sleep(0.005)
    except OSError as error:
        raise EngineError(f"cannot lock {path} ({error.strerror}): nothing was changed") from error
    try:
        yield
    finally:
        if sys.platform == "win32":
            # A file that is open cannot be removed there; one that somebody else has opened meanwhile stays.
            os.close(handle)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            os.close(handle)


def held(pid: int, start_time: int) -> bool:
    """Whether an engine works on the process at this moment."""
    return is_locked(folder() / f"{pid}-{start_time}.lock")


def sweep(alive: Callable[[int, int], bool]) -> None:
    """Remove what belongs to processes that ended; ``alive`` is asked with pid and start time."""
    for path in folder().glob("*-*"):
        pid, start = [*path.name.split(".")[0].split("-"), "", ""][:2]
        if pid.isdigit() and start.isdigit() and not alive(int(pid), int(start)):
            path.unlink(missing_ok=True)
