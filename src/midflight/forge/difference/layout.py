"""Compares the types of two objects: layouts of structures, values of enumerators, signatures of functions.

Whether live objects of a type exist cannot be proven, so every change of a type that both sides know is a finding. New
types, types that are gone, and new enumerators are none. Source: DWARF 5 sections 5.1 to 5.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from midflight.forge.difference import dwarf
from midflight.forge.difference.dwarf import Die, Types
from midflight.forge.model import Finding
from midflight.forge.refusals import finding

_STRUCTURES = {dwarf.STRUCTURE: "struct", dwarf.UNION: "union", dwarf.CLASS: "class"}
_POINTERS = {dwarf.POINTER: "*", dwarf.REFERENCE: "&", dwarf.RVALUE: "&&", dwarf.TO_MEMBER: "::*"}
_TRANSPARENT = frozenset({dwarf.CONST, dwarf.VOLATILE, dwarf.RESTRICT})
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    bits: tuple[int, int] | None
    """Bit offset from the start of the structure, and size in bits, of a bit-field."""
    type: str

    @property
    def place(self) -> str:
        return f"+{self.offset}" if self.bits is None else f"bit {self.bits[0]} ({self.bits[1]} bits)"


@dataclass(frozen=True, slots=True)
class _Structure:
    size: int
    members: tuple[_Member, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """Where the source defines a function: number of the file in the line table, and line. Inline ones too."""

    name: str
    file: int
    line: int


@dataclass(slots=True)
class _TypeTable:
    """What is compared, by names that both sides can have."""

    structures: dict[str, _Structure] = field(default_factory=dict)
    typedefs: dict[str, str] = field(default_factory=dict)
    enumerators: dict[tuple[str, str], int] = field(default_factory=dict)
    """(enumeration, or "enum" for unnamed ones; enumerator) to value."""
    enumerations: dict[str, int] = field(default_factory=dict)
    """Name to size in bytes."""
    signatures: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """Types of the static variables that the object defines, by the name of their symbol."""
    definitions: list[Definition] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """The main source file of each unit."""
    usable: bool = False


class _Reader:
    """Turns entries into tables; types are written as C would, without const, volatile and restrict."""

    def __init__(self, types: Types) -> None:
        self._dies = types.dies
        self._names: dict[int, str] = {}
        self.table = _TypeTable(usable=types.usable)

    def read(self) -> _TypeTable:
        for die in self._dies.values():
            if die.tag in _STRUCTURES and die.name and dwarf.DECLARATION not in die.attributes:
                self._add_structure(f"{_STRUCTURES[die.tag]} {self._path(die)}", die)
            elif die.tag == dwarf.TYPEDEF:
                self._add_typedef(die)
            elif die.tag == dwarf.ENUMERATION:
                self._add_enumeration(die)
            elif die.tag == dwarf.SUBPROGRAM:
                self._add_function(die)
            elif die.tag == dwarf.VARIABLE:
                self._add_variable(die)
            elif die.tag == dwarf.COMPILE_UNIT and die.name:
                self.table.sources.append(str(Path(str(die.attributes.get(dwarf.DIRECTORY, "."))) / die.name))
        return self.table

    def _children(self, die: Die) -> Iterator[Die]:
        return (self._dies[offset] for offset in die.children)

    def _path(self, die: Die) -> str:
        """The name, with the namespaces and classes around it."""
        names = [die.name or "{unnamed}"]
        parent = self._dies.get(die.parent)
        while parent is not None and parent.tag in (dwarf.NAMESPACE, *_STRUCTURES):
            names.append(parent.name or "{unnamed}")
            parent = self._dies.get(parent.parent)
        return "::".join(reversed(names))

    # --- types as text -------------------------------------------------------------------------------------------

    def _type(self, die: Die) -> str:
        """The type that an entry's DW_AT_type refers to, in words."""
        target = die.attributes.get(dwarf.TYPE)
        if isinstance(target, str):
            return target
        if target is None:
            return "void"
        known = self._names.get(target)
        if known is None:
            self._names[target] = "{recursive}"  # only unnamed types can come here again, and those cannot be recursive
            known = self._names[target] = self._describe(self._dies.get(target))
        return known

    def _describe(self, die: Die | None) -> str:
        if die is None:
            return "{local type}"
        if die.tag in _TRANSPARENT:
            return self._type(die)
        if die.tag in _POINTERS:
            return f"{self._type(die)} {_POINTERS[die.tag]}".replace("* *", "**")
        if die.tag in _STRUCTURES:
            if die.name:
                return f"{_STRUCTURES[die.tag]} {self._path(die)}"
            inside = "; ".join(f"{m.type} {m.name} {m.place}" for m in self._members(die))
            return f"{_STRUCTURES[die.tag]} {{{inside}}}"
        if die.tag == dwarf.ENUMERATION:
            return f"enum {self._path(die)}" if die.name else f"enum of {die.number(dwarf.BYTE_SIZE)} bytes"
        if die.tag == dwarf.ARRAY:
            return self._type(die) + "".join(f"[{_count(child)}]" for child in self._children(die))
        if die.tag == dwarf.SUBROUTINE:
            return f"{self._type(die)} ({self._parameters(die)})"
        if die.tag == dwarf.ATOMIC:
            return f"_Atomic {self._type(die)}"
        return self._path(die)

    def _parameters(self, die: Die) -> str:
        parameters = []
        for child in self._children(die):
            if child.tag == dwarf.PARAMETER:
                origin = child.number(dwarf.ORIGIN)
                parameters.append(self._type(self._dies.get(origin, child) if origin is not None else child))
            elif child.tag == dwarf.UNSPECIFIED_PARAMETERS:
                parameters.append("...")
        return ", ".join(parameters) or "void"

    # --- tables --------------------------------------------------------------------------------------------------

    def _add_structure(self, name: str, die: Die) -> None:
        if name not in self.table.structures:
            members = tuple(self._members(die))
            self.table.structures[name] = _Structure(die.number(dwarf.BYTE_SIZE) or 0, members)

    def _members(self, die: Die) -> Iterator[_Member]:
        """Members that take room; those of unnamed structures inside under the path that leads to them."""
        for child in self._children(die):
            if child.tag == dwarf.INHERITANCE:
                yield _Member(f"base {self._type(child)}", child.number(dwarf.LOCATION) or 0, None, self._type(child))
            if child.tag != dwarf.MEMBER or dwarf.EXTERNAL in child.attributes:
                continue
            offset = child.number(dwarf.LOCATION) or 0
            inner = self._unnamed(child)
            if inner is None:
                yield _Member(child.name or "", offset, _bits(child, offset), self._type(child))
                continue
            prefix = f"{child.name}." if child.name else ""
            for member in self._members(inner):
                bits = (member.bits[0] + 8 * offset, member.bits[1]) if member.bits else None
                yield _Member(prefix + member.name, offset + member.offset, bits, member.type)

    def _unnamed(self, member: Die) -> Die | None:
        """The unnamed structure or union that a member is of, itself (not a pointer to it or an array of it)."""
        target = self._dies.get(member.number(dwarf.TYPE) or -1)
        while target is not None and target.tag in _TRANSPARENT:
            target = self._dies.get(target.number(dwarf.TYPE) or -1)
        return target if target is not None and target.tag in _STRUCTURES and not target.name else None

    def _add_typedef(self, die: Die) -> None:
        target = self._unnamed(die)
        name = self._path(die)
        if target is not None:
            self._add_structure(name, target)
        else:
            self.table.typedefs.setdefault(name, self._type(die))

    def _add_enumeration(self, die: Die) -> None:
        name = f"enum {self._path(die)}" if die.name else "enum"
        size = die.number(dwarf.BYTE_SIZE)
        if die.name and size is not None:
            self.table.enumerations.setdefault(name, size)
        for child in self._children(die):
            value = child.number(dwarf.CONST_VALUE)
            if child.name and value is not None:
                self.table.enumerators.setdefault((name, child.name), value)

    def _add_function(self, die: Die) -> None:
        """Definitions only. An out-of-line copy of an inlined function leads to the abstract one, which has it all; a
        constructor's or destructor's copies have linkage names of their own (C1, C2, D0 ...)."""
        if dwarf.DECLARATION in die.attributes:
            return
        chain, names = _chain(self._dies, die)
        if not names or not isinstance(names[0], str):
            return
        placed = next((d for d in chain if dwarf.DECLARED_LINE in d.attributes), die)
        file, line = placed.number(dwarf.DECLARED_FILE), placed.number(dwarf.DECLARED_LINE)
        if file is not None and line is not None:
            self.table.definitions.append(Definition(names[0], file, line))
        typed = next((d for d in chain if dwarf.TYPE in d.attributes), die)
        whole = chain[1] if dwarf.ORIGIN in die.attributes and len(chain) > 1 else die
        self.table.signatures.setdefault(names[0], f"{self._type(typed)} ({self._parameters(whole)})")

    def _add_variable(self, die: Die) -> None:
        if dwarf.DECLARATION in die.attributes:
            return
        chain, names = _chain(self._dies, die)
        if die.parent == dwarf.BODY:
            names = [die.attributes.get(dwarf.EXPRESSION)]  # Its name in the source is not that of the symbol.
        typed = next((d for d in chain if dwarf.TYPE in d.attributes), None)
        if typed is not None and names and isinstance(names[0], str):
            self.table.variables.setdefault(names[0], self._type(typed))


def _chain(dies: Mapping[int, Die], die: Die) -> tuple[list[Die], list[dwarf.Value]]:
    """An entry and those that it goes back to, and the names that they give, linkage names first."""
    chain = [die]
    for attribute in (dwarf.ORIGIN, dwarf.SPECIFICATION):
        origin = dies.get(chain[-1].number(attribute) or -1)
        if origin is not None:
            chain.append(origin)
    return chain, [d.attributes[a] for a in (dwarf.LINKAGE_NAME, dwarf.NAME) for d in chain if a in d.attributes]


def _count(subrange: Die) -> str:
    count = subrange.number(dwarf.COUNT)
    if count is None:
        bound = subrange.number(dwarf.UPPER_BOUND)
        count = None if bound is None else (bound + 1) & 0xFFFFFFFF
    return "" if count is None else str(count)


def _bits(member: Die, offset: int) -> tuple[int, int] | None:
    size = member.number(dwarf.BIT_SIZE)
    if size is None:
        return None
    start = member.number(dwarf.DATA_BIT_OFFSET)
    if start is None:  # DWARF 2 and 3 count from the most significant bit of a storage unit
        unit = (member.number(dwarf.BYTE_SIZE) or 4) * 8
        start = offset * 8 + unit - size - (member.number(dwarf.BIT_OFFSET) or 0)
    return start, size


# --- comparison ----------------------------------------------------------------------------------------------------


def _table(file: Path) -> _TypeTable:
    status = file.stat()
    return _cached_table(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _cached_table(file: Path, _changed: int, _size: int) -> _TypeTable:
    return _Reader(Types(file)).read()


def has_types(file: Path) -> bool:
    """Whether an object has debug information with types in it.

    Raises:
        ImageError: the debug information is malformed.
    """
    return _table(file).usable


def signatures(file: Path) -> Mapping[str, str]:
    """The signatures of the functions that an object defines, by linkage name: ``int (struct s *, ...)``.

    Raises:
        ImageError: the debug information is malformed.
    """
    return _table(file).signatures


def call_lines(file: Path) -> Mapping[str, Sequence[int]]:
    """The lines from which calls were inlined into each function of an object, by its linkage name, in the order of the
    debug information (clones of a function share its name).

    Raises:
        ImageError: the debug information is malformed.
    """
    types = Types(file, bodies=True)
    found: dict[str, list[int]] = {}
    for offset, lines in (types.calls or {}).items():
        _, names = _chain(types.dies, types.dies[offset])
        if names and isinstance(names[0], str):
            found.setdefault(names[0], []).extend(lines)
    return found


def definitions(file: Path) -> Sequence[Definition]:
    """Where the source defines the functions of an object.

    Raises:
        ImageError: the debug information is malformed.
    """
    return _table(file).definitions


def variables(file: Path) -> Mapping[str, str]:
    """The types of the static variables that an object defines, by the name of their symbol: ``struct s *``.

    Raises:
        ImageError: the debug information is malformed.
    """
    return _table(file).variables


def sources(file: Path) -> tuple[str, ...]:
    """The main source file of each unit of an object, with the directory that it was compiled in.

    Raises:
        ImageError: the debug information is malformed.
    """
    return tuple(_table(file).sources)


def compare_layouts(pre: Path, post: Path, path: Path) -> tuple[Finding, ...]:
    """Findings for every changed type that both objects know; ``path`` names the object in them.

    Raises:
        ImageError: the debug information is malformed.
    """
    if list(dwarf.fingerprint(pre)) == list(dwarf.fingerprint(post)):
        return ()
    before, after = _table(pre), _table(post)
    found = []
    for name, new in after.structures.items():
        old = before.structures.get(name)
        if old is not None and old != new:
            found.append(finding("MF111", path, name, what=_describe_change(name, old, new)))
    for name, target in after.typedefs.items():
        was = before.typedefs.get(name)
        if was is not None and was != target:
            found.append(finding("MF111", path, name, what=f"the type {name} changed from {was} to {target}"))
    for name, size in after.enumerations.items():
        if before.enumerations.get(name, size) != size:
            what = f"{name} changed from {before.enumerations[name]} to {size} bytes"
            found.append(finding("MF111", path, name, what=what))
    for (name, enumerator), value in after.enumerators.items():
        known = before.enumerators.get((name, enumerator), value)
        if known != value:
            what = f"{enumerator} changed from {known} to {value}"
            found.append(finding("MF150", path, f"{name} {enumerator}", what=what))
    return tuple(found)


def _describe_change(name: str, old: _Structure, new: _Structure) -> str:
    """ "struct context grew 96 -> 104: member `x` at +96 is new" """
    if old.size != new.size:
        start = f"{name} {'grew' if new.size > old.size else 'shrank'} {old.size} -> {new.size}"
    else:
        start = f"{name} ({new.size} bytes)"
    was = {m.name: m for m in old.members if m.name}
    now = {m.name: m for m in new.members if m.name}
    changes = []
    for key in [*now, *(key for key in was if key not in now)]:
        a, b = was.get(key), now.get(key)
        if a is None and b is not None:
            changes.append(f"member `{key}` at {b.place} is new")
        elif b is None and a is not None:
            changes.append(f"member `{key}` at {a.place} is gone")
        elif a is not None and b is not None and a.place != b.place:
            changes.append(f"member `{key}` moved from {a.place} to {b.place}")
        elif a is not None and b is not None and a.type != b.type:
            changes.append(f"member `{key}` changed from {a.type} to {b.type}")
    if not changes:
        changes.append("its unnamed members changed" if old.members != new.members else "its padding changed")
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f"{start}: {', '.join(changes[:_SHOWN])}{more}"
