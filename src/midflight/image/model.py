"""What every binary format is read into: plain, frozen data. Addresses are link-time virtual addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Binding = Literal["local", "global", "weak", "unique"]
SymbolType = Literal["notype", "object", "func", "section", "file", "common", "tls", "ifunc"]
Kind = Literal["relocatable", "executable", "shared"]


@dataclass(frozen=True, slots=True)
class Section:
    """One section. ``size`` is the size in memory; a NOBITS section has no bytes in the file."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header."""

    type: int
    readable: bool
    writable: bool
    executable: bool
    offset: int
    address: int
    file_size: int
    memory_size: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol. ``section`` is the section index, or None when undefined, absolute (``absolute``) or common.

    ``file`` is the source file named by the STT_FILE symbol before a local symbol, or None. ``version`` is the symbol
    version ("GLIBC_2.34"), ``default_version`` tells ``name@@V`` from ``name@V``.
    """

    index: int
    name: str
    value: int
    size: int
    binding: Binding
    type: SymbolType
    visibility: int
    section: int | None
    absolute: bool = False
    common: bool = False
    file: str | None = None
    version: str | None = None
    default_version: bool = True

    @property
    def defined(self) -> bool:
        """Whether this file gives the symbol a place."""
        return self.section is not None or self.absolute or self.common


@dataclass(frozen=True, slots=True)
class Relocation:
    """One relocation: ``offset`` is section-relative in relocatable files and a virtual address elsewhere;
    ``symbol`` is an index into the symbol table that the relocation section links to (0: none)."""

    offset: int
    type: int
    symbol: int
    addend: int
