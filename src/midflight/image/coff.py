"""COFF: the tables that Windows objects and PE images share: file header, sections, symbols, strings.

Source: Microsoft, "PE Format" (COFF File Header, Section Table, COFF Symbol Table, COFF String Table).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from midflight.errors import ImageError
from midflight.image.source import MAX_ENTRIES, Source, Strings, decode

MACHINE_AMD64 = 0x8664
SHT_PROGBITS, SHT_NOBITS = 1, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_GROUP, SHF_TLS = 0x1, 0x2, 0x4, 0x200, 0x400
CNT_CODE, CNT_BSS, LNK_INFO, LNK_REMOVE, LNK_COMDAT = 0x20, 0x80, 0x200, 0x800, 0x1000
LNK_NRELOC_OVFL, MEM_DISCARDABLE, MEM_EXECUTE, MEM_READ, MEM_WRITE = (
    0x0100_0000,
    0x0200_0000,
    0x2000_0000,
    0x4000_0000,
    0x8000_0000,
)

_HEADER = struct.Struct("<HHIIIHH")
_SECTION = struct.Struct("<8sIIIIIIHHI")
_SYMBOL = struct.Struct("<8sIhHBB")
_BIG_SYMBOL = struct.Struct("<8sIiHBB")
_BIG_MAGIC = bytes.fromhex("c7a1bad1eebaa94baf20faf66aa4dcb8")  # ClassID of ANON_OBJECT_HEADER_BIGOBJ
_MACHINES = {0x14C: "i386", 0x1C0: "ARM", 0x1C4: "ARM (Thumb-2)", 0xAA64: "ARM64", 0xA641: "ARM64EC", 0x200: "Itanium"}
CLASS_EXTERNAL, CLASS_STATIC, CLASS_LABEL, CLASS_FILE, CLASS_WEAK = 2, 3, 6, 103, 105


def machine_name(machine: int) -> str:
    """What a machine number means, for messages."""
    return _MACHINES.get(machine, f"machine {machine:#x}")


@dataclass(frozen=True, slots=True)
class Header:
    """The file header. ``sections_at`` is the file offset of the section table."""

    machine: int
    sections: int
    timestamp: int
    symbols_at: int
    symbols: int
    optional_size: int
    characteristics: int
    sections_at: int
    big: bool = False

    @property
    def symbol_size(self) -> int:
        return _BIG_SYMBOL.size if self.big else _SYMBOL.size


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """One entry of the section table, as it stands in the file; ``name`` is resolved."""

    name: str
    virtual_size: int
    virtual_address: int
    raw_size: int
    raw_at: int
    relocations_at: int
    relocations: int
    characteristics: int


@dataclass(frozen=True, slots=True)
class RawSymbol:
    """One symbol with the bytes of its auxiliary records; ``index`` counts those too, as relocations do."""

    index: int
    name: str
    value: int
    section: int
    """One-based; 0 undefined, -1 absolute, -2 debugging."""
    type: int
    storage: int
    aux: bytes

    @property
    def is_section(self) -> bool:
        """Whether it stands for its section: a static symbol with the section's definition (PE format, 5.5.5)."""
        return (
            self.section > 0 and self.storage == CLASS_STATIC and self.value == 0 and self.type == 0 and bool(self.aux)
        )


def read_header(source: Source, offset: int) -> Header:
    """The COFF file header at ``offset``; for an object (offset 0) also the one of "bigobj" files."""
    source.format = "PE or COFF"
    raw = source.read(offset, _HEADER.size, "the COFF header")
    machine, count, timestamp, symbols_at, symbols, optional, characteristics = _HEADER.unpack(raw)
    if offset == 0 and machine == 0 and count == 0xFFFF:
        wide = source.read(0, 56, "the COFF header")
        if wide[12:28] != _BIG_MAGIC:
            raise ImageError(f"{source.name}: an import member or compiler's intermediate code, not an object file")
        machine, timestamp = struct.unpack_from("<HI", wide, 6)
        count, symbols_at, symbols = struct.unpack_from("<III", wide, 44)
        return Header(machine, count, timestamp, symbols_at, symbols, 0, 0, 56, big=True)
    return Header(
        machine, count, timestamp, symbols_at, symbols, optional, characteristics, offset + _HEADER.size + optional
    )


def read_strings(source: Source, header: Header) -> Strings:
    """The string table behind the symbols; its first four bytes hold its size."""
    if not header.symbols_at:
        return Strings(source, b"", "the string table")
    at = header.symbols_at + header.symbols * header.symbol_size
    if not source.holds(at, 4):
        return Strings(source, b"", "the string table")
    size = int.from_bytes(source.read(at, 4, "the string table"), "little")
    return Strings(source, source.read(at, max(size, 4), "the string table"), "the string table")


def read_section_headers(source: Source, header: Header, strings: Strings | None) -> tuple[SectionHeader, ...]:
    """The section table. A name of more than eight bytes stands in the string table: ``/123``, or ``//AAAAAA``; without
    that table it stays so."""
    if header.sections > MAX_ENTRIES:
        raise source.bad("too many sections")
    table = source.read(header.sections_at, header.sections * _SECTION.size, "the section table")
    found = []
    for name, *numbers in _SECTION.iter_unpack(table):
        size, address, raw_size, raw_at, relocations_at, _, relocations, _, characteristics = numbers
        found.append(
            SectionHeader(
                _section_name(source, name, strings),
                size,
                address,
                raw_size,
                raw_at,
                relocations_at,
                relocations,
                characteristics,
            )
        )
    return tuple(found)


def _section_name(source: Source, raw: bytes, strings: Strings | None) -> str:
    text = raw.rstrip(b"\0")
    if strings is None:
        return decode(text)
    if text[:2] == b"//" and len(text) > 2:
        offset = 0
        for letter in text[2:]:
            digit = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".find(letter)
            if digit < 0:
                raise source.bad("a section has a name that cannot be read")
            offset = offset * 64 + digit
        return strings.get(offset)
    if text[:1] == b"/" and text[1:].isdigit():
        return strings.get(int(text[1:]))
    return decode(text.split(b"\0")[0])


def read_raw_symbols(source: Source, header: Header, strings: Strings) -> tuple[RawSymbol, ...]:
    """The symbol table, in file order."""
    if not header.symbols_at or not header.symbols:
        return ()
    if header.symbols > MAX_ENTRIES:
        raise source.bad("too many symbols")
    size = header.symbol_size
    layout = _BIG_SYMBOL if header.big else _SYMBOL
    table = source.read(header.symbols_at, header.symbols * size, "the symbol table")
    found = []
    index = 0
    while index < header.symbols:
        name, value, section, type_, storage, aux = layout.unpack_from(table, index * size)
        end = index + 1 + aux
        if end > header.symbols:
            raise source.bad("the symbol table ends inside a symbol")
        text = (
            strings.get(int.from_bytes(name[4:], "little"))
            if name[:4] == bytes(4) and name[4:] != bytes(4)
            else decode(name.split(b"\0")[0])
        )
        if not -2 <= section <= header.sections:
            raise source.bad("a symbol is in a section that does not exist")
        found.append(RawSymbol(index, text, value, section, type_, storage, table[(index + 1) * size : end * size]))
        index = end
    return tuple(found)


def section_flags(header: SectionHeader, *, image: bool) -> int:
    """Characteristics as SHF_* flags."""
    bits = header.characteristics
    flags = 0
    skipped = bits & (LNK_INFO | LNK_REMOVE) and not image
    debug = header.name.startswith((".debug", ".zdebug", "/"))
    if not skipped and not debug:
        flags |= SHF_ALLOC
    if bits & (CNT_CODE | MEM_EXECUTE):
        flags |= SHF_EXECINSTR
    if bits & MEM_WRITE:
        flags |= SHF_WRITE
    if bits & LNK_COMDAT and not image:
        flags |= SHF_GROUP
    if header.name == ".tls" or header.name.startswith(".tls$"):
        flags |= SHF_TLS
    return flags


def alignment_of(characteristics: int) -> int:
    """IMAGE_SCN_ALIGN_*: bits 20 to 23 hold one more than the power of two; none: 16, as linkers take it."""
    power = characteristics >> 20 & 0xF
    return 1 << (power - 1) if 1 <= power <= 14 else 16


def source_name(file: str | None) -> str | None:
    """The name of a source file without folders, of either system's kind: what STT_FILE of ELF holds."""
    return re.split(r"[/\\]", file)[-1] if file else None
