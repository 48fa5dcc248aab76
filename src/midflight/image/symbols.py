"""Decodes symbol and relocation table entries.

Source: gABI 4.1 chapter 4; AMD64 supplement 4.3 and 4.4; gnu-gabi (STB_GNU_UNIQUE, STT_GNU_IFUNC, SHT_RELR).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from midflight.image.model import Binding, Relocation, Symbol, SymbolType
from midflight.image.source import MAX_ENTRIES, Source, Strings

ENTRY = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QIIq")

R_64, R_COPY, R_GLOB_DAT, R_JUMP_SLOT, R_RELATIVE, R_IRELATIVE = 1, 5, 6, 7, 8, 37

_SHN_LORESERVE, _SHN_LCOMMON, _SHN_ABS, _SHN_COMMON, _SHN_XINDEX = 0xFF00, 0xFF02, 0xFFF1, 0xFFF2, 0xFFFF
_BINDINGS: dict[int, Binding] = {0: "local", 1: "global", 2: "weak", 10: "unique"}
_TYPES: dict[int, SymbolType] = {
    0: "notype",
    1: "object",
    2: "func",
    3: "section",
    4: "file",
    5: "common",
    6: "tls",
    10: "ifunc",
}

Version = tuple[str | None, bool]
"""Version name, and whether it is the default one."""


def read_symbols(
    source: Source,
    table: bytes,
    strings: Strings,
    *,
    sections: int,
    extended: bytes = b"",
    version: Callable[[int, bool], Version] | None = None,
    first: int = 0,
) -> list[Symbol]:
    """The symbols of ``table``, in order, the null symbol included, so that a list index is a symbol index.

    ``sections`` is how many sections there are (0: not known, not checked). ``extended`` is the SHT_SYMTAB_SHNDX table.
    ``version(index, defined)`` gives versions of a dynamic table; without it, ``name@V`` and ``name@@V`` are taken
    apart, as linkers write them into .symtab. ``first`` is the index of the first entry of ``table``.
    """
    if len(table) % ENTRY.size:
        raise source.bad("a symbol table has an incomplete entry")
    if len(table) // ENTRY.size > MAX_ENTRIES:
        raise source.bad("a symbol table has too many entries")
    symbols = []
    file: str | None = None
    for index, (name_offset, info, other, shndx, value, size) in enumerate(ENTRY.iter_unpack(table), first):
        name = strings.get(name_offset)
        binding = _BINDINGS.get(info >> 4)
        if binding is None:
            raise source.bad(f"symbol {index} has unknown binding {info >> 4}")
        kind = _TYPES.get(info & 15, "notype")
        section: int | None = shndx
        absolute = common = False
        if shndx == 0:
            section = None
        elif shndx >= _SHN_LORESERVE:
            section, absolute, common = _reserved(source, index - first, shndx, extended)
        if section is not None and sections and section >= sections:
            raise source.bad(f"symbol {index} is in section {section}, which does not exist")
        if kind == "file":
            file = name
        named: str | None = None
        default = True
        if version is not None:
            named, default = version(index, shndx != 0)
        elif "@" in name and name[0] != "@":
            name, default, named = _split_version(name)
        origin = (file or None) if binding == "local" and kind != "file" else None
        symbols.append(
            Symbol(
                index, name, value, size, binding, kind, other & 3, section, absolute, common, origin, named, default
            )
        )
    return symbols


def _reserved(source: Source, row: int, shndx: int, extended: bytes) -> tuple[int | None, bool, bool]:
    """(section, absolute, common) of a symbol with a reserved section index."""
    if shndx == _SHN_ABS:
        return None, True, False
    if shndx in (_SHN_COMMON, _SHN_LCOMMON):
        return None, False, True
    if shndx == _SHN_XINDEX and len(extended) >= 4 * row + 4:
        section = int.from_bytes(extended[4 * row : 4 * row + 4], "little")
        return section or None, False, False
    raise source.bad(f"a symbol has the unknown section index {shndx:#x}")


def _split_version(name: str) -> tuple[str, bool, str]:
    """("name", default, "V") of ``name@V`` or ``name@@V``."""
    base, _, version = name.partition("@")
    return base, version.startswith("@"), version.lstrip("@")


def read_relocations(source: Source, table: bytes, what: str) -> list[Relocation]:
    """Relocations with addend (RELA), in order."""
    if len(table) % RELA.size:
        raise source.bad(f"{what} has an incomplete entry")
    if len(table) // RELA.size > MAX_ENTRIES:
        raise source.bad(f"{what} has too many entries")
    return [Relocation(offset, kind, symbol, addend) for offset, kind, symbol, addend in RELA.iter_unpack(table)]


def read_relr(source: Source, table: bytes, addend: Callable[[int], int]) -> list[Relocation]:
    """Packed relative relocations (DT_RELR) as R_X86_64_RELATIVE. Source: gABI, "Relative relocations" (SHT_RELR).

    ``addend(vaddr)`` reads the word that stands at a place."""
    if len(table) % 8:
        raise source.bad("the RELR table has an incomplete entry")
    places: list[int] = []
    base: int | None = None
    for (word,) in struct.iter_unpack("<Q", table):
        if not word & 1:
            places.append(word)
            base = word + 8
            continue
        if base is None:
            raise source.bad("the RELR table begins with a bitmap")
        bits = word >> 1
        places.extend(base + 8 * bit for bit in range(63) if bits >> bit & 1)
        base += 63 * 8
        if len(places) > MAX_ENTRIES:
            raise source.bad("the RELR table has too many entries")
    return [Relocation(place, R_RELATIVE, 0, addend(place)) for place in places]
