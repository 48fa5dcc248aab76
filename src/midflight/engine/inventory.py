"""Which processes run what: baselines that a hotpatch is for, and hotpatches that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import Ledger
from midflight.engine.modules import Files
from midflight.engine.plan import Hotpatch
from midflight.engine.system import build_id_of, modules_of
from midflight.errors import MidflightError, ProcessGone
from midflight.process.model import Mapping, Process

P = TypeVar("P", bound=Process)


@dataclass(frozen=True, slots=True)
class Use:
    """One process that maps a baseline of a hotpatch."""

    process: Process
    image: str
    build_id: str
    state: str
    """needs, applied, newer, older, or unknown"""
    reason: str
    """Why it cannot be patched as it is, or what else there is to say."""


class BuildIds:
    """Build-ids of mapped files, each file opened once however many processes map it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._known: dict[tuple[tuple[int, int], int, str], str | None] = {}

    def of(self, process: Process, mapping: Mapping) -> str | None:
        """The build-id of the file behind a mapping; None when it has none or cannot be read."""
        if process.images == "pe":
            # It is read from memory; a file may have been renamed, and another be there now.
            return build_id_of(process, mapping, self._files)
        key = (mapping.device, mapping.inode, mapping.path)
        if key not in self._known:
            try:
                self._known[key] = build_id_of(process, mapping, self._files)
            except MidflightError:
                return None
        return self._known[key]


def users(processes: Iterable[P], build_ids: set[str], files: Files) -> Iterator[tuple[P, list[Mapping]]]:
    """Processes that map executable code of one of these images, with those mappings."""
    known = BuildIds(files)
    for process in processes:
        try:
            found = [m for m in process.code() if known.of(process, m) in build_ids]
        except MidflightError:
            continue
        if found:
            yield process, found


def find_ledgers(process: Process) -> Sequence[Ledger]:
    """Ledgers of a process; none when it ended meanwhile.

    Raises:
        ProcessError: a ledger is damaged.
    """
    try:
        return ledgers_of.find(process)
    except ProcessGone:
        return ()


def scan(processes: Iterable[Process], hotpatch: Hotpatch, files: Files) -> Iterator[Use]:
    """Every process that runs a baseline of ``hotpatch``, and how it stands with it."""
    targets = {t.build_id: t for t in hotpatch.manifest.targets}
    for process, mappings in users(processes, set(targets), files):
        try:
            modules = modules_of(process, process.maps(), files)
            ledgers = find_ledgers(process)
            for build_id, target in targets.items():
                if modules.with_build_id(build_id):
                    state, reason = _state(process, hotpatch, build_id, ledgers)
                    yield Use(process, mappings[0].path or target.image_name, build_id, state, reason)
        except ProcessGone:
            continue
        except MidflightError as error:
            yield Use(process, mappings[0].path, "", "unknown", str(error))


def _state(process: Process, hotpatch: Hotpatch, build_id: str, ledgers: Sequence[Ledger]) -> tuple[str, str]:
    for ledger in ledgers:
        record = ledger.record
        if ledger.in_force and record.build_id == build_id and record.name == hotpatch.manifest.name:
            if record.digest == hotpatch.digest:
                return "applied", ""
            older = record.sequence < hotpatch.manifest.sequence
            return ("older" if older else "newer"), f"{record.name} {record.sequence} is in force"
    return "needs", process.untouchable() or ""
