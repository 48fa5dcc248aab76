"""COFF objects (.o, .obj) read into the model of ELF ones.

An object answers as an ELF relocatable does, so that the forge has one way of reading both: section flags are SHF_*,
and relocations are R_X86_64_* with explicit addends. What Windows has and ELF has not keeps its meaning in ELF's terms:

* ``__imp_f``, the slot of the import address table, is what ELF reaches by R_X86_64_GOTPCREL of ``f``.
* IMAGE_REL_AMD64_SECREL in code is the offset in the module's thread-local storage, R_X86_64_DTPOFF32.
* IMAGE_REL_AMD64_ADDR32NB has no counterpart and is :data:`R_RVA32`.

COFF has no symbol sizes: they are taken from the unwind tables, or else reach up to the next symbol. Source: Microsoft,
"PE Format" (COFF Relocations, Auxiliary Symbol Records).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from midflight.errors import ImageError
from midflight.image import coff
from midflight.image.model import Binding, Kind, Relocation, Section, Segment, Symbol, SymbolType
from midflight.image.reader import Reader
from midflight.image.source import MAX_ENTRIES, Source, decode

R_64, R_PC32, R_GOTPCREL, R_32, R_DTPOFF32 = 1, 2, 9, 10, 21
R_RVA32 = 0x103
"""S + A - the image base (IMAGE_REL_AMD64_ADDR32NB): no type of ELF, so a number that ELF does not use."""
R_UNKNOWN = 0x200
"""Added to an IMAGE_REL_AMD64_* that has no meaning here."""

_RELOCATION = struct.Struct("<IIH")
_REL32, _REL32_5, _ADDR64, _ADDR32, _ADDR32NB, _SECTION_INDEX, _SECREL = 4, 9, 1, 2, 3, 10, 11
_IMPORT = "__imp_"
_RUNTIME_FUNCTION = 12


@dataclass(frozen=True, slots=True)
class RuntimeFunction:
    """An entry of .pdata: code from ``start`` to ``end`` of ``section``, its UNWIND_INFO at ``info`` of another."""

    section: int
    start: int
    end: int
    info_section: int
    info: int


class CoffObject(Reader):
    """One COFF relocatable for x86-64, in the words of :class:`~midflight.image.elf.ElfFile`."""

    format: Literal["elf", "pe"] = "pe"
    is_pie = False
    is_dynamic = False
    entry = 0
    build_id: str | None = None
    segments: tuple[Segment, ...] = ()

    def __init__(self, data: bytes | bytearray | memoryview | Source, name: str = "object") -> None:
        super().__init__(data, name)
        self._header = coff.read_header(self._source, 0)
        if self._header.machine != coff.MACHINE_AMD64:
            what = coff.machine_name(self._header.machine)
            raise ImageError(f"{self.name}: COFF for {what} is not supported, or no object at all; only x86-64 is")
        if self._header.optional_size:
            raise self._source.bad("an object with an optional header")
        self._strings = coff.read_strings(self._source, self._header)
        self._headers = coff.read_section_headers(self._source, self._header, self._strings)

    @property
    def kind(self) -> Kind:
        return "relocatable"

    # --- sections --------------------------------------------------------------------------------------------------

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All sections by their one-based number, a null section first."""
        found = [Section(0, "", 0, 0, 0, 0, 0, 0, 0, 0, 0)]
        for index, header in enumerate(self._headers, 1):
            empty = bool(header.characteristics & coff.CNT_BSS) or not header.raw_at
            found.append(
                Section(
                    index,
                    header.name,
                    coff.SHT_NOBITS if empty else coff.SHT_PROGBITS,
                    coff.section_flags(header, image=False),
                    0,
                    header.raw_at,
                    header.raw_size,
                    0,
                    0,
                    coff.alignment_of(header.characteristics),
                    0,
                )
            )
        return tuple(found)

    def section(self, name: str) -> Section | None:
        """The first section of that name, or None (objects may have several of one name)."""
        return next((s for s in self.sections if s.name == name), None)

    def section_data(self, section: Section) -> bytes:
        """The section's bytes, fields not relocated. A section without bytes in the file has none: b""."""
        if section.type != coff.SHT_PROGBITS:
            return b""
        return self._source.read(section.offset, section.size, f"section {section.name or section.index}")

    @cached_property
    def comments(self) -> tuple[str, ...]:
        """What the compiler wrote of itself: gcc into .rdata$zzz, as .comment of ELF; clang into its DWARF alone."""
        texts: dict[str, None] = {}
        for section in self.sections:
            if section.name == ".rdata$zzz":
                for part in self.section_data(section).split(b"\0"):
                    if part:
                        texts[decode(part)] = None
        debug = self.section(".debug_str") if not texts else None
        for part in self.section_data(debug).split(b"\0") if debug is not None else ():
            if b"clang version" in part:
                return (decode(part),)
        return tuple(texts)

    @cached_property
    def directives(self) -> str:
        """The options for the linker that the object carries (.drectve)."""
        return "".join(decode(self.section_data(s)) for s in self.sections if s.name == ".drectve").strip("\ufeff \0")

    @cached_property
    def is_lto(self) -> bool:
        """Whether the object holds a compiler's intermediate code."""
        return any(s.name.startswith((".gnu.lto_", ".gnu.debuglto_", ".llvmbc", ".llvm.lto")) for s in self.sections)

    @cached_property
    def has_debug(self) -> bool:
        """Whether DWARF is in the file."""
        return any(s.name in (".debug_info", ".zdebug_info") for s in self.sections)

    # --- symbols ---------------------------------------------------------------------------------------------------

    @cached_property
    def _raw_symbols(self) -> tuple[coff.RawSymbol, ...]:
        return coff.read_raw_symbols(self._source, self._header, self._strings)

    @cached_property
    def _selections(self) -> Mapping[int, int]:
        """COMDAT selection by section number, from the auxiliary record of the section symbol (5.5.5)."""
        return {s.section: s.aux[14] for s in self._raw_symbols if s.is_section and len(s.aux) >= 18}

    @cached_property
    def associated(self) -> Mapping[int, int]:
        """Sections that are kept only when another one is (IMAGE_COMDAT_SELECT_ASSOCIATIVE): number to number."""
        return {
            s.section: int.from_bytes(s.aux[12:14], "little")
            for s in self._raw_symbols
            if s.is_section and len(s.aux) >= 18 and s.aux[14] == 5
        }

    @cached_property
    def _table(self) -> tuple[tuple[Symbol, ...], Mapping[int, int]]:
        """The symbols, and from the file's index to theirs."""
        by_index = {raw.index: raw for raw in self._raw_symbols}
        found = [Symbol(0, "", 0, 0, "local", "notype", 0, None)]
        numbers: dict[int, int] = {}
        file: str | None = None
        for raw in self._raw_symbols:
            if raw.storage == coff.CLASS_FILE:
                file = decode(raw.aux.split(b"\0")[0]) or None
            symbol = self._symbol(raw, len(found), by_index, file)
            numbers[raw.index] = symbol.index
            found.append(symbol)
        for symbol in [s for s in found if _is_slot(s)]:
            found.append(Symbol(len(found), symbol.name.removeprefix(_IMPORT), 0, 0, "global", "notype", 0, None))
        return self._sized(found), numbers

    def _symbol(
        self, raw: coff.RawSymbol, index: int, by_index: Mapping[int, coff.RawSymbol], file: str | None
    ) -> Symbol:
        if raw.storage == coff.CLASS_FILE:
            return Symbol(index, file or "", 0, 0, "local", "file", 0, None, absolute=True)
        if raw.is_section:
            return Symbol(index, "", 0, 0, "local", "section", 0, raw.section)
        place, binding = raw, self._binding(raw)
        if raw.storage == coff.CLASS_WEAK and raw.section == 0 and len(raw.aux) >= 4:
            # A weak external stands for another symbol unless somebody defines it (5.5.3).
            other = by_index.get(int.from_bytes(raw.aux[:4], "little"))
            if other is not None and other.section > 0:
                place = other
        if place.section > 0:
            kind = self._type(place)
            own = coff.source_name(file) if binding == "local" else None
            return Symbol(index, raw.name, place.value, 0, binding, kind, 0, place.section, file=own)
        if place.section == -1 or place.section == -2:
            return Symbol(index, raw.name, place.value, 0, binding, "notype", 0, None, absolute=True)
        if place.value and raw.storage == coff.CLASS_EXTERNAL:
            aligned = min(16, place.value & -place.value)
            return Symbol(index, raw.name, aligned, place.value, "global", "object", 0, None, common=True)
        return Symbol(index, raw.name, 0, 0, binding, "notype", 0, None)

    def _binding(self, raw: coff.RawSymbol) -> Binding:
        if raw.storage == coff.CLASS_WEAK:
            return "weak"
        if raw.storage != coff.CLASS_EXTERNAL:
            return "local"
        # IMAGE_COMDAT_SELECT_NODUPLICATES is an ordinary definition; of the others the linker keeps one of several.
        return "weak" if self._selections.get(raw.section, 0) in (2, 3, 4, 6) else "global"

    def _type(self, raw: coff.RawSymbol) -> SymbolType:
        flags = self.sections[raw.section].flags
        if flags & coff.SHF_TLS:
            return "tls"
        if flags & coff.SHF_EXECINSTR:
            return "func" if raw.type >> 4 == 2 else "notype"
        return "object" if raw.storage != coff.CLASS_LABEL else "notype"

    def _sized(self, symbols: Sequence[Symbol]) -> tuple[Symbol, ...]:
        """Give every symbol but labels its size."""
        ends = self._function_ends
        starts: dict[int, list[int]] = {}
        for symbol in symbols:
            if symbol.section is not None and _is_named(symbol):
                starts.setdefault(symbol.section, []).append(symbol.value)
        bounds = {section: sorted(set(values)) for section, values in starts.items()}
        found = []
        for symbol in symbols:
            if symbol.section is None or not _is_named(symbol):
                found.append(symbol)
                continue
            section = self.sections[symbol.section]
            following = bounds[symbol.section]
            after = next((v for v in following[bisect_right(following, symbol.value) :]), section.size)
            end = ends.get((symbol.section, symbol.value), after)
            if (symbol.section, symbol.value) not in ends and section.flags & coff.SHF_EXECINSTR:
                end = self._without_padding(section, symbol.value, after)
            found.append(replace(symbol, size=max(0, min(end, section.size) - symbol.value)))
        return tuple(found)

    def _without_padding(self, section: Section, start: int, end: int) -> int:
        """The end of code without the one-byte fill that assemblers put before the next symbol or section."""
        data = self.section_data(section)[start:end]
        return start + (len(data.rstrip(b"\x90")) or len(data))

    @cached_property
    def _function_ends(self) -> Mapping[tuple[int, int], int]:
        """(section, start) to end, of everything that .pdata describes."""
        return {(item.section, item.start): item.end for item in self.runtime_functions}

    @cached_property
    def runtime_functions(self) -> tuple[RuntimeFunction, ...]:
        """The entries of all .pdata sections, each with the places that its three relocations name."""
        by_index = {raw.index: raw for raw in self._raw_symbols}
        found = []
        for section in self.sections:
            if section.name != ".pdata" and not section.name.startswith(".pdata$"):
                continue
            data = self.section_data(section)
            fields = {item[0]: item for item in self._raw_relocations(section)}
            for at in range(0, len(data) - _RUNTIME_FUNCTION + 1, _RUNTIME_FUNCTION):
                places = []
                for offset in (at, at + 4, at + 8):
                    item = fields.get(offset)
                    symbol = by_index.get(item[1]) if item is not None and item[2] == _ADDR32NB else None
                    if symbol is None or symbol.section <= 0:
                        break
                    places.append((symbol.section, symbol.value + int.from_bytes(data[offset : offset + 4], "little")))
                if len(places) < 3 or places[0][0] != places[1][0] or places[1][1] <= places[0][1]:
                    raise self._source.bad(f"an entry of {section.name} that describes no function")
                found.append(RuntimeFunction(*places[0], places[1][1], *places[2]))
        return tuple(found)

    def symbols(self) -> tuple[Symbol, ...]:
        """All symbols, a null symbol first. Section symbols have an empty name, as those of ELF."""
        return self._table[0]

    @cached_property
    def symbols_by_name(self) -> Mapping[str, tuple[Symbol, ...]]:
        """The symbols by name (unnamed, section and file symbols left out), in file order."""
        names: dict[str, list[Symbol]] = {}
        for symbol in self.symbols():
            if symbol.name and symbol.type not in ("section", "file"):
                names.setdefault(symbol.name, []).append(symbol)
        return {name: tuple(found) for name, found in names.items()}

    # --- relocations -----------------------------------------------------------------------------------------------

    def _raw_relocations(self, section: Section) -> tuple[tuple[int, int, int], ...]:
        if not section.index:
            return ()
        header = self._headers[section.index - 1]
        count, at = header.relocations, header.relocations_at
        if not count:
            return ()
        if header.characteristics & coff.LNK_NRELOC_OVFL and count == 0xFFFF:
            (count,) = struct.unpack("<I", self._source.read(at, 4, f"relocations of {section.name}"))
            count, at = max(count, 1) - 1, at + _RELOCATION.size
        if count > MAX_ENTRIES:
            raise self._source.bad(f"section {section.name} has too many relocations")
        raw = self._source.read(at, count * _RELOCATION.size, f"relocations of {section.name}")
        return tuple(_RELOCATION.iter_unpack(raw))

    def relocations(self, section: Section) -> tuple[Relocation, ...]:
        """The relocations of a section as R_X86_64_*, with the addends that stand in the fields, in file order. They
        index :meth:`symbols`."""
        raw = self._raw_relocations(section)
        if not raw:
            return ()
        data = self.section_data(section)
        numbers = self._table[1]
        imported = self._imported
        found = []
        for offset, symbol, type_ in raw:
            if symbol not in numbers:
                raise self._source.bad(f"section {section.name} refers to a symbol that does not exist")
            width = 8 if type_ == _ADDR64 else 2 if type_ == _SECTION_INDEX else 4
            if offset + width > len(data):
                raise self._source.bad(f"a relocation lies outside of section {section.name}")
            addend = int.from_bytes(data[offset : offset + width], "little", signed=True)
            number = numbers[symbol]
            kind = self._relocation_type(type_, section)
            if _REL32 <= type_ <= _REL32_5:
                addend -= type_  # four bytes of the field, and as many as the type says behind it
                if number in imported:
                    number, kind = imported[number], R_GOTPCREL
            elif type_ == _SECTION_INDEX:
                continue
            found.append(Relocation(offset, kind, number, addend))
        return tuple(found)

    def _relocation_type(self, type_: int, section: Section) -> int:
        if _REL32 <= type_ <= _REL32_5:
            return R_PC32
        if type_ == _SECREL:
            return R_DTPOFF32 if section.flags & coff.SHF_ALLOC else R_32
        return {_ADDR64: R_64, _ADDR32: R_32, _ADDR32NB: R_RVA32}.get(type_, R_UNKNOWN + type_)

    @cached_property
    def _imported(self) -> Mapping[int, int]:
        """Undefined ``__imp_f`` to the undefined ``f``, by index: those are ours, at the end of the table."""
        slots = [symbol for symbol in self.symbols() if _is_slot(symbol)]
        first = len(self.symbols()) - len(slots)
        return {symbol.index: first + number for number, symbol in enumerate(slots)}


def _is_named(symbol: Symbol) -> bool:
    """Whether a symbol names something of the program: not a label of the compiler's inside of a function (clang writes
    one where a handler of an exception goes on)."""
    return (
        bool(symbol.name) and not symbol.name.startswith((".L", "$ehgcr_")) and symbol.type not in ("section", "file")
    )


def _is_slot(symbol: Symbol) -> bool:
    return symbol.name.startswith(_IMPORT) and not symbol.defined
