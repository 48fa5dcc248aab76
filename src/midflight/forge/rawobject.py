"""One relocatable object as its sections, symbols and relocations, each read once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from midflight.errors import ImageError
from midflight.image.elf import ElfFile
from midflight.image.model import Relocation, Section, Symbol


class RawObject:
    """The parts of an ELF relocatable that the forge reads.

    Raises ImageError for what is malformed or no x86-64 ELF relocatable.
    """

    def __init__(self, file: Path) -> None:
        with ElfFile.open(file) as elf:
            if elf.kind != "relocatable":
                raise ImageError(f"{file}: is linked already; give an object file (.o)")
            self.name = str(file)
            self.sections: Sequence[Section] = elf.sections
            self.symbols: Sequence[Symbol] = elf.symbols()
            self.compiler = "; ".join(elf.comments)
            self.lto = elf.is_lto
            self._contents = {s.index: elf.section_data(s) for s in self.sections if _is_loaded(s)}
            self._relocations = {s.index: elf.relocations(s) for s in self.sections if _is_loaded(s)}
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
