"""Orders from a folder of hotpatch files: each that a trusted key signed is to be in force."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from midflight.agent.orders import Orders
from midflight.errors import MidflightError
from midflight.machine.ownership import changeable_by
from midflight.patch.hotpatch import Hotpatch, read_hotpatch
from midflight.patch.signature import PublicKey
from midflight.trust.keys import load_public_key
from midflight.trust.store import folder as config_folder
from midflight.trust.store import trusted_keys

SUFFIX = ".hotpatch"
_Mark = tuple[int, int, int]


class HotpatchFolder:
    """The hotpatches of one folder; see :class:`midflight.agent.orders.OrderSource`.

    A file counts from the moment at which it has its name: write it under another one, and rename it. It is verified
    when it appears or changes, and all are when the keys do.
    """

    def __init__(self, path: Path, keys: Sequence[str | Path] = ()) -> None:
        self._path = path
        self._keys = [Path(key) for key in keys]
        self._read: dict[Path, tuple[_Mark, Hotpatch | str]] = {}
        self._seen: object = None
        self._trusted: tuple[PublicKey, ...] = ()
        self._seen_keys: object = None
        self._trouble = ""

    def barred(self) -> None:
        """See the protocol: a folder has nobody to tell."""

    def describe(self) -> str:
        """See the protocol."""
        return f"the folder {self._path}"

    def look(self) -> Orders | None:
        """See the protocol."""
        try:
            files = _marks(self._path, SUFFIX)
            other = changeable_by(self._path)
            # Nobody can bring in what no trusted key signed; but what is missing, or old, is missing or old.
            trouble = f"can be changed by others ({other}): they can take hotpatches away" if other else ""
        except OSError as error:
            # A file system that is away for a moment is no order to take everything out.
            files = {path: mark for path, (mark, _) in self._read.items()}
            trouble = f"cannot be looked at ({error.strerror}): what was there before stays in force"
        keys = self._key_marks()
        if (files, keys, trouble) == self._seen:
            return None
        self._seen = (files, keys, trouble)
        problems = [(str(self._path), trouble)] if trouble else []
        if keys != self._seen_keys:
            self._seen_keys = keys
            try:
                self._trusted = self._load_keys()
                self._trouble = "" if self._trusted else f"no key is trusted here ({config_folder()}/trust.d has none)"
            except MidflightError as error:
                self._trusted, self._trouble = (), str(error)
            self._read.clear()
        if self._trouble:
            return Orders((), (*problems, ("keys", self._trouble)))
        self._read = {path: self._one(path, mark) for path, mark in sorted(files.items())}
        good = tuple(found for _, found in self._read.values() if isinstance(found, Hotpatch))
        problems += [(path.name, found) for path, (_, found) in self._read.items() if isinstance(found, str)]
        return Orders(good, tuple(problems))

    def _one(self, path: Path, mark: _Mark) -> tuple[_Mark, Hotpatch | str]:
        before = self._read.get(path)
        if before is not None and before[0] == mark:
            return before
        try:
            return mark, read_hotpatch(path, self._trusted)
        except MidflightError as error:
            return mark, str(error)

    def _key_marks(self) -> object:
        if self._keys:
            return [_mark(path) for path in self._keys]
        place = config_folder() / "trust.d"
        try:
            return [_mark(place), _marks(place, ".pub")]
        except OSError:
            return None

    def _load_keys(self) -> tuple[PublicKey, ...]:
        if self._keys:
            return tuple(load_public_key(path) for path in self._keys)
        return tuple(trusted_keys())


def _mark(path: Path, stat: Callable[[Path], os.stat_result] = os.stat) -> _Mark | None:
    """What changes when a file does."""
    try:
        state = stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _marks(folder: Path, suffix: str) -> dict[Path, _Mark]:
    """The files of a folder with such names, and their marks.

    Raises:
        OSError: it cannot be listed.
    """
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                mark = _mark(Path(entry.path))
                if mark is not None:
                    found[Path(entry.path)] = mark
    return found
