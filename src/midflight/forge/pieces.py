"""Cuts the sections of an object into pieces, of which atoms are made: at symbols, labels, ends of strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import iced_x86 as x86

from midflight.forge.rawobject import RawObject
from midflight.image.model import Section, Symbol

SHT_NOBITS = 8
SHF_WRITE = 0x1
SHF_EXECINSTR = 0x4
SHF_TLS = 0x400
# ?catch$4@?0?NAME@4HA, ?dtor$3@?0?NAME@4HA (LLVM, WinException.cpp, getMCSymbolForMBB)
_FUNCLET = re.compile(r"^\?(?:catch|dtor)\$\d+@\?0\?(.+)@4HA$")
_PRIVATE = re.compile(r"^(?:\.str(?:\.\d+)?|switch\.table\..+|(?:reltable|__const)\.(?!\d+$).+)$")


@dataclass(slots=True)
class Piece:
    """An atom in the making: ``start`` and ``end`` are offsets in the section with index ``section``."""

    section: int
    start: int
    end: int
    symbols: list[Symbol] = field(default_factory=list)
    key: str = ""
    sized: bool = True
    constant: bool = False
    """In a writable section, but nothing writes there."""
    padded: bool = False
    private: bool = False
    """A constant whose name the compiler made up, and whose address means nothing."""


def split(piece: Piece, edges: set[int]) -> list[Piece]:
    """Cut an unnamed piece at the type info slots in it: eight bytes each, and constant."""
    inside = {edge for edge in edges if piece.start <= edge < piece.end}
    if piece.symbols or not inside:
        return [piece]
    bounds = sorted({piece.start, piece.end, *inside, *(e + 8 for e in inside if e + 8 < piece.end)})
    return [Piece(piece.section, a, b, sized=piece.sized, constant=a in inside) for a, b in pairwise(bounds)]


def is_private(name: str) -> bool:
    """Whether this is a name of clang's for a constant without an identity (LLVM: private unnamed_addr). For ELF they
    are local labels; for Windows they are symbols, which no source can have, as there is a dot in each."""
    return _PRIVATE.match(name) is not None


def forget_private(piece: Piece) -> None:
    """Take the names away from a constant that has none but those of the compiler."""
    if piece.symbols and all(s.binding == "local" and is_private(s.name) for s in piece.symbols):
        piece.symbols.clear()
        piece.private = True


def with_funclets(pieces: Iterable[Piece]) -> list[Piece]:
    """Join functions with the handlers of their exceptions, which clang for the MSVC ABI puts right behind them: they
    work in the function's frame, and lead back into it without relocations."""
    found: list[Piece] = []
    for piece in pieces:
        owner = _FUNCLET.match(piece.symbols[0].name) if piece.symbols else None
        named = next((i for i in range(len(found) - 1, -1, -1) if found[i].symbols), None)
        if owner is not None and named is not None and any(s.name == owner[1] for s in found[named].symbols):
            found[named].end = piece.end
            del found[named + 1 :]  # filling between them
        else:
            found.append(piece)
    return found


def is_pool(section: Section, symbols: Sequence[Symbol]) -> bool:
    """Whether a section holds nothing but unnamed constants, with the labels that capture lets the assembler keep."""
    constant = not section.flags & (SHF_WRITE | SHF_EXECINSTR | SHF_TLS)
    return constant and bool(symbols) and all(symbol.name.startswith(".L") for symbol in symbols)


def cut_at_labels(section: Section, symbols: Iterable[Symbol]) -> list[Piece]:
    """COFF has no sections of strings or constants that linkers merge: all lie in one, and each begins at a label."""
    edges = sorted({0, section.size} | {s.value for s in symbols if s.value < section.size})
    return [Piece(section.index, a, b, padded=True) for a, b in pairwise(edges)]


def cut_strings(raw: RawObject, section: Section) -> list[Piece]:
    """One piece a string, its terminator included (gABI, SHF_STRINGS; characters of sh_entsize bytes)."""
    data = raw.content(section.index)
    width = section.entry_size or 1
    zero = bytes(width)
    pieces, start, at = [], 0, 0
    while at < len(data):
        if width == 1:
            at = data.find(b"\0", at)
            at = len(data) if at < 0 else at + 1
        else:
            at += width
            if data[at - width : at] != zero and at < len(data):
                continue
        pieces.append(Piece(section.index, start, at))
        start = at
    return pieces


def cut_at_symbols(raw: RawObject, section: Section, symbols: list[Symbol], targets: set[int]) -> list[Piece]:
    """Sized symbols first; what lies between them is cut at unsized labels, and kept unless it is mere padding."""
    named = [symbol for symbol in symbols if not symbol.name.startswith(".L")]
    pieces: list[Piece] = []
    for symbol in sorted((s for s in named if s.size), key=lambda s: (s.value, -s.size, s.index)):
        if pieces and symbol.value < pieces[-1].end:
            pieces[-1].end = max(pieces[-1].end, symbol.value + symbol.size)
            if symbol.value == pieces[-1].start:
                pieces[-1].symbols.append(symbol)
        else:
            pieces.append(Piece(section.index, symbol.value, symbol.value + symbol.size, [symbol]))
    unsized = sorted((s for s in named if not s.size), key=lambda s: (s.value, s.index))
    result: list[Piece] = []
    at = 0
    for piece in [*pieces, Piece(section.index, section.size, section.size)]:
        result.extend(_cut_gap(raw, section, at, piece.start, unsized, targets))
        piece.symbols.extend(s for s in unsized if s.value == piece.start and piece.end > piece.start)
        if piece.end > piece.start:
            result.append(piece)
        at = piece.end
    if not result and unsized:
        result.append(Piece(section.index, 0, section.size, unsized, sized=False))
    return result


def _cut_gap(
    raw: RawObject, section: Section, start: int, end: int, unsized: Iterable[Symbol], targets: set[int]
) -> list[Piece]:
    if end <= start:
        return []
    labels: dict[int, list[Symbol]] = {}
    for symbol in unsized:
        if start <= symbol.value < end:
            labels.setdefault(symbol.value, []).append(symbol)
    edges = sorted({start, end, *labels})
    pieces = []
    for a, b in pairwise(edges):
        if a not in labels and _is_padding(raw, section, a, b) and not any(a <= t < b for t in targets):
            continue
        pieces.append(Piece(section.index, a, b, labels.get(a, []), sized=not labels))
    return pieces


def _is_padding(raw: RawObject, section: Section, start: int, end: int) -> bool:
    if end - start >= max(section.alignment, 16):
        return False
    if section.type == SHT_NOBITS:
        return True
    data = raw.content(section.index)[start:end]
    if any(start <= item.offset < end for item in raw.relocations(section.index)):
        return False
    if not section.flags & SHF_EXECINSTR or not any(data):
        return not any(data)
    return is_filling(data)


def is_filling(code: bytes) -> bool:
    """Whether bytes of code are nothing but what compilers and assemblers fill gaps with."""
    return all(
        instruction.mnemonic in (x86.Mnemonic.NOP, x86.Mnemonic.INT3)
        or (instruction.mnemonic == x86.Mnemonic.XCHG and instruction.len <= 2)
        for instruction in x86.Decoder(64, code)
    )
