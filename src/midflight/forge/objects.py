"""Cuts an x86-64 relocatable object into atoms: functions, variables, constants, strings, each with its references.

Sources of knowledge: gABI (sections, symbols, COMDAT groups), the AMD64 psABI (relocation types), and what gcc, clang
and gas do on x86-64: references to local symbols become section symbol + addend, except into mergeable sections.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.families import CHILD_TAIL, outlined
from midflight.forge.frames import Cie, RawFde, read_frames
from midflight.forge.model import Atom, AtomKind, ObjectCode, Reference, Stretch
from midflight.forge.pieces import (
    Piece,
    cut_at_labels,
    cut_at_symbols,
    cut_strings,
    forget_private,
    is_filling,
    is_pool,
    is_private,
    split,
    with_funclets,
)
from midflight.forge.rawobject import RawObject
from midflight.image.model import Relocation, Section, Symbol

SHT_NOTE = 7
SHT_NOBITS = 8
SHT_X86_64_UNWIND = 0x70000001
SHF_WRITE = 0x1
SHF_ALLOC = 0x2
SHF_EXECINSTR = 0x4
SHF_MERGE = 0x10
SHF_STRINGS = 0x20
SHF_TLS = 0x400

# psABI table 4.9: PC8 PC16 PC32 PC64 PLT32 GOTPCREL TLSGD TLSLD GOTTPOFF GOTPC32 GOTPC32_TLSDESC GOTPCRELX
# REX_GOTPCRELX CODE_4_GOTPCRELX CODE_4_GOTTPOFF CODE_4_GOTPC32_TLSDESC: the field's own address is subtracted.
PC_RELATIVE = frozenset({2, 4, 9, 13, 15, 19, 20, 22, 24, 26, 34, 41, 42, 43, 44, 45})
_FIELD_SIZES = {1: 8, 12: 2, 13: 2, 14: 1, 15: 1, 16: 8, 17: 8, 18: 8, 24: 8, 25: 8, 27: 8, 28: 8, 29: 8, 33: 8}

# gcc for Windows: a slot with the address of type information, for exception tables, and filling.
_TYPE_SLOT = ".data$.LDFCM"
# GNU's assembler aligns the sections of COFF objects to so many bytes at least.
_ALWAYS_ALIGNED = 16


def field_size(type_: int) -> int:
    """Bytes that a relocation of this R_X86_64_* type fills (0: it marks an instruction and fills nothing)."""
    return 0 if type_ in (0, 35) else _FIELD_SIZES.get(type_, 4)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every atom of an object lies, to find what a (section, offset) means."""

    starts: Mapping[int, Sequence[int]]
    pieces: Mapping[int, Sequence[Piece]]
    commons: Mapping[int, str]
    """Symbol index to atom key."""
    tables: Mapping[int, Sequence[int]]
    """By section: offsets that code loads the address of. Several jump tables of a function share one unnamed piece."""

    def locate(self, section: int, offset: int) -> Piece | None:
        """The atom that holds ``offset``, or the nearest one before it (one past the end), or the first."""
        starts = self.starts.get(section)
        if not starts:
            return None
        return self.pieces[section][max(bisect.bisect_right(starts, offset) - 1, 0)]

    def table_start(self, piece: Piece, offset: int) -> int:
        """Where the jump table begins that has an entry at ``offset`` of the piece's section."""
        tables = self.tables.get(piece.section, ())
        at = bisect.bisect_right(tables, offset) - 1
        return max(tables[at], piece.start) if at >= 0 else piece.start


def read_object(file: Path, path: Path) -> ObjectCode:
    """Read an ELF or COFF relocatable for x86-64.

    Args:
        file: the file to read.
        path: the object's own path in the build, which names it in findings.

    Raises:
        ImageError: the file is malformed or no relocatable for x86-64.
    """
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):  # LLVM bitcode, bare or wrapped: clang -flto
        return ObjectCode(path=path, file=file, compiler="LLVM bitcode", atoms={}, lto=True)
    raw = RawObject(file)
    fdes = read_frames(raw)
    layout = _lay_out(raw, fdes)
    atoms: dict[str, Atom] = {}
    for section in raw.sections:
        if section.index not in layout.pieces:
            continue
        relocations = sorted(raw.relocations(section.index), key=lambda item: item.offset)
        for piece in layout.pieces[section.index]:
            atoms[piece.key] = _make_atom(raw, layout, section, piece, relocations)
    for symbol in raw.symbols:
        if symbol.common:
            atoms[symbol.name] = _common_atom(symbol)
    return ObjectCode(
        path=path,
        file=file,
        compiler=raw.compiler,
        atoms=_with_parents(raw, layout, fdes, atoms),
        common=frozenset(symbol.name for symbol in raw.symbols if symbol.common),
        lto=raw.lto,
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """The unwind information of one stretch of code, enough to write it anew elsewhere.

    In COFF objects it is one entry of .pdata: ``cie`` is None, and ``lsda`` leads to the UNWIND_INFO (with the data of
    the handler behind it), which is an atom that refers to the handler.
    """

    function: str
    """Key of the atom."""
    offset: int
    """Where in the atom the stretch begins."""
    size: int
    cie: Cie | None
    personality: Reference | None
    """S + A is the personality routine, or the slot that holds its address when ``cie.personality_encoding`` has
    DW_EH_PE_indirect (0x80). ``offset`` is the offset in ``cie.data``."""
    lsda: Reference | None
    """S + A is the exception table; ``offset`` is 0."""
    instructions: bytes


def frames(code: ObjectCode) -> Mapping[str, tuple[Frame, ...]]:
    """Unwind information by function key, in the order of the object's .eh_frame or .pdata (one entry for most).

    Raises:
        ImageError: the object's .eh_frame is malformed.
    """
    if not code.atoms:
        return {}
    raw = RawObject(code.file)
    fdes = read_frames(raw)
    layout = _lay_out(raw, fdes)
    nowhere = Piece(-1, 0, 0)
    found: dict[str, tuple[Frame, ...]] = {}
    for fde in fdes:
        section, offset = _place(raw, fde.start)
        piece = layout.locate(section, offset)
        if piece is None:
            continue
        personality = None
        if fde.cie.personality is not None:
            personality = _reference(raw, layout, nowhere, fde.cie.personality, None)
        lsda = None
        if fde.lsda is not None:
            lsda = replace(_reference(raw, layout, nowhere, fde.lsda, None), offset=0)
        frame = Frame(piece.key, offset - piece.start, fde.size, fde.cie, personality, lsda, fde.instructions)
        found[piece.key] = (*found.get(piece.key, ()), frame)
    for item in raw.runtime_functions:
        piece, info = layout.locate(item.section, item.start), layout.locate(item.info_section, item.info)
        if piece is not None and info is not None:
            to_info = Reference(0, r.RVA32, item.info - info.start, info.key, None)
            frame = Frame(piece.key, item.start - piece.start, item.end - item.start, None, None, to_info, b"")
            found[piece.key] = (*found.get(piece.key, ()), frame)
    return found


def _lay_out(raw: RawObject, fdes: Sequence[RawFde]) -> Layout:
    """Cut all sections that hold code or data of the program, and give every piece its key."""
    by_section: dict[int, list[Symbol]] = {}
    commons: dict[int, str] = {}
    for symbol in raw.symbols:
        if symbol.common:
            commons[symbol.index] = symbol.name
        elif symbol.section is not None and symbol.type not in ("section", "file") and symbol.name:
            by_section.setdefault(symbol.section, []).append(symbol)
    targets = _crude_targets(raw)
    stubs = _type_info_slots(raw)
    table_starts: dict[int, set[int]] = {}
    for fde in fdes:
        if fde.lsda is not None:
            index, offset = _place(raw, fde.lsda)
            table_starts.setdefault(index, set()).add(offset)
    pieces: dict[int, list[Piece]] = {}
    for item in raw.runtime_functions:
        table_starts.setdefault(item.info_section, set()).add(item.info)
    for section in raw.sections:
        if not is_program(section):
            continue
        if section.flags & SHF_MERGE and section.flags & SHF_STRINGS:
            cut = cut_strings(raw, section)
        elif section.flags & SHF_MERGE and section.entry_size:
            cut = [
                Piece(section.index, at, min(at + section.entry_size, section.size))
                for at in range(0, section.size, section.entry_size)
            ]
        elif section.name.startswith((".gcc_except_table", ".xdata")):
            if any(s.binding != "local" for s in by_section.get(section.index, ())):
                # What clang for the MSVC ABI says of the types that are thrown: others refer to it by name.
                cut = cut_at_symbols(raw, section, by_section[section.index], set())
            else:
                edges = sorted({0, section.size} | table_starts.get(section.index, set()))
                cut = [Piece(section.index, a, b) for a, b in pairwise(edges)]
        elif section.name.startswith(_TYPE_SLOT):
            cut = [Piece(section.index, 0, min(8, section.size), constant=True)]
        elif raw.format == "pe" and is_pool(section, by_section.get(section.index, [])):
            cut = cut_at_labels(section, by_section[section.index])
        else:
            symbols = by_section.get(section.index, [])
            cut = cut_at_symbols(raw, section, symbols, targets.get(section.index, set()))
            cut = [part for piece in cut for part in split(piece, stubs.get(section.index, set()))]
            cut = with_funclets(cut) if raw.format == "pe" else cut
        if raw.format == "pe" and not section.flags & (SHF_WRITE | SHF_EXECINSTR | SHF_TLS):
            for piece in cut:
                forget_private(piece)
        if cut:
            pieces[section.index] = cut
    _name(raw, pieces, set(commons.values()))
    return Layout(
        {index: [p.start for p in cut] for index, cut in pieces.items()}, pieces, commons, _loaded_addresses(raw)
    )


def _place(raw: RawObject, relocation: Relocation) -> tuple[int, int]:
    """Section index (-1: in none) and offset that S + A of a relocation means."""
    symbol = raw.symbols[relocation.symbol]
    return (-1 if symbol.section is None else symbol.section), symbol.value + relocation.addend


def is_program(section: Section) -> bool:
    """Whether a section holds code or data that the program itself uses (unwind tables and notes it does not)."""
    if not section.flags & SHF_ALLOC or section.type in (SHT_NOTE, SHT_X86_64_UNWIND):
        return False
    # .rdata$zzz is where gcc for Windows writes its own name.
    return section.name not in (".eh_frame", ".rdata$zzz") and not section.name.startswith((".pdata", ".drectve"))


def _crude_targets(raw: RawObject) -> dict[int, set[int]]:
    """Offsets that relocations against section symbols may mean, with every possible bias of a PC-relative field."""
    found: dict[int, set[int]] = {}
    for section in raw.sections:
        if not section.flags & SHF_ALLOC or section.name.startswith(".pdata"):  # it names ends, too
            continue
        for relocation in raw.relocations(section.index):
            symbol = raw.symbols[relocation.symbol]
            if symbol.section is not None and (symbol.type == "section" or symbol.name.startswith(".L")):
                offset = symbol.value + relocation.addend
                biases = (0, 4, 5, 6, 8) if relocation.type in PC_RELATIVE else (0,)
                found.setdefault(symbol.section, set()).update(offset + bias for bias in biases)
    return found


def _loaded_addresses(raw: RawObject) -> dict[int, list[int]]:
    """Offsets in sections of constants whose address a ``lea`` loads, PC-relative and without a symbol, in order."""
    found: dict[int, set[int]] = {}
    for section in raw.sections:
        if not section.flags & SHF_EXECINSTR:
            continue
        code = raw.content(section.index)
        for relocation in raw.relocations(section.index):
            symbol = raw.symbols[relocation.symbol]
            if symbol.section is None or not (symbol.type == "section" or symbol.name.startswith(".L")):
                continue
            at = relocation.offset
            before = code[at - 3 : at] if at >= 3 else b""
            # REX.W 8D /r with a RIP-relative operand; the field ends the instruction (Intel SDM, LEA)
            is_lea = len(before) == 3 and before[0] & 0xF8 == 0x48 and before[1] == 0x8D and before[2] & 0xC7 == 5
            if is_lea and relocation.type in PC_RELATIVE:
                found.setdefault(symbol.section, set()).add(symbol.value + relocation.addend + 4)
    return {index: sorted(offsets) for index, offsets in found.items()}


def _type_info_slots(raw: RawObject) -> dict[int, set[int]]:
    """Where exception tables point to in data: clang puts its unnamed type info slots side by side into .data."""
    found: dict[int, set[int]] = {}
    for section in raw.sections:
        if section.name.startswith(".gcc_except_table"):
            for relocation in raw.relocations(section.index):
                index, offset = _place(raw, relocation)
                if index >= 0 and raw.sections[index].flags & SHF_WRITE:
                    found.setdefault(index, set()).add(offset)
    return found


def _name(raw: RawObject, pieces: Mapping[int, Sequence[Piece]], taken: set[str]) -> None:
    section_names: dict[str, int] = {}
    for section in raw.sections:
        section_names[section.name] = section_names.get(section.name, 0) + 1
    order = {"global": 0, "unique": 0, "weak": 1, "local": 2}
    for index, cut in pieces.items():
        section = raw.sections[index]
        label = section.name if section_names[section.name] == 1 else f"{section.name}[{index}]"
        for piece in cut:
            piece.symbols.sort(key=lambda s: (order[s.binding], s.type == "notype", -s.size, s.index))
            place = f"{label}+{piece.start:#x}"
            key = piece.symbols[0].name if piece.symbols else place
            piece.key = key if key not in taken else f"{key}@{place}"
            taken.add(piece.key)


def _is_text(data: bytes) -> bool:
    """Whether these bytes are one text, ended by zeros."""
    text = data.rstrip(b"\0")
    if not text or len(text) == len(data) or b"\0" in text:
        return False
    try:
        return all(c.isprintable() or c.isspace() for c in text.decode())
    except UnicodeDecodeError:
        return False


def _kind(section: Section, piece: Piece, data: bytes, referring: bool) -> AtomKind:
    if section.flags & SHF_EXECINSTR:
        return "function"
    if section.flags & SHF_TLS:
        return "tls"
    if section.type == SHT_NOBITS:
        return "bss"
    if section.name.startswith(".xdata") and piece.symbols:
        return "rodata"
    if section.name.startswith(
        (".gcc_except_table", ".xdata", ".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors", ".CRT$")
    ):
        return "other"
    if section.flags & SHF_MERGE and section.flags & SHF_STRINGS:
        return "string"
    if (piece.padded or piece.private) and _is_text(data) and not referring:
        return "string"
    if section.flags & SHF_WRITE and not section.name.startswith(".data.rel.ro") and not piece.constant:
        return "data"
    return "rodata"


def _make_atom(
    raw: RawObject, layout: Layout, section: Section, piece: Piece, relocations: Sequence[Relocation]
) -> Atom:
    first = bisect.bisect_left(relocations, piece.start, key=lambda item: item.offset)
    last = bisect.bisect_left(relocations, piece.end, key=lambda item: item.offset)
    inside = relocations[first:last]
    data = b"" if section.type == SHT_NOBITS else raw.content(section.index)[piece.start : piece.end]
    kind = _kind(section, piece, data, bool(inside))
    ends = _instruction_ends(data, [r.offset - piece.start for r in inside]) if kind == "function" else {}
    alignment = max(section.alignment, 1)
    if piece.start % alignment:
        alignment = piece.start & -piece.start
    names = list(dict.fromkeys(symbol.name for symbol in piece.symbols))
    primary = piece.symbols[0] if piece.symbols else None
    least = 0
    if raw.format == "pe" and primary is not None and alignment == _ALWAYS_ALIGNED:
        extent = raw.extents.get(primary.name)
        least = 1 if extent is None else extent.alignment
    return Atom(
        key=piece.key,
        name=primary.name if primary else "",
        kind=kind,
        binding=primary.binding if primary else "local",
        section=section.name,
        offset=piece.start,
        size=piece.end - piece.start,
        alignment=alignment,
        data=data,
        references=tuple(_reference(raw, layout, piece, r, ends.get(r.offset - piece.start)) for r in inside),
        aliases=tuple(names[1:]),
        ifunc=any(symbol.type == "ifunc" for symbol in piece.symbols),
        padded=piece.padded and not inside,
        sized=piece.sized,
        lead=_lead(raw, section, piece) if kind == "function" else b"",
        least_alignment=least,
    )


def _lead(raw: RawObject, section: Section, piece: Piece) -> bytes:
    """The filling that begins the section of a function, right before it; b"" where anything else is there."""
    before = raw.content(section.index)[: piece.start]
    if not before or any(item.offset < piece.start for item in raw.relocations(section.index)):
        return b""
    labels = (s for s in raw.symbols if s.section == section.index and s.type != "section")
    if any(label.value < piece.start for label in labels) or not is_filling(before):
        return b""
    return before


def _instruction_ends(code: bytes, offsets: Sequence[int]) -> dict[int, int]:
    """For the offset of each relocated field in code: the offset of the end of its instruction."""
    ends: dict[int, int] = {}
    if not offsets:
        return ends
    decoder = x86.Decoder(64, code)
    instruction = x86.Instruction()
    waiting = iter(sorted(set(offsets)))
    offset = next(waiting)
    while decoder.can_decode:
        decoder.decode_out(instruction)
        end = instruction.next_ip
        while offset < end:
            ends[offset] = end
            following = next(waiting, None)
            if following is None:
                return ends
            offset = following
    return ends


def _reference(
    raw: RawObject, layout: Layout, piece: Piece, relocation: Relocation, instruction_end: int | None
) -> Reference:
    """Resolve one relocation. ``bias`` + S + A is the address that is really meant, see :class:`Reference`."""
    symbol = raw.symbols[relocation.symbol]
    offset = relocation.offset - piece.start
    bias = 0
    if relocation.type in PC_RELATIVE and instruction_end is not None:
        bias = instruction_end - offset
    if symbol.index in layout.commons:
        return Reference(offset, relocation.type, relocation.addend, layout.commons[symbol.index], None, bias)
    if symbol.section is None or symbol.section not in layout.pieces:
        return Reference(offset, relocation.type, relocation.addend, None, symbol.name, bias)
    value = symbol.value
    if symbol.type == "section" or symbol.name.startswith(".L") or (raw.format == "pe" and is_private(symbol.name)):
        in_code = bool(raw.sections[symbol.section].flags & SHF_EXECINSTR)
        if relocation.type in PC_RELATIVE and instruction_end is None and in_code:
            # an entry of a jump table: label - table, so the addend has the entry's offset in the table in it
            bias = layout.table_start(piece, relocation.offset) - relocation.offset
        if relocation.type in PC_RELATIVE and instruction_end is None and relocation.addend == offset:
            bias = -offset  # clang's tables of strings: string - table, by a label of the string
        # A label says by itself what is meant; of a section only the place in it does.
        meant = value if symbol.type != "section" else value + relocation.addend + bias
        target = layout.locate(symbol.section, meant)
    else:
        target = layout.locate(symbol.section, value)
    assert target is not None
    addend = value + relocation.addend - target.start
    return Reference(offset, relocation.type, addend, target.key, None, bias)


def _common_atom(symbol: Symbol) -> Atom:
    """A tentative definition: zeroed storage that the linker allots; st_value is its alignment (gABI, SHN_COMMON)."""
    return Atom(
        key=symbol.name,
        name=symbol.name,
        kind="tls" if symbol.type == "tls" else "bss",
        binding="global",
        section="COMMON",
        offset=0,
        size=symbol.size,
        alignment=max(symbol.value, 1),
        data=b"",
        references=(),
    )


def _with_parents(raw: RawObject, layout: Layout, fdes: Sequence[RawFde], atoms: dict[str, Atom]) -> dict[str, Atom]:
    """Tell children their function: clones by name, jump tables by where they lead, exception tables by the FDE."""
    parents: dict[str, str] = {}
    stretches: dict[str, list[Stretch]] = {}
    for key, atom in atoms.items():
        if atom.kind == "function":
            name = atom.name
            while (shorter := CHILD_TAIL.sub("", name)) != name:
                name = shorter
                if name in atoms and atoms[name].kind == "function":
                    parents[key] = name
                    break
        elif atom.kind == "rodata" and not atom.name and atom.references:
            owners = {
                parents.get(r.atom, r.atom) if r.atom else None
                for r in atom.references
                if r.atom is None or not CHILD_TAIL.search(r.atom)
            }
            owner = owners.pop() if len(owners) == 1 else None
            if owner is not None and atoms[owner].kind == "function":
                parents[key] = owner
    for fde in fdes:
        if fde.lsda is not None:
            function, table = layout.locate(*_place(raw, fde.start)), layout.locate(*_place(raw, fde.lsda))
            if function is not None and table is not None:
                parents[table.key] = function.key
    for item in raw.runtime_functions:
        function, info = layout.locate(item.section, item.start), layout.locate(item.info_section, item.info)
        if function is not None and info is not None:
            parents[info.key] = function.key
            stretch = Stretch(item.start - function.start, item.end - function.start, info.key, item.info - info.start)
            stretches.setdefault(function.key, []).append(stretch)
    for key, several in stretches.items():
        atoms[key] = replace(atoms[key], stretches=tuple(sorted(several, key=lambda item: item.start)))
    parents.update(outlined(atoms, parents))
    return {key: replace(atom, parent=parents[key]) if key in parents else atom for key, atom in atoms.items()}
