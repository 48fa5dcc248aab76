"""Decides whether two versions of a function differ in nothing but line numbers that they pass on (asserts: __LINE__).

Such a difference is no change. It is accepted only when, instruction by instruction,

- everything is equal but the immediate of a ``mov`` into a register or the stack, or of a ``push``, on the way to
  a call;
- the old immediate is the line that the old line table has for that instruction, the new one that of the new table;
- the number is not written out anywhere in the sources of the unit, so that it can only come from ``__LINE__``.

In doubt (no DWARF, sources not found) it is a change. Source: DWARF 5 section 6.2, Intel SDM volume 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import iced_x86 as x86
from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.elffile import ELFFile

from midflight.forge.model import Atom

_LITERAL = re.compile(rb"(?<![\w.])(?:0[xX][0-9a-fA-F]+|[0-9]+)(?=[uUlL]*(?![\w.]))")
_LINE_ARGUMENTS = {
    x86.Code.MOV_R32_IMM32,
    x86.Code.MOV_RM32_IMM32,
    x86.Code.MOV_RM64_IMM32,
    x86.Code.PUSHQ_IMM32,
    x86.Code.MOV_R8_IMM8,
    x86.Code.PUSHQ_IMM8,
}
_R_X86_64_64 = 1
_EXTENDED_SET_ADDRESS = 2


@dataclass(frozen=True, slots=True)
class _Row:
    address: int
    line: int


class LineTables:
    """The line tables of one object, by section; read when first asked for. Empty when there are none to be read."""

    def __init__(self, file: Path, path: Path) -> None:
        self._file = file
        self._path = path
        self._sources: list[str] = []

    @cached_property
    def _rows(self) -> dict[str, list[_Row]]:
        try:
            with self._file.open("rb") as stream:
                return self._read(ELFFile(stream))
        except (DWARFError, ELFError, KeyError, ValueError, IndexError, AssertionError):
            return {}

    def _read(self, elf: Any) -> dict[str, list[_Row]]:
        """Rows of every sequence. A sequence begins with DW_LNE_set_address, whose operand is 0 in an object: only its
        relocation says which section is meant, so the n-th such relocation belongs to the n-th sequence."""
        relocations = elf.get_section_by_name(".rela.debug_line")
        if relocations is None or not elf.has_dwarf_info():
            return {}
        symbols = elf.get_section(relocations["sh_link"])
        places = []
        for relocation in sorted(relocations.iter_relocations(), key=lambda item: int(item["r_offset"])):
            if relocation["r_info_type"] == _R_X86_64_64:
                symbol = symbols.get_symbol(relocation["r_info_sym"])
                section = elf.get_section(symbol["st_shndx"])
                places.append((section.name, symbol["st_value"] + relocation["r_addend"]))
        dwarf = elf.get_dwarf_info(relocate_dwarf_sections=True)
        tables: dict[str, list[_Row]] = {}
        twice: set[str] = set()
        following = iter(places)
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            self._sources.extend(_source_names(unit, program))
            rows: list[_Row] = []
            shift = 0
            for entry in program.get_entries():
                if entry.is_extended and entry.command == _EXTENDED_SET_ADDRESS:
                    name, start = next(following)
                    shift = start - entry.args[0]
                    if name in tables:
                        twice.add(name)  # two sections of one name: nobody can tell which is which
                    rows = tables.setdefault(name, [])
                elif entry.state is not None and not entry.state.end_sequence:
                    rows.append(_Row(entry.state.address + shift, entry.state.line))
        return {name: rows for name, rows in tables.items() if name not in twice}

    def rows(self, atom: Atom) -> list[_Row]:
        """The rows of one function, addresses relative to its beginning, in the order of the table."""
        end = atom.offset + atom.size
        found = self._rows.get(atom.section, [])
        return [_Row(r.address - atom.offset, r.line) for r in found if atom.offset <= r.address < end]

    @cached_property
    def literals(self) -> frozenset[int] | None:
        """All integers that are written out in the sources of this unit; None when its main source cannot be found."""
        if not self._rows or not self._sources:
            return None
        texts = [self._text(name) for name in self._sources]
        if texts[0] is None:
            return None
        found: set[int] = set()
        for text in texts:
            for token in _LITERAL.findall(text or b""):
                octal = token.startswith(b"0") and token.isdigit() and token.strip(b"01234567") == b""
                found.add(int(token, 8) if octal else int(token, 16 if token[:2].lower() == b"0x" else 10))
        return frozenset(found)

    def _text(self, name: str) -> bytes | None:
        """A source file, also when its path in the debug information is relative to an unknown directory."""
        if name.startswith("/usr/"):
            return b""
        places = [Path(name)] if name.startswith("/") else [parent / name for parent in self._path.parents]
        for place in places:
            if place.is_file():
                return place.read_bytes()
        return None


def _source_names(unit: Any, program: Any) -> Iterator[str]:
    """The files of a unit, its main source first, as far as the debug information tells where they are."""
    attributes = unit.get_top_DIE().attributes

    def text(value: Any) -> str:
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    directory = text(attributes["DW_AT_comp_dir"].value) if "DW_AT_comp_dir" in attributes else "."
    yield str(Path(directory) / text(attributes["DW_AT_name"].value))
    folders = [text(item) for item in program["include_directory"]]
    if program["version"] < 5:
        folders.insert(0, directory)
    for entry in program["file_entry"]:
        index = int(entry.dir_index)
        folder = folders[index] if index < len(folders) else "."
        yield str(Path(directory) / folder / text(entry.name))


def only_lines_differ(old: Atom, new: Atom, pre: LineTables, post: LineTables) -> bool:
    """Whether two functions of equal size, with equal references, are the same but for line numbers."""
    instructions = list(x86.Decoder(64, old.data)), list(x86.Decoder(64, new.data))
    if len(instructions[0]) != len(instructions[1]):
        return False
    rows = pre.rows(old), post.rows(new)
    if not rows[0] or [r.address for r in rows[0]] != [r.address for r in rows[1]]:
        return False
    constants = x86.Decoder(64, old.data)
    for index, (one, other) in enumerate(zip(*instructions, strict=True)):
        if one.len != other.len:
            return False
        at = one.ip
        if old.data[at : at + one.len] == new.data[at : at + one.len]:
            continue
        if one.code != other.code or one.code not in _LINE_ARGUMENTS:
            return False
        place = constants.get_constant_offsets(one)
        start, end = at + place.immediate_offset, at + place.immediate_offset + place.immediate_size
        rest = old.data[at:start] + old.data[end : at + one.len], new.data[at:start] + new.data[end : at + one.len]
        if not place.has_immediate or rest[0] != rest[1]:
            return False
        before, after = (int.from_bytes(data[start:end], "little") for data in (old.data, new.data))
        if (before, after) not in _lines_at(rows, at) or not _goes_to_a_call(instructions[0], index):
            return False
        for literals in (pre.literals, post.literals):
            if literals is None or before in literals or after in literals:
                return False
    return True


def _lines_at(rows: tuple[list[_Row], list[_Row]], address: int) -> list[tuple[int, int]]:
    """Pairs of lines (old, new) that the tables give for one instruction; several rows may have one address."""
    begin = max((r.address for r in takewhile(lambda r: r.address <= address, rows[0])), default=-1)
    return [(a.line, b.line) for a, b in zip(*rows, strict=True) if a.address == begin]


def _goes_to_a_call(instructions: list[x86.Instruction], index: int) -> bool:
    """Whether control goes straight on from an instruction to a call (or to a jump that shares one), with the register
    that it loads left alone."""
    factory = x86.InstructionInfoFactory()
    first = instructions[index]
    register = first.op0_register if first.op0_kind == x86.OpKind.REGISTER else x86.Register.NONE
    full = x86.RegisterExt.full_register(register)
    for instruction in instructions[index + 1 :]:
        flow = instruction.flow_control
        if flow in (x86.FlowControl.CALL, x86.FlowControl.INDIRECT_CALL, x86.FlowControl.UNCONDITIONAL_BRANCH):
            return True
        if flow != x86.FlowControl.NEXT:
            return False
        for used in factory.info(instruction).used_registers():
            written = used.access not in (x86.OpAccess.READ, x86.OpAccess.COND_READ, x86.OpAccess.NO_MEM_ACCESS)
            if register and written and x86.RegisterExt.full_register(used.register) == full:
                return False
    return False
