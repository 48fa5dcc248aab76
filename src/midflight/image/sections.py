"""Section headers: a list that a finished image may lack. Source: gABI 4.1 chapter 4."""

from __future__ import annotations

import struct

from midflight.image.layout import Layout
from midflight.image.model import Section
from midflight.image.source import Strings

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 7, 8, 9
SHT_DYNSYM, SHT_SYMTAB_SHNDX = 11, 18
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 1, 2, 4, 0x800

_HEADER = struct.Struct("<IIQQQQIIQQ")
_XINDEX = 0xFFFF
_MOST_SECTIONS = 1 << 20


def read_sections(layout: Layout) -> tuple[Section, ...]:
    """All sections, the null section included, so that an index is a section index; () when there are none."""
    source, offset = layout.source, layout.section_offset
    if offset == 0 or (source.partial and not source.holds(offset, _HEADER.size)):
        return ()
    count, names_index = layout.section_count, layout.section_names
    if count == 0 or names_index == _XINDEX:
        null = _HEADER.unpack(source.read(offset, _HEADER.size, "section header 0"))
        count = count or null[5]
        names_index = null[6] if names_index == _XINDEX else names_index
    if count > _MOST_SECTIONS:
        raise source.bad("too many sections")
    if source.partial and not source.holds(offset, count * _HEADER.size):
        return ()
    rows = list(_HEADER.iter_unpack(source.read(offset, count * _HEADER.size, "the section header table")))
    names = Strings(source, b"", "the section names")
    if names_index:
        if names_index >= count or rows[names_index][1] != SHT_STRTAB:
            raise source.bad("the section names are not in a string table")
        at, size = rows[names_index][4:6]
        names = Strings(source, source.read(at, size, "the section names"), "the section names")
    sections = []
    for index, (name, kind, flags, address, at, size, link, info, alignment, entry_size) in enumerate(rows):
        if index == 0:
            size = link = 0  # They hold what did not fit in the file header.
        sections.append(
            Section(index, names.get(name), kind, flags, address, at, size, link, info, alignment, entry_size)
        )
    return tuple(sections)
