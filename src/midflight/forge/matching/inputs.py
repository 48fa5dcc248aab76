"""The objects of an image, each read when somebody asks for it. Who defines and who needs a name is known before that,
from the symbol tables alone, so that of a big image only the objects that can help are ever taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from midflight.errors import ImageError
from midflight.forge.model import Build, ObjectCode
from midflight.forge.objects import read_object
from midflight.image.binary import is_object, open_object
from midflight.image.model import Symbol

_SHF_GROUP = 0x200
_ORDER = {"global": 0, "unique": 0, "weak": 1, "local": 2}


@dataclass(frozen=True, slots=True)
class Definition:
    """Who defines a global name: ``name`` is the first name of the place, which stands for all its aliases."""

    path: Path
    name: str
    names: tuple[str, ...]
    strong: bool
    common: bool = False


@dataclass(frozen=True, slots=True)
class SymbolSummary:
    """What the symbol table of one object says."""

    source: str | None
    """The source file's name, as the compiler wrote it (gABI, STT_FILE)."""
    definitions: Mapping[str, Definition]
    needed: frozenset[str]
    """Names that it refers to and does not define."""
    grouped: frozenset[str]
    """Sections of which the linker keeps one copy of several (COMDAT)."""


class Inputs(Mapping[Path, ObjectCode]):
    """Objects by path, in link order."""

    def __init__(self, files: Mapping[Path, Path], known: Mapping[Path, ObjectCode] | None = None) -> None:
        """``files``: object path to the file to read; ``known``: objects that were read already.

        Asking for an object raises ImageError when its file is malformed or no x86-64 ELF relocatable."""
        self._files = dict(files)
        self._read = dict(known or {})
        self._summaries: dict[Path, SymbolSummary] = {}

    @classmethod
    def of_build(cls, build: Build, known: Iterable[ObjectCode] = ()) -> Inputs:
        """All objects of the image that a build made; ``known`` are read already."""
        files = {path: build.objects[path].saved for path in build.inputs if path in build.objects}
        read = {code.path: code for code in known}
        return cls(files | {path: code.file for path, code in read.items()}, read)

    @classmethod
    def of(cls, objects: Mapping[Path, ObjectCode]) -> Inputs:
        """These objects, whether they are read or not."""
        if isinstance(objects, Inputs):
            return objects
        return cls({path: code.file for path, code in objects.items()}, objects)

    def __getitem__(self, path: Path) -> ObjectCode:
        if path not in self._read:
            self._read[path] = read_object(self._files[path], path)
        return self._read[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def file(self, path: Path) -> Path:
        """The file behind an object path."""
        return self._files[path]

    def is_read(self, path: Path) -> bool:
        return path in self._read

    # --- symbol tables -----------------------------------------------------------------------------------------------

    def summary(self, path: Path) -> SymbolSummary:
        """What the symbol table of an object says. Raises ImageError when it cannot be read."""
        if path not in self._summaries:
            self._summaries[path] = _summary(path, self._files[path])
        return self._summaries[path]

    @cached_property
    def _definitions(self) -> Mapping[str, tuple[Definition, ...]]:
        found: dict[str, list[Definition]] = {}
        for path in self._files:
            for name, definition in self.summary(path).definitions.items():
                found.setdefault(name, []).append(definition)
        return {name: tuple(several) for name, several in found.items()}

    @cached_property
    def _needers(self) -> Mapping[str, tuple[Path, ...]]:
        found: dict[str, list[Path]] = {}
        for path in self._files:
            for name in self.summary(path).needed:
                found.setdefault(name, []).append(path)
        return {name: tuple(paths) for name, paths in found.items()}

    def definition(self, name: str) -> Definition | None:
        """Who defines a global name, as the linker chooses: a strong definition before weak and tentative ones, and the
        first of several."""
        several = self._definitions.get(name, ())
        strong = next((d for d in several if d.strong and not d.common), None)
        tentative = next((d for d in several if d.strong), None)
        return strong or tentative or (several[0] if several else None)

    def defining(self, name: str) -> tuple[Path, ...]:
        """Every object that defines a global name (vague linkage: many do)."""
        return tuple(d.path for d in self._definitions.get(name, ()))

    def needing(self, name: str) -> tuple[Path, ...]:
        """Objects that refer to a global name which another one defines."""
        return self._needers.get(name, ())

    def place(self, name: str) -> tuple[Path, str] | None:
        """The atom that a global name means. Reads the object."""
        definition = self.definition(name)
        if definition is None:
            return None
        atoms = self[definition.path].atoms
        if definition.name in atoms and atoms[definition.name].binding != "local":
            return definition.path, definition.name
        for key, atom in atoms.items():
            if atom.binding != "local" and name in (atom.name, *atom.aliases):
                return definition.path, key
        return None


def _summary(path: Path, file: Path) -> SymbolSummary:
    if not is_object(file):  # LLVM bitcode, which read_object knows too
        return SymbolSummary(None, {}, frozenset(), frozenset())
    with open_object(file) as elf:
        if elf.kind != "relocatable":
            raise ImageError(f"{file}: is linked already; give an object file (.o)")
        symbols = elf.symbols()
        grouped = frozenset(s.name for s in elf.sections if s.flags & _SHF_GROUP)
    places: dict[tuple[int, int], list[Symbol]] = {}
    needed = set()
    definitions: dict[str, Definition] = {}
    source = None
    for symbol in symbols:
        if symbol.type == "file":
            source = source or symbol.name or None
        elif not symbol.name or symbol.type == "section":
            continue
        elif symbol.common:
            definitions[symbol.name] = Definition(path, symbol.name, (symbol.name,), True, True)
        elif symbol.section is not None:
            places.setdefault((symbol.section, symbol.value), []).append(symbol)
        elif not symbol.defined:
            needed.add(symbol.name)
    for several in places.values():
        definitions.update(_definitions(path, several))
    return SymbolSummary(source, definitions, frozenset(needed), grouped)


def _definitions(path: Path, symbols: Iterable[Symbol]) -> Mapping[str, Definition]:
    """Definitions by the symbols of one place, in the order in which read_object names an atom."""
    several = sorted(symbols, key=lambda s: (_ORDER[s.binding], s.type == "notype", -s.size, s.index))
    outer = [s for s in several if s.binding != "local"]
    if not outer:
        return {}
    names = tuple(dict.fromkeys(s.name for s in several if not s.name.startswith(".L")))
    definition = Definition(path, names[0], names, outer[0].binding == "global")
    return {s.name: definition for s in outer}


__all__ = ["Definition", "Inputs", "SymbolSummary"]
