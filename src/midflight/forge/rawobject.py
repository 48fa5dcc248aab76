"""One relocatable object as its sections, symbols and relocations, each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from midflight.errors import ImageError
from midflight.forge.difference.sizes import Extent, variable_extents
from midflight.image.binary import open_object
from midflight.image.coffobject import CoffObject, RuntimeFunction
from midflight.image.model import Relocation, Section, Symbol


class RawObject:
    """The parts of a relocatable that the forge reads.

    Raises ImageError for what is malformed or no x86-64 relocatable.
    """

    def __init__(self, file: Path) -> None:
        with open_object(file) as code:
            if code.kind != "relocatable":
                raise ImageError(f"{file}: is linked already; give an object file (.o)")
            self.name = str(file)
            self.format: Literal["elf", "pe"] = code.format
            self.sections: Sequence[Section] = code.sections
            self.symbols: Sequence[Symbol] = code.symbols()
            self.compiler = "; ".join(code.comments)
            self.lto = code.is_lto
            self._contents = {s.index: code.section_data(s) for s in self.sections if _is_loaded(s)}
            self._relocations = {s.index: code.relocations(s) for s in self.sections if _is_loaded(s)}
            self.runtime_functions: Sequence[RuntimeFunction] = ()
            """What .pdata describes, in COFF objects."""
            self.extents: Mapping[str, Extent] = {}
            """What debug information says of variables, in COFF objects."""
            if isinstance(code, CoffObject):
                self.runtime_functions = code.runtime_functions
                self.sections = _numbered(code.sections)
                self.extents = _extents(code.symbols(), file)
                self.symbols = _measured(code.symbols(), self.extents)
        if not self.symbols:
            raise ImageError(f"{file}: has no symbol table; build it without stripping")

    def content(self, index: int) -> bytes:
        """The bytes of a section that is loaded; empty for one without bytes in the file (.bss)."""
        return self._contents[index]

    def relocations(self, index: int) -> Sequence[Relocation]:
        """The relocations to be applied to a section that is loaded."""
        return self._relocations[index]


def _is_loaded(section: Section) -> bool:
    return bool(section.flags & 0x2)  # SHF_ALLOC


def _extents(symbols: Sequence[Symbol], file: Path) -> Mapping[str, Extent]:
    named = any(symbol.size and symbol.type in ("object", "tls") for symbol in symbols)
    return variable_extents(file) if named else {}


def _measured(symbols: Sequence[Symbol], extents: Mapping[str, Extent]) -> Sequence[Symbol]:
    """Symbols of variables with the sizes that debug information gives: theirs have the filling behind them as well."""
    return [
        replace(symbol, size=min(symbol.size, extents[symbol.name].size))
        if symbol.type in ("object", "tls") and not symbol.common and symbol.name in extents
        else symbol
        for symbol in symbols
    ]


def _numbered(sections: Sequence[Section]) -> Sequence[Section]:
    """Sections with names of their own: compilers for the MSVC ABI give every function's section the name .text."""
    names = [section.name for section in sections]
    several = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [
        replace(section, name=f"{section.name}[{section.index}]") if section.name in several else section
        for section in sections
    ]
