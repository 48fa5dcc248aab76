"""GOT slots and PLT entries: which address an import goes through.

An entry is recognised by the indirect jump in it, whose slot a dynamic relocation names; no disassembler is needed.
Source: AMD64 supplement 5.2; the entry forms that GNU ld (lazy, IBT, BND, .plt.got), gold, lld and mold write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from midflight.image.layout import Layout
from midflight.image.model import Relocation, Section, Symbol
from midflight.image.sections import SHF_EXECINSTR, SHT_NOBITS
from midflight.image.source import Source
from midflight.image.symbols import R_GLOB_DAT, R_JUMP_SLOT

# [endbr64] [mov $index, %r11d] [bnd] jmp *disp32(%rip)
_STUB = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?(?:\x41\xbb[\s\S]{4})?\xf2?\xff\x25([\s\S]{4})")
_SECTIONS = (".plt", ".plt.sec", ".plt.got", ".plt.bnd", ".iplt")


@dataclass(frozen=True, slots=True)
class GotSlot:
    """The slot at ``vaddr`` holds the address of ``symbol``; ``lazy`` when that is only so after the first call."""

    vaddr: int
    symbol: Symbol
    lazy: bool


@dataclass(frozen=True, slots=True)
class PltEntry:
    """The PLT entry at ``vaddr`` jumps through ``slot``: to ``symbol``, or to what the IFUNC ``resolver`` chose."""

    vaddr: int
    slot: int
    symbol: Symbol | None
    resolver: int | None


def got_entries(source: Source, relocations: Iterable[Relocation], symbols: Sequence[Symbol]) -> tuple[GotSlot, ...]:
    """The slots that dynamic relocations bind to a named symbol, in their order."""
    slots = []
    for relocation in relocations:
        if relocation.type in (R_GLOB_DAT, R_JUMP_SLOT) and relocation.symbol:
            if relocation.symbol >= len(symbols):
                raise source.bad("a dynamic relocation refers to a symbol that does not exist")
            lazy = relocation.type == R_JUMP_SLOT
            slots.append(GotSlot(relocation.offset, symbols[relocation.symbol], lazy))
    return tuple(slots)


def plt_entries(
    layout: Layout, sections: Sequence[Section], slots: Sequence[GotSlot], irelative: Mapping[int, int]
) -> tuple[PltEntry, ...]:
    """Every PLT entry whose slot is known, by address."""
    by_slot = {slot.vaddr: slot.symbol for slot in slots}
    found = []
    if not by_slot and not irelative:
        return ()
    for vaddr, code, step in _code(layout, sections):
        for match in _STUB.finditer(code):
            if (vaddr + match.start()) % step:
                continue
            target = vaddr + match.end() + int.from_bytes(match[1], "little", signed=True)
            symbol, resolver = by_slot.get(target), irelative.get(target)
            if symbol is not None or resolver is not None:
                found.append(PltEntry(vaddr + match.start(), target, symbol, resolver))
    return tuple(sorted(found, key=lambda entry: entry.vaddr))


def _code(layout: Layout, sections: Sequence[Section]) -> Iterable[tuple[int, bytes, int]]:
    """(vaddr, bytes, alignment of entries) of where PLT entries are. Without section headers that is all code, and an
    entry is told from another jump through the GOT by its alignment alone; the jump's effect is the same."""
    for section in sections:
        if section.name in _SECTIONS and section.flags & SHF_EXECINSTR and section.type != SHT_NOBITS:
            code = layout.read_file(section.address, section.size, f"section {section.name}")
            # Entries of .plt.got, and of the .plt of a static program, are eight bytes long.
            yield section.address, code, 8
    if not sections:
        for segment in layout.loads:
            if segment.executable:
                yield segment.address, layout.read_file(segment.address, segment.file_size, "code"), 8


def _names(symbol: Symbol) -> tuple[str, ...]:
    return (symbol.name,) if symbol.version is None else (symbol.name, f"{symbol.name}@{symbol.version}")


def _ambiguous(symbols: Iterable[Symbol]) -> set[str]:
    """Names that stand for several versions."""
    versions: dict[str, set[str | None]] = {}
    for symbol in symbols:
        versions.setdefault(symbol.name, set()).add(symbol.version)
    return {name for name, several in versions.items() if len(several) > 1}


def slots_by_name(slots: Sequence[GotSlot]) -> dict[str, int]:
    """Name, and name@version, to slot; slots bound at load time win."""
    ambiguous = _ambiguous(slot.symbol for slot in slots)
    names: dict[str, int] = {}
    for slot in sorted(slots, key=lambda s: s.lazy):
        for name in _names(slot.symbol):
            if name not in ambiguous:
                names.setdefault(name, slot.vaddr)
    return names


def entries_by_name(entries: Sequence[PltEntry]) -> dict[str, tuple[int, ...]]:
    """Name, and name@version, to the vaddrs of its entries."""
    ambiguous = _ambiguous(entry.symbol for entry in entries if entry.symbol is not None)
    names: dict[str, list[int]] = {}
    for entry in entries:
        if entry.symbol is not None:
            for name in _names(entry.symbol):
                if name not in ambiguous:
                    names.setdefault(name, []).append(entry.vaddr)
    return {name: tuple(vaddrs) for name, vaddrs in names.items()}
