"""The running image as run-pre matching asks for it: by address, with what dynamic relocations make of each pointer."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from midflight.errors import ImageError
from midflight.forge import relocs as r
from midflight.image.binary import ImageFile
from midflight.image.model import Relocation, Symbol
from midflight.image.pdb import PdbFile
from midflight.image.pe import PeFile
from midflight.image.plt import PltEntry

SymbolTable = ImageFile | PdbFile
"""What tells names: the image itself, or a file beside it."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What eight bytes hold at run time: an address of the image, or (with ``symbol``) what the loader finds."""

    value: int
    symbol: Symbol | None = None
    resolver: bool = False
    """``value`` is that of an IFUNC resolver, whose choice is stored."""


class RunImage:
    """One image, indexed. All addresses are link-time virtual addresses."""

    def __init__(self, elf: ImageFile, debug: SymbolTable | None = None) -> None:
        """``debug``: the external debug file of this image (or its PDB), for its symbol table."""
        self.elf = elf
        self.debug = debug
        self.table: SymbolTable = elf if debug is None else debug
        self._segments: dict[int, bytes] = {}
        self._globals: dict[str, Symbol | None] = {}

    def read(self, vaddr: int, size: int) -> bytes | None:
        """The bytes on disk (zeros in .bss), or None when they are not all in one segment."""
        if size == 0:
            return b""
        segment = self.elf.segment_at(vaddr)
        if segment is None or vaddr + size > segment.address + segment.memory_size:
            return None
        if segment.address not in self._segments:
            self._segments[segment.address] = self.elf.read_vaddr(segment.address, segment.file_size)
        at = vaddr - segment.address
        return self._segments[segment.address][at : at + size].ljust(size, b"\0")

    def code(self, vaddr: int, size: int) -> bytes:
        """Up to ``size`` bytes of code from ``vaddr`` on; empty when no code stands there."""
        segment = self.elf.segment_at(vaddr)
        if segment is None or not segment.executable:
            return b""
        return self.read(vaddr, min(size, segment.address + segment.file_size - vaddr)) or b""

    def is_code(self, vaddr: int) -> bool:
        segment = self.elf.segment_at(vaddr)
        return segment is not None and segment.executable

    @cached_property
    def relocations(self) -> Mapping[int, Relocation]:
        """Dynamic relocations by the address they fill."""
        return {item.offset: item for item in self.elf.dynamic_relocations()}

    def dynamic_symbol_of(self, relocation: Relocation) -> Symbol | None:
        symbols = self.elf.dynamic_symbols()
        return symbols[relocation.symbol] if 0 < relocation.symbol < len(symbols) else None

    def pointer(self, vaddr: int) -> Pointer | None:
        """What the eight bytes at ``vaddr`` point to; None when a relocation of another kind fills them."""
        relocation = self.relocations.get(vaddr)
        if relocation is None:
            raw = self.read(vaddr, 8)
            return None if raw is None else Pointer(int.from_bytes(raw, "little"))
        if relocation.type == r.RELATIVE:
            return Pointer(relocation.addend)
        if relocation.type == r.IRELATIVE:
            return Pointer(relocation.addend, resolver=True)
        symbol = self.dynamic_symbol_of(relocation)
        if symbol is not None and relocation.type in (r.R_64, r.GLOB_DAT, r.JUMP_SLOT):
            addend = relocation.addend if relocation.type == r.R_64 else 0
            return Pointer((symbol.value if symbol.defined else 0) + addend, symbol)
        return None

    # --- PLT ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _plt(self) -> Mapping[int, PltEntry]:
        return {entry.vaddr: entry for entry in self.elf.plt_entries}

    def plt_at(self, vaddr: int) -> PltEntry | None:
        """The PLT entry that begins at ``vaddr``."""
        return self._plt.get(vaddr)

    def resolved_entry(self, resolver: int) -> PltEntry | None:
        """The first PLT entry that leads to the choice of an IFUNC resolver."""
        return next((entry for entry in self.elf.plt_entries if entry.resolver == resolver), None)

    @cached_property
    def resolvers(self) -> frozenset[int]:
        """Where functions begin that choose another one (IFUNC): nobody may call them instead of what they chose."""
        tables = (*self.table.symbols(), *(self.elf.dynamic_symbols() if self.elf.is_dynamic else ()))
        named = {s.value for s in tables if s.type == "ifunc" and s.defined}
        return frozenset(named | set(self.elf.irelative.values()))

    # --- symbols and functions ---------------------------------------------------------------------------------------

    @property
    def has_symbols(self) -> bool:
        return len(self.table.symbols()) > 1

    def global_symbol(self, name: str) -> Symbol | None:
        """The defined global symbol with this name, from .symtab or else the dynamic symbols."""
        if name not in self._globals:
            self._globals[name] = self._global_symbol(name)
        return self._globals[name]

    def _global_symbol(self, name: str) -> Symbol | None:
        found = [s for s in self.table.symbols_by_name.get(name, ()) if s.defined and s.binding != "local"]
        if found:
            return next((s for s in found if s.default_version), found[0])
        # What was global and hidden in the object is local in the image.
        hidden = [s for s in self.table.symbols_by_name.get(name, ()) if s.defined]
        if len(hidden) == 1:
            return hidden[0]
        if hidden or not self.elf.is_dynamic:
            return None
        return self.elf.dynamic_symbol(name)

    def global_symbols(self, name: str) -> Sequence[Symbol]:
        """As global_symbol, but all versions of a name."""
        first = self.global_symbol(name)
        several = self.exported.get(name, ())
        return [first, *(s for s in several if s.value != first.value)] if first is not None else several

    @cached_property
    def exported(self) -> Mapping[str, Sequence[Symbol]]:
        """What the dynamic symbol table defines, by name."""
        found: dict[str, list[Symbol]] = {}
        for symbol in self.elf.dynamic_symbols() if self.elf.is_dynamic else ():
            if symbol.defined and symbol.name:
                found.setdefault(symbol.name, []).append(symbol)
        return found

    @cached_property
    def imported(self) -> Mapping[str, Sequence[Symbol]]:
        """What the dynamic symbol table asks of other images, by name."""
        found: dict[str, list[Symbol]] = {}
        for symbol in self.elf.dynamic_symbols() if self.elf.is_dynamic else ():
            if not symbol.defined and symbol.name:
                found.setdefault(symbol.name, []).append(symbol)
        return found

    @cached_property
    def is_relocated(self) -> bool:
        """Whether the image can be loaded anywhere, so that every pointer in it has a relocation."""
        return self.elf.kind == "shared" or self.elf.is_pie

    def is_exported(self, name: str) -> bool:
        """Whether the dynamic symbol table defines a name."""
        return name in self.exported

    def local_symbols(self, name: str, source: str | None) -> Sequence[Symbol]:
        """Local symbols with this name, without those that are known to be of another source file: a namesake with the
        same code elsewhere must not be taken for one that the linker dropped."""
        found = [s for s in self.table.symbols_by_name.get(name, ()) if s.defined and s.binding == "local"]
        return [s for s in found if source is None or not s.file or s.file == source]

    @cached_property
    def function_symbols(self) -> Mapping[int, Sequence[Symbol]]:
        """Defined function symbols by address."""
        found: dict[int, list[Symbol]] = {}
        for symbol in (*self.table.symbols(), *(self.elf.dynamic_symbols() if self.elf.is_dynamic else ())):
            if symbol.section is not None and symbol.type in ("func", "ifunc") and symbol.name:
                found.setdefault(symbol.value, []).append(symbol)
        return found

    @cached_property
    def extents(self) -> Sequence[tuple[int, int]]:
        """(start, end) of everything that symbols or unwind information call code, by start."""
        found = {(a, a + s.size) for a, several in self.function_symbols.items() for s in several}
        found |= set(self.elf.function_extents())
        for section in self.elf.sections:
            if section.name.startswith(".plt") or section.name in (".init", ".fini", ".iplt"):
                found.add((section.address, section.address + section.size))
        return sorted(found)

    def owned(self, start: int, end: int) -> bool:
        """Whether any byte of [start, end) belongs to a known function."""
        position = bisect.bisect_left(self.extents, (end, 0))
        # Extents are short; one that begins long before and reaches here is found by its unwind information too.
        return any(a < end and (b > start or a >= start) for a, b in self.extents[max(position - 64, 0) : position])

    def gap(self, start: int, end: int) -> tuple[int, int]:
        """The largest stretch around [start, end) that belongs to no known function; ends with the code section."""
        limits = [(s.address, s.address + s.size) for s in self.elf.sections if s.flags & 4 and s.address <= start]
        low, high = next((limit for limit in limits if limit[1] >= end), (start, end))
        position = bisect.bisect_left(self.extents, (end, 0))
        before = [b for a, b in self.extents[max(position - 64, 0) : position]]
        low = max([low, *(b for b in before if b <= start)])
        after = [a for a, b in self.extents[position : position + 1]]
        return low, min([high, *after])

    def function_end(self, vaddr: int) -> int | None:
        """Where the function that begins at ``vaddr`` ends, if the image says so."""
        sizes = [s.size for s in self.function_symbols.get(vaddr, ()) if s.size]
        return vaddr + max(sizes) if sizes else self._frame_ends.get(vaddr)

    @cached_property
    def _frame_ends(self) -> Mapping[int, int]:
        return dict(self.elf.function_extents())

    def is_inside(self, vaddr: int) -> bool:
        """Whether unwind information says that a function has begun before this address and covers it."""
        if vaddr in self._frame_ends:
            return False
        position = bisect.bisect_left(self._frame_starts, vaddr) - 1
        return position >= 0 and self._frame_ends[self._frame_starts[position]] > vaddr

    @cached_property
    def _frame_starts(self) -> Sequence[int]:
        return sorted(self._frame_ends)

    @cached_property
    def unwinding(self) -> Mapping[int, tuple[int, int]]:
        """Of PE images: where code begins that .pdata describes, to its end and its UNWIND_INFO."""
        if not isinstance(self.elf, PeFile):
            return {}
        return {item.begin: (item.end, item.unwind) for item in self.elf.runtime_functions}

    def has_frame(self, vaddr: int) -> bool:
        """Whether unwind information begins a function at ``vaddr``."""
        return vaddr in self._frame_ends

    def may_be_slot(self, vaddr: int) -> bool:
        """Whether the word at ``vaddr`` can be one that the loader fills with an address, for code to go through."""
        segment = self.elf.segment_at(vaddr)
        if self.elf.format == "pe":  # an import address table may lie in read-only data
            return vaddr in self.relocations
        return segment is not None and segment.writable

    def is_writable(self, vaddr: int) -> bool:
        segment = self.elf.segment_at(vaddr)
        return segment is not None and segment.writable

    @cached_property
    def function_starts(self) -> Sequence[int]:
        """Where functions begin, as far as the image says so."""
        return sorted({start for start, _ in self.extents})

    @cached_property
    def code_sections(self) -> Sequence[tuple[int, bytes]]:
        """(vaddr, bytes) of all executable segments."""
        found = []
        for segment in self.elf.segments:
            if segment.executable and segment.type == 1 and segment.file_size:
                found.append((segment.address, self.read(segment.address, segment.file_size) or b""))
        return found

    @cached_property
    def got(self) -> int | None:
        """The address that _GLOBAL_OFFSET_TABLE_ means."""
        symbol = self.table.symbol("_GLOBAL_OFFSET_TABLE_")
        if symbol is not None:
            return symbol.value
        section = self.elf.section(".got.plt") or self.elf.section(".got")
        return section.address if section is not None else None

    def thread_pointer_offset(self, value: int) -> int | None:
        """Offset from the thread pointer of a thread-local symbol's value, in executables."""
        try:
            return self.elf.thread_pointer_offset(value)
        except ImageError:
            return None
