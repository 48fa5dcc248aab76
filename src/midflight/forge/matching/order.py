"""The order of things in an object, which a linker keeps: what stands next to what in the running image.

Without function sections the functions of one object are one stretch of code, in the order in which the compiler wrote
them; with them, their sections come in that same order. The same holds for variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from midflight.forge.matching.inputs import Inputs
from midflight.forge.model import Atom

Key = tuple[Path, str]

_CLASSES = (
    ".text.unlikely",
    ".text.startup",
    ".text.hot",
    ".text.exit",
    ".text",
    ".data.rel.ro.local",
    ".data.rel.ro",
    ".data.rel.local",
    ".data.rel",
    ".data",
    ".bss",
    ".rodata",
    ".tdata",
    ".tbss",
)
"""Output of -ffunction-sections and -fdata-sections: each class, a dot, and the name."""


def section_class(section: str) -> str:
    """The section in which a compiler puts this without function and data sections."""
    for name in _CLASSES:
        if section == name or section.startswith(name + "."):
            return name
    return section


class Order:
    """Neighbours in the objects that were read."""

    def __init__(self, inputs: Inputs, differing: frozenset[Path] = frozenset()) -> None:
        """``differing``: objects whose order tells nothing, as run has another build of them."""
        self._inputs = inputs
        self._differing = differing
        self._next: dict[Path, Mapping[str, str]] = {}
        self._previous: dict[Path, Mapping[str, str]] = {}

    def next(self, key: Key) -> Key | None:
        """What the compiler wrote right after it, into the same section but for sections of their own."""
        self._read(key[0])
        found = self._next[key[0]].get(key[1])
        return None if found is None else (key[0], found)

    def previous(self, key: Key) -> Key | None:
        """What the compiler wrote right before it."""
        self._read(key[0])
        found = self._previous[key[0]].get(key[1])
        return None if found is None else (key[0], found)

    def _read(self, path: Path) -> None:
        if path in self._next:
            return
        following: dict[str, str] = {}
        last: dict[str, str] = {}
        for key, atom in self._inputs[path].atoms.items() if path not in self._differing else ():
            name = self._chain(path, atom)
            if name is None:
                continue
            if name in last:
                following[last[name]] = key
            last[name] = key
        self._next[path] = following
        self._previous[path] = {after: before for before, after in following.items()}

    def _chain(self, path: Path, atom: Atom) -> str | None:
        # Of a COMDAT group the linker may have taken another copy; tentative definitions and merged constants go
        # wherever it likes.
        if atom.section in self._inputs.summary(path).grouped or atom.section == "COMMON" or not atom.name:
            return None
        return section_class(atom.section)
