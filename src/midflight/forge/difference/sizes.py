"""Sizes and alignments of variables by their debug information: COFF symbols have neither, fill follows a variable in
its section, and GNU's assembler aligns every section to 16 bytes, whatever is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from midflight.errors import ImageError
from midflight.forge.difference.dwarf import (
    ARRAY,
    ATOMIC,
    BASE,
    BODY,
    BYTE_SIZE,
    CLASS,
    CONST,
    COUNT,
    DECLARATION,
    ENUMERATION,
    EXPRESSION,
    INHERITANCE,
    LINKAGE_NAME,
    LOCATION,
    MEMBER,
    POINTER,
    REFERENCE,
    RESTRICT,
    RVALUE,
    SPECIFICATION,
    STRUCTURE,
    SUBRANGE,
    TYPE,
    TYPEDEF,
    UNION,
    UPPER_BOUND,
    VARIABLE,
    VOLATILE,
    Die,
    Types,
)

_TRANSPARENT = frozenset({CONST, VOLATILE, RESTRICT, ATOMIC, TYPEDEF})
_ADDRESSES = frozenset({POINTER, REFERENCE, RVALUE})
_SCALARS = frozenset({BASE, ENUMERATION})
_COMPOUND = frozenset({STRUCTURE, CLASS, UNION})
_DEEPEST = 64
_MOST_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a variable, and what its address is a multiple of by its type: at least, as attributes may ask for
    more. 1 where the type does not say."""

    size: int
    alignment: int


@lru_cache(maxsize=256)
def variable_extents(file: Path) -> Mapping[str, Extent]:
    """Size and alignment of every variable that an object defines, by symbol; those that two differ on, and objects
    without usable debug information, are left out."""
    try:
        dies = Types(file).dies
    except ImageError:
        return {}
    found: dict[str, set[Extent]] = {}
    for die in dies.values():
        if die.tag != VARIABLE or DECLARATION in die.attributes:
            continue
        name = _symbol_name(dies, die)
        type_ = _type_of(dies, die)
        size = _size(dies, type_, 0)
        if name is not None and size:
            found.setdefault(name, set()).add(Extent(size, _alignment(dies, type_, 0)))
    return {name: extents.pop() for name, extents in found.items() if len(extents) == 1}


def _origin(dies: Mapping[int, Die], die: Die) -> Die | None:
    """The declaration that a definition outside of its class or namespace completes."""
    number = die.number(SPECIFICATION)
    return None if number is None else dies.get(number)


def _symbol_name(dies: Mapping[int, Die], die: Die) -> str | None:
    origin = _origin(dies, die)
    for value in (die.attributes.get(EXPRESSION), die.attributes.get(LINKAGE_NAME)):
        if isinstance(value, str):
            return value
    if origin is not None:
        linkage = origin.attributes.get(LINKAGE_NAME)
        return linkage if isinstance(linkage, str) else origin.name
    return None if die.parent == BODY else die.name


def _type_of(dies: Mapping[int, Die], die: Die) -> Die | None:
    number = die.number(TYPE)
    if number is None:
        origin = _origin(dies, die)
        number = origin.number(TYPE) if origin is not None else None
    return None if number is None else dies.get(number)


def _size(dies: Mapping[int, Die], die: Die | None, depth: int) -> int | None:
    """Bytes of a type; None where the debug information does not say."""
    if die is None or depth > _DEEPEST:
        return None
    own = die.number(BYTE_SIZE)
    if own is not None:
        return own
    if die.tag in _ADDRESSES:
        return 8
    if die.tag in _TRANSPARENT:
        return _size(dies, _type_of(dies, die), depth + 1)
    if die.tag != ARRAY:
        return None
    size = _size(dies, _type_of(dies, die), depth + 1)
    for child in (dies[number] for number in die.children if number in dies):
        if child.tag != SUBRANGE or size is None:
            continue
        count, last = child.number(COUNT), child.number(UPPER_BOUND)
        if count is None and last is None:
            return None
        size *= count if count is not None else (last or 0) + 1
    return size


def _alignment(dies: Mapping[int, Die], die: Die | None, depth: int) -> int:
    """What every object of a type is aligned to (Microsoft, "x64 ABI conventions", types and storage: to its own size,
    and compounds to their most aligned member); 1 for what is packed, or unknown."""
    if die is None or depth > _DEEPEST:
        return 1
    if die.tag in _ADDRESSES:
        return 8
    if die.tag in _TRANSPARENT or die.tag == ARRAY:
        return _alignment(dies, _type_of(dies, die), depth + 1)
    size = die.number(BYTE_SIZE) or 0
    if die.tag in _SCALARS:
        return size if 0 < size <= _MOST_ALIGNED and size & (size - 1) == 0 else 1
    if die.tag not in _COMPOUND:
        return 1
    most = 1
    for child in (dies[number] for number in die.children if number in dies):
        if child.tag not in (MEMBER, INHERITANCE):
            continue
        own = _alignment(dies, _type_of(dies, child), depth + 1)
        if (child.number(LOCATION) or 0) % own:
            return 1
        most = max(most, own)
    return 1 if size % most else most


__all__ = ["Extent", "variable_extents"]
