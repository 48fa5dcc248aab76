"""The tables behind the data directories of a PE image: exports, imports, base relocations, .pdata, load config.

Source: Microsoft, "PE Format" ("Special Sections", "The Load Configuration Structure"); winnt.h for what it leaves out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from midflight.image import coff
from midflight.image.model import Symbol, SymbolType
from midflight.image.source import MAX_ENTRIES, Source, decode

if TYPE_CHECKING:
    from midflight.image.pdb import CodeView
    from midflight.image.pe import PeFile

_EXPORT, _IMPORT, _EXCEPTION, _BASERELOC, _DEBUG, _DELAY, _LOAD_CONFIG = 0, 1, 3, 5, 6, 13, 10
_DEBUG_DIRECTORY = struct.Struct("<IIHHIIII")
_CODEVIEW = 2
_EXPORT_DIRECTORY = struct.Struct("<IIHHIIIIIII")
_IMPORT_DESCRIPTOR = struct.Struct("<IIIII")
_DELAY_DESCRIPTOR = struct.Struct("<IIIIIIII")
_FUNCTION = struct.Struct("<III")
_ORDINAL = 1 << 63
_REL_ABSOLUTE, _REL_DIR64 = 0, 10
_MOST_LIBRARIES = 1 << 14


@dataclass(frozen=True, slots=True)
class Export:
    """One export. ``name`` is "" where it has an ordinal alone; ``forward`` is ``library.name`` or ``library.#ordinal``
    when another DLL has it, and ``rva`` is then that of this text."""

    ordinal: int
    name: str
    rva: int
    forward: str | None


@dataclass(frozen=True, slots=True)
class ImportedSymbol:
    """One import: ``slot`` is the RVA of its entry in the import address table. ``library`` is in lower case; ``name``
    is ``library#ordinal`` for an import by ordinal."""

    library: str
    name: str
    ordinal: int | None
    slot: int


@dataclass(frozen=True, slots=True)
class RuntimeFunction:
    """An entry of .pdata: code [begin, end), and its UNWIND_INFO; all RVAs."""

    begin: int
    end: int
    unwind: int


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """IMAGE_LOAD_CONFIG_DIRECTORY64, as much as is asked for; 0 where the image's own structure is too short."""

    size: int
    guard_flags: int
    guard_functions: int
    """RVA of the table of functions that control flow guard lets be called."""
    guard_count: int
    hotpatch_offset: int
    """HotPatchTableOffset: RVA of IMAGE_HOT_PATCH_INFO."""


def _export_directory(image: PeFile) -> tuple[int, ...] | None:
    rva, _ = image.directory(_EXPORT)
    if not rva:
        return None
    return _EXPORT_DIRECTORY.unpack(image.read_table(rva, _EXPORT_DIRECTORY.size, "the export directory"))


def export_name(image: PeFile) -> str | None:
    """The DLL's own name in its export directory."""
    directory = _export_directory(image)
    return image.read_string(directory[4], "the name in the export directory") if directory and directory[4] else None


def read_exports(image: PeFile) -> tuple[Export, ...]:
    """All exports by ordinal. Raises ImageError for tables that lie outside of the image."""
    directory = _export_directory(image)
    if directory is None:
        return ()
    base, functions, names, functions_at, names_at, ordinals_at = directory[5:11]
    if functions > 1 << 16 or names > MAX_ENTRIES:
        raise image.bad("too many exports")
    rvas = struct.unpack(f"<{functions}I", image.read_table(functions_at, 4 * functions, "the export address table"))
    name_rvas = struct.unpack(f"<{names}I", image.read_table(names_at, 4 * names, "the export name table"))
    ordinals = struct.unpack(f"<{names}H", image.read_table(ordinals_at, 2 * names, "the export ordinal table"))
    by_function: dict[int, list[str]] = {}
    for name_rva, index in zip(name_rvas, ordinals, strict=True):
        if index >= functions:
            raise image.bad("an exported name has no function")
        by_function.setdefault(index, []).append(image.read_string(name_rva, "the name of an export"))
    start, size = image.directory(_EXPORT)
    found = []
    for index, rva in enumerate(rvas):
        if not rva:
            continue
        # An address inside of the export directory is no function, but the text that says who has it.
        forward = image.read_string(rva, "the target of a forwarder") if start <= rva < start + size else None
        for name in by_function.get(index, [""]):
            found.append(Export(base + index, name, rva, forward))
    return tuple(found)


def read_imports(image: PeFile) -> tuple[ImportedSymbol, ...]:
    """All imports but those that are bound when first used (delay loaded): their slots lead to a helper at first."""
    rva, _ = image.directory(_IMPORT)
    found: list[ImportedSymbol] = []
    for number in range(_MOST_LIBRARIES if rva else 0):
        raw = image.read_table(rva + number * _IMPORT_DESCRIPTOR.size, _IMPORT_DESCRIPTOR.size, "the import directory")
        names_at, _, _, library_at, slots_at = _IMPORT_DESCRIPTOR.unpack(raw)
        if not library_at or not slots_at:
            return tuple(found)
        library = image.read_string(library_at, "the name of a DLL").lower()
        _read_slots(image, library, names_at or slots_at, slots_at, found)
    if rva:
        raise image.bad("the import directory does not end")
    return ()


def _read_slots(image: PeFile, library: str, names_at: int, slots_at: int, found: list[ImportedSymbol]) -> None:
    at = 0
    while True:
        (value,) = struct.unpack("<Q", image.read_table(names_at + at, 8, "an import lookup table"))
        if value == 0:
            return
        if value & _ORDINAL:
            ordinal = value & 0xFFFF
            found.append(ImportedSymbol(library, f"{library}#{ordinal}", ordinal, slots_at + at))
        else:
            name = image.read_string((value & 0x7FFFFFFF) + 2, "the name of an import")
            found.append(ImportedSymbol(library, name, None, slots_at + at))
        if len(found) > MAX_ENTRIES:
            raise image.bad("too many imports")
        at += 8


def base_relocations(image: PeFile) -> tuple[tuple[int, int], ...]:
    """(RVA, the eight bytes there as a number) of every pointer that the loader relocates.

    Raises ImageError for kinds that an image for x86-64 does not have."""
    start, size = image.directory(_BASERELOC)
    table = image.read_table(start, size, "the base relocations") if start else b""
    found = []
    at = 0
    while at + 8 <= len(table):
        page, length = struct.unpack_from("<II", table, at)
        if length < 8 or at + length > len(table):
            if page == 0 and length == 0:
                break  # fill up to the directory's size
            raise image.bad("a block of base relocations has an impossible size")
        for (entry,) in struct.iter_unpack("<H", table[at + 8 : at + length - length % 2]):
            kind, rva = entry >> 12, page + (entry & 0xFFF)
            if kind == _REL_DIR64:
                found.append((rva, int.from_bytes(image.read_table(rva, 8, "a relocated pointer"), "little")))
            elif kind != _REL_ABSOLUTE:
                raise image.bad(f"a base relocation of the kind {kind}, which x86-64 does not have")
        at += length
    return tuple(found)


def read_runtime_functions(image: PeFile) -> tuple[RuntimeFunction, ...]:
    """.pdata through its data directory, by address. Raises ImageError when entries overlap or are out of order."""
    start, size = image.directory(_EXCEPTION)
    size -= size % _FUNCTION.size
    found: list[RuntimeFunction] = []
    for begin, end, unwind in _FUNCTION.iter_unpack(image.read_table(start, size, ".pdata") if start else b""):
        if begin == 0 and end == 0:
            continue
        if end <= begin or (found and begin < found[-1].end):
            raise image.bad(".pdata describes functions that overlap or are out of order")
        found.append(RuntimeFunction(begin, end, unwind))
    return tuple(found)


def read_codeview(image: PeFile) -> CodeView | None:
    """What the debug directory says of the image's PDB, in the form "RSDS"; None without."""
    from midflight.image.pdb import CodeView

    start, size = image.directory(_DEBUG)
    table = image.read_table(start, size - size % _DEBUG_DIRECTORY.size, "the debug directory") if start else b""
    for _, _, _, _, kind, length, rva, _ in _DEBUG_DIRECTORY.iter_unpack(table):
        if kind != _CODEVIEW or not rva or not 24 < length <= 1 << 16:
            continue
        raw = image.read_table(rva, length, "the name of the PDB")
        if raw[:4] == b"RSDS":
            return CodeView(raw[4:20].hex(), int.from_bytes(raw[20:24], "little"), decode(raw[24:].split(b"\0")[0]))
    return None


def read_load_config(image: PeFile) -> LoadConfig | None:
    """The load configuration; its own first field says how much of it there is."""
    rva, _ = image.directory(_LOAD_CONFIG)
    if not rva:
        return None
    (size,) = struct.unpack("<I", image.read_table(rva, 4, "the load configuration"))
    raw = image.read_table(rva, min(size, 0x200), "the load configuration")

    def number(offset: int, width: int) -> int:
        return int.from_bytes(raw[offset : offset + width], "little") if offset + width <= len(raw) else 0

    table = number(0x80, 8)
    return LoadConfig(
        size=size,
        guard_flags=number(0x90, 4),
        guard_functions=max(table - image.image_base, 0) if table else 0,
        guard_count=number(0x88, 8),
        hotpatch_offset=number(0xF0, 4),
    )


def coff_symbols(image: PeFile, source: Source, header: coff.Header) -> tuple[Symbol, ...]:
    """The symbols that GNU linkers leave in images. Sizes come from .pdata; without it a symbol has none."""
    strings = coff.read_strings(source, header)
    ends = {item.begin: item.end for item in image.runtime_functions}
    found: list[Symbol] = []
    file: str | None = None
    for raw in coff.read_raw_symbols(source, header, strings):
        if not found:
            found.append(Symbol(0, "", 0, 0, "local", "notype", 0, None))
        if raw.storage == coff.CLASS_FILE:
            file = decode(raw.aux.split(b"\0")[0]) or None
            found.append(Symbol(len(found), file or "", 0, 0, "local", "file", 0, None, absolute=True))
            continue
        symbol = _coff_symbol(image, raw, len(found), file)
        found.append(replace(symbol, size=max(0, ends.get(symbol.value, symbol.value) - symbol.value)))
    return tuple(found)


def _coff_symbol(image: PeFile, raw: coff.RawSymbol, index: int, file: str | None) -> Symbol:
    if raw.section <= 0:
        return Symbol(index, raw.name, raw.value, 0, "global", "notype", 0, None, absolute=raw.section < 0)
    section = image.sections[raw.section]
    outer = raw.storage in (2, 105)
    if raw.is_section:
        return Symbol(index, "", section.address, 0, "local", "section", 0, raw.section)
    type_: SymbolType = "object"
    if section.flags & coff.SHF_TLS:
        type_ = "tls"
    elif section.flags & coff.SHF_EXECINSTR:
        type_ = "func" if raw.type >> 4 == 2 else "notype"
    # A thread-local variable's value is its offset in the thread-local storage, as in ELF.
    value = raw.value if type_ == "tls" else section.address + raw.value
    own = None if outer else coff.source_name(file)
    return Symbol(index, raw.name, value, 0, "global" if outer else "local", type_, 0, raw.section, file=own)
