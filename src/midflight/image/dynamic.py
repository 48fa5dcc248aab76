"""The dynamic section: what the loader sees of an image. Works through PT_DYNAMIC alone, without section headers.

Source: gABI 4.1 chapter 5; AMD64 supplement chapter 5; Drepper, "ELF Symbol Versioning"; gnu-gabi (DT_GNU_HASH).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

from midflight.image.layout import PT_DYNAMIC, Layout
from midflight.image.model import Relocation, Symbol
from midflight.image.source import MAX_ENTRIES, Strings
from midflight.image.symbols import ENTRY, RELA, Version, read_relocations, read_relr, read_symbols

DT_NEEDED, DT_PLTRELSZ, DT_PLTGOT, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT, DT_STRSZ = range(
    1, 11
)
DT_SYMENT, DT_SONAME, DT_REL, DT_PLTREL, DT_TEXTREL, DT_JMPREL, DT_BIND_NOW = 11, 14, 17, 20, 22, 23, 24
DT_FLAGS, DT_RELRSZ, DT_RELR, DT_GNU_HASH, DT_FLAGS_1 = 30, 35, 36, 0x6FFFFEF5, 0x6FFFFFFB
DT_VERSYM, DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFF0, *range(0x6FFFFFFC, 0x70000000)

DF_TEXTREL, DF_BIND_NOW, DF_STATIC_TLS = 0x4, 0x8, 0x10
DF_1_NOW, DF_1_NODELETE, DF_1_PIE = 0x1, 0x8, 0x8000000

_MOST_VERSIONS = 0x7FFF  # their index has 15 bits
_LONGEST_CHAIN = 1 << 16
_ADDRESSES = (DT_HASH, DT_GNU_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_JMPREL, DT_RELR, DT_VERSYM, DT_VERDEF, DT_VERNEED)


@dataclass(frozen=True, slots=True)
class VersionNeed:
    """A version that this image asks of a library: ``index`` is how its symbols refer to it."""

    library: str
    version: str
    index: int


class Dynamic:
    """Reads lazily what PT_DYNAMIC leads to. ``loaded_at`` is the load bias when the bytes come from memory, where the
    loader may have replaced the section's addresses by absolute ones. An image without PT_DYNAMIC has empty tables."""

    def __init__(self, layout: Layout, loaded_at: int = 0) -> None:
        self._layout = layout
        self._source = layout.source
        self._loaded_at = loaded_at

    @cached_property
    def entries(self) -> dict[int, tuple[int, ...]]:
        """Tag to values."""
        segment = self._layout.segment(PT_DYNAMIC)
        if segment is None:
            return {}
        size = segment.file_size & ~15
        if size // 16 > MAX_ENTRIES:
            raise self._source.bad("the dynamic section has too many entries")
        # Read by address, as the loader does.
        table = self._layout.read_file(segment.address, size, "the dynamic section")
        found: dict[int, list[int]] = {}
        for tag, value in struct.iter_unpack("<QQ", table):
            if tag == 0:
                break
            found.setdefault(tag, []).append(value)
        if self._loaded_at:
            for tag in _ADDRESSES:
                found[tag] = [self._link_address(v) for v in found[tag]] if tag in found else []
        return {tag: tuple(values) for tag, values in found.items() if values}

    def _link_address(self, value: int) -> int:
        moved = value - self._loaded_at
        return moved if self._layout.segment_at(value) is None and self._layout.segment_at(moved) else value

    def value(self, tag: int) -> int | None:
        """The first value of a tag, or None."""
        values = self.entries.get(tag)
        return values[0] if values else None

    def _table(self, tag: int, size_tag: int, what: str) -> bytes:
        address, size = self.value(tag), self.value(size_tag)
        if address is None or not size:
            return b""
        return self._read(address, size, what)

    def _read(self, address: int, size: int, what: str) -> bytes:
        return self._layout.read_file(address, size, what)

    # --- strings and names ---------------------------------------------------------------------------------------

    @cached_property
    def strings(self) -> Strings:
        """DT_STRTAB."""
        return Strings(
            self._source, self._table(DT_STRTAB, DT_STRSZ, "the dynamic string table"), "the dynamic strings"
        )

    @cached_property
    def soname(self) -> str | None:
        offset = self.value(DT_SONAME)
        return None if offset is None else self.strings.get(offset)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        return tuple(self.strings.get(offset) for offset in self.entries.get(DT_NEEDED, ()))

    # --- versions ------------------------------------------------------------------------------------------------

    @cached_property
    def version_needs(self) -> tuple[VersionNeed, ...]:
        """DT_VERNEED, in file order."""
        address, count = self.value(DT_VERNEED), self.value(DT_VERNEEDNUM) or 0
        needs: list[VersionNeed] = []
        for _ in range(min(count, _MOST_VERSIONS)):
            if address is None:
                break
            _, aux_count, file, aux, following = struct.unpack("<HHIII", self._read(address, 16, "a needed version"))
            library = self.strings.get(file)
            at = address + aux
            for _ in range(aux_count):
                raw = self._read(at, 16, "a needed version")
                _, _, other, name, step = struct.unpack("<IHHII", raw)
                needs.append(VersionNeed(library, self.strings.get(name), other & 0x7FFF))
                if len(needs) > _MOST_VERSIONS:
                    raise self._source.bad("too many needed versions")
                if not step:
                    break
                at += step
            address = address + following if following else None
        return tuple(needs)

    @cached_property
    def defined_versions(self) -> dict[int, str]:
        """DT_VERDEF: version index to name, in file order; the base entry (the library's own name) left out."""
        address, count = self.value(DT_VERDEF), self.value(DT_VERDEFNUM) or 0
        versions: dict[int, str] = {}
        for _ in range(min(count, _MOST_VERSIONS)):
            if address is None:
                break
            raw = self._read(address, 20, "a version definition")
            _, flags, index, aux_count, _, aux, following = struct.unpack("<HHHHIII", raw)
            if aux_count and not flags & 1:
                (name,) = struct.unpack("<I", self._read(address + aux, 4, "a version definition"))
                versions[index & 0x7FFF] = self.strings.get(name)
            address = address + following if following else None
        return versions

    @cached_property
    def _needs_by_index(self) -> dict[int, VersionNeed]:
        return {need.index: need for need in self.version_needs}

    def _version_index(self, symbol: int) -> int | None:
        """The raw .gnu.version entry of a symbol; None when the image has no versions."""
        address = self.value(DT_VERSYM)
        if address is None:
            return None
        return int.from_bytes(self._read(address + 2 * symbol, 2, "a symbol's version"), "little")

    def _version(self, raw: int, defined: bool) -> Version:
        index = raw & 0x7FFF
        if index < 2:
            return None, not raw & 0x8000
        name = self.defined_versions.get(index) if defined else None
        if name is not None:
            return name, not raw & 0x8000
        need = self._needs_by_index.get(index)
        if need is not None:
            # Imported: name@V. A copy relocation's symbol is defined here and still has the version it was imported by.
            return need.version, defined and not raw & 0x8000
        raise self._source.bad(f"symbol version {index} is not defined")

    def library_of(self, symbol: Symbol) -> str | None:
        """The SONAME that an imported symbol's version names; None when it has no version, or is defined here."""
        raw = self._version_index(symbol.index)
        if raw is None or raw & 0x7FFF < 2 or (symbol.defined and raw & 0x7FFF in self.defined_versions):
            return None
        need = self._needs_by_index.get(raw & 0x7FFF)
        return None if need is None else need.library

    # --- symbols -------------------------------------------------------------------------------------------------

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """All dynamic symbols that can be known (see :meth:`symbol_count`), by index, the null symbol included."""
        address, count = self.value(DT_SYMTAB), self.symbol_count
        if address is None or not count:
            return ()
        table = self._read(address, count * ENTRY.size, "the dynamic symbol table")
        versym = self.value(DT_VERSYM)
        if versym is None:
            return tuple(read_symbols(self._source, table, self.strings, sections=0, version=lambda i, d: (None, True)))
        raw = self._read(versym, 2 * count, "the symbol versions")
        indices = struct.unpack(f"<{count}H", raw)

        def version(index: int, defined: bool) -> Version:
            return self._version(indices[index], defined)

        return tuple(read_symbols(self._source, table, self.strings, sections=0, version=version))

    @cached_property
    def symbol_count(self) -> int:
        """How many dynamic symbols there are. No tag says so: DT_HASH does, DT_GNU_HASH does when anything is exported,
        and relocations refer to every import that matters."""
        if self.value(DT_SYMTAB) is None:
            return 0
        table = self.value(DT_HASH)
        if table is not None:
            count = int.from_bytes(self._read(table, 8, "the symbol hash table")[4:], "little")
        else:
            referred = max((r.symbol for r in self._rela), default=0) + 1
            count = max(referred, self._gnu_hash_count())
        if count > MAX_ENTRIES:
            raise self._source.bad("too many dynamic symbols")
        return count

    def _gnu_hash_count(self) -> int:
        table = self._gnu_hash
        if table is None:
            return 0
        _, buckets, chains, first = table
        highest = max(buckets, default=0)
        if highest < first:
            # Nothing is exported: GNU ld then writes first = 1 whatever the number of imports.
            return 0
        index = highest
        while True:
            block = min(4096, self._layout.file_room(chains + 4 * (index - first)) & ~3)
            if not block or index - first > MAX_ENTRIES:
                raise self._source.bad("a hash chain does not end")
            raw = self._read(chains + 4 * (index - first), block, "the symbol hash table")
            for (value,) in struct.iter_unpack("<I", raw):
                index += 1
                if value & 1:
                    return index

    @cached_property
    def _gnu_hash(self) -> tuple[tuple[int, int, int], tuple[int, ...], int, int] | None:
        """((bloom address, bloom words, shift), buckets, address of the chains, first symbol), or None."""
        address = self.value(DT_GNU_HASH)
        if address is None:
            return None
        count, first, words, shift = struct.unpack("<IIII", self._read(address, 16, "the symbol hash table"))
        bloom = address + 16
        buckets = bloom + 8 * words
        if words == 0 or words & (words - 1) or shift > 63:
            raise self._source.bad("the symbol hash table has a bad Bloom filter")
        if count > MAX_ENTRIES:
            raise self._source.bad("the symbol hash table has too many buckets")
        raw = self._read(buckets, 4 * count, "the symbol hash table")
        return (bloom, words, shift), struct.unpack(f"<{count}I", raw), buckets + 4 * count, first

    def find(self, name: str, version: str | None = None) -> Symbol | None:
        """The defined symbol that the loader would bind ``name`` to here, or None. Fast: parses no other symbol.

        With ``version``: exactly that version (or any, when the image has no versions). Without: the default version,
        as ``dlsym`` takes it.
        """
        table = self._gnu_hash
        if table is None:
            found = (s for s in self._by_name.get(name, ()) if self._fits(s, version))
            return next(found, None)
        (bloom, words, shift), buckets, chains, first = table
        if not buckets:
            return None
        hashed = _gnu_hash(name)
        filter_word = int.from_bytes(
            self._read(bloom + 8 * (hashed // 64 % words), 8, "the symbol hash table"), "little"
        )
        if not filter_word >> (hashed % 64) & 1 or not filter_word >> ((hashed >> shift) % 64) & 1:
            return None
        start = buckets[hashed % len(buckets)]
        if start < first:
            return None
        for index in range(start, start + _LONGEST_CHAIN):
            raw = self._read(chains + 4 * (index - first), 4, "the symbol hash table")
            value = int.from_bytes(raw, "little")
            if (value ^ hashed) & ~1 == 0:
                symbol = self._symbol(index)
                if symbol.name == name and self._fits(symbol, version):
                    return symbol
            if value & 1:
                break
        return None

    def _symbol(self, index: int) -> Symbol:
        address = self.value(DT_SYMTAB)
        if address is None:
            raise self._source.bad("there is a symbol hash table but no symbol table")
        table = self._read(address + ENTRY.size * index, ENTRY.size, "a dynamic symbol")
        raw = self._version_index(index)

        def version(_: int, defined: bool) -> Version:
            return (None, True) if raw is None else self._version(raw, defined)

        return read_symbols(self._source, table, self.strings, sections=0, version=version, first=index)[0]

    def _fits(self, symbol: Symbol, version: str | None) -> bool:
        if not symbol.defined or symbol.binding == "local":
            return False
        if version is None:
            return symbol.default_version
        return symbol.version == version or self.value(DT_VERSYM) is None

    @cached_property
    def _by_name(self) -> dict[str, list[Symbol]]:
        names: dict[str, list[Symbol]] = {}
        for symbol in self.symbols[1:]:
            names.setdefault(symbol.name, []).append(symbol)
        return names

    # --- relocations ---------------------------------------------------------------------------------------------

    @cached_property
    def _rela(self) -> tuple[Relocation, ...]:
        if self.value(DT_REL) is not None or self.value(DT_PLTREL) not in (None, DT_RELA):
            raise self._source.bad("relocations without addend, which x86-64 does not have")
        if self.value(DT_RELAENT) not in (None, RELA.size):
            raise self._source.bad("relocations of unknown size")
        plain = self._table(DT_RELA, DT_RELASZ, "the relocation table")
        start, size = self.value(DT_RELA) or 0, len(plain)
        plt = self._table(DT_JMPREL, DT_PLTRELSZ, "the PLT relocation table")
        plt_start = self.value(DT_JMPREL) or 0
        if plt and start <= plt_start and plt_start + len(plt) <= start + size:
            plt = b""  # Some linkers count the PLT's relocations in DT_RELASZ too.
        relocations = read_relocations(self._source, plain, "the relocation table")
        return tuple(relocations + read_relocations(self._source, plt, "the PLT relocation table"))

    @cached_property
    def relocations(self) -> tuple[Relocation, ...]:
        """DT_RELA, DT_JMPREL and DT_RELR (as R_X86_64_RELATIVE), in this order; symbols index :attr:`symbols`."""
        packed = self._table(DT_RELR, DT_RELRSZ, "the RELR table")
        words: dict[int, bytes] = {}

        def addend(vaddr: int) -> int:
            segment = self._layout.segment_at(vaddr)
            if segment is None or vaddr - segment.address + 8 > segment.file_size:
                raise self._source.bad(f"a relative relocation at {vaddr:#x} is outside the file")
            if segment.address not in words:
                words[segment.address] = self._read(segment.address, segment.file_size, "a segment")
            at = vaddr - segment.address
            return int.from_bytes(words[segment.address][at : at + 8], "little", signed=True)

        return self._rela + tuple(read_relr(self._source, packed, addend))


def _gnu_hash(name: str) -> int:
    """The hash of DT_GNU_HASH (Bernstein's, times 33)."""
    value = 5381
    for byte in name.encode("utf-8", "surrogatepass"):
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value
