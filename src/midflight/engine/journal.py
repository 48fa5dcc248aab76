"""The journal: announces memory in a target before it exists, so that it can be found before it carries a ledger.

One small file a transaction, below ``/run/midflight`` (or ``XDG_RUNTIME_DIR`` for a user who is not root), written before the
memory is mapped and removed when the ledger stands. What a killed engine leaves here is what ``recover`` unmaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from midflight.errors import EngineError


@dataclass(frozen=True, slots=True)
class Announcement:
    """Memory that is about to be mapped: ``parts`` of (address, size) in the process (pid, start_time)."""

    pid: int
    start_time: int
    parts: tuple[tuple[int, int], ...]


def folder() -> Path:
    """Where announcements lie. ``MIDFLIGHT_RUN`` overrides it."""
    given = os.environ.get("MIDFLIGHT_RUN")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/midflight")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/midflight-{os.geteuid()}") / "midflight"


def _path(announcement: Announcement) -> Path:
    first = announcement.parts[0][0]
    return folder() / f"{announcement.pid}-{announcement.start_time}-{first:x}.json"


def announce(announcement: Announcement) -> None:
    """Write the announcement, complete or not at all.

    Raises:
        EngineError: it cannot be written; then nothing may be mapped.
    """
    path = _path(announcement)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid != os.geteuid():
            raise EngineError(f"{path.parent} belongs to somebody else: set MIDFLIGHT_RUN to a folder of your own")
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
            yield Announcement(
                int(raw["pid"]), int(raw["start_time"]), tuple((int(a), int(s)) for a, s in raw["parts"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
