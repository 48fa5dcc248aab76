"""Sizes of variables by their debug information: COFF symbols have none, and fill follows a variable in its section."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from midflight.errors import ImageError
from midflight.forge.difference.dwarf import (
    ARRAY,
    ATOMIC,
    BODY,
    BYTE_SIZE,
    CONST,
    COUNT,
    DECLARATION,
    EXPRESSION,
    LINKAGE_NAME,
    POINTER,
    REFERENCE,
    RESTRICT,
    RVALUE,
    SPECIFICATION,
    SUBRANGE,
    TYPE,
    TYPEDEF,
    UPPER_BOUND,
    VARIABLE,
    VOLATILE,
    Die,
    Types,
)

_TRANSPARENT = frozenset({CONST, VOLATILE, RESTRICT, ATOMIC, TYPEDEF})
_ADDRESSES = frozenset({POINTER, REFERENCE, RVALUE})
_DEEPEST = 64


@lru_cache(maxsize=256)
def variable_sizes(file: Path) -> Mapping[str, int]:
    """Bytes of every variable that an object defines, by symbol; those that two differ on, and objects without usable
    debug information, are left out."""
    try:
        dies = Types(file).dies
    except ImageError:
        return {}
    found: dict[str, set[int]] = {}
    for die in dies.values():
        if die.tag != VARIABLE or DECLARATION in die.attributes:
            continue
        name = _symbol_name(dies, die)
        size = _size(dies, _type_of(dies, die), 0)
        if name is not None and size:
            found.setdefault(name, set()).add(size)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}


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


__all__ = ["variable_sizes"]
