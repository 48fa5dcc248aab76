"""Decides whether two versions of a function differ in nothing but line numbers that they pass on (asserts: __LINE__).

Such a difference is no change. It is accepted only when, instruction by instruction,

- everything is equal but the immediate of a ``mov`` into a register or the stack, or of a ``push``, on the way to
  a call;
- the old immediate is a line of this function in the old line table, the new one the line that the new table has in the
  same place (not always for that instruction: of a call that is inlined in part, the rest has the callee's lines), or
  they are the lines from which the same call was inlined (or a few lines further on in both: a call may be written over
  several lines);
- the number is not written out anywhere in the sources of the unit, so that it can only come from ``__LINE__``.

In doubt (no DWARF, sources not found) it is a change. Source: DWARF 5 section 6.2, Intel SDM volume 2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path

import iced_x86 as x86

from midflight.errors import ImageError
from midflight.forge.difference import layout
from midflight.forge.difference.linetable import LineInfo, Row, read_line_info
from midflight.forge.families import base_name
from midflight.forge.model import Atom

SOURCES = "sources"
"""Folder beside that of the kept objects of a build, with what the compilers read, by absolute path."""

_LITERAL = re.compile(rb"(?<![\w.])(?:0[xX][0-9a-fA-F]+|[0-9]+)(?=[uUlL]*(?![\w.]))")
_LINE_ARGUMENTS = {  # with the size of the immediate, which ends the instruction
    x86.Code.MOV_R32_IMM32: 4,
    x86.Code.MOV_RM32_IMM32: 4,
    x86.Code.MOV_RM64_IMM32: 4,
    x86.Code.PUSHQ_IMM32: 4,
    x86.Code.PUSHQ_IMM8: 1,
}
_STATEMENT = 6
"""Lines over which a call may be written, to be known by its first one."""
_KEPT = frozenset(
    (x86.Register.RBX, x86.Register.RBP, x86.Register.R12, x86.Register.R13, x86.Register.R14, x86.Register.R15)
)
_RETURNED = frozenset((x86.Register.RAX, x86.Register.RDX))


class LineTables:
    """The line tables of one object; read when first asked for. Empty when there are none to be read."""

    def __init__(self, file: Path, path: Path) -> None:
        self._file = file
        self._path = path

    @cached_property
    def _info(self) -> LineInfo:
        try:
            return read_line_info(self._file)
        except ImageError:
            return LineInfo({}, (), {})

    def rows(self, atom: Atom) -> list[Row]:
        """The rows of one function, addresses relative to its beginning, in the order of the table."""
        end = atom.offset + atom.size
        found = self._info.rows.get(atom.section, ())
        return [Row(r.address - atom.offset, r.line, r.file) for r in found if atom.offset <= r.address < end]

    @cached_property
    def _call_lines(self) -> Mapping[str, Sequence[int]]:
        try:
            return layout.call_lines(self._file)
        except ImageError:
            return {}

    def call_lines(self, atom: Atom) -> Sequence[int]:
        """The lines from which calls were inlined into a function, in the order of the debug information."""
        return self._call_lines.get(base_name(atom.name), ())

    @property
    def files(self) -> Mapping[int, str]:
        """Source files by the number that debug information gives them."""
        return self._info.numbered

    @cached_property
    def literals(self) -> frozenset[int] | None:
        """All integers that are written out in the sources of this unit; None when its main source cannot be found."""
        main = layout.sources(self._file)
        texts = [self._text(name) for name in main]
        if not main or None in texts:
            return None
        found: set[int] = set()
        for name in self._info.files:  # older tables do not tell the directory that these are relative to
            folders = [""] if name.startswith("/") else [f"{folder}/" for folder in Path(main[0]).parents]
            texts.append(next((text for folder in folders if (text := self._text(folder + name)) is not None), None))
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
        kept = self._file.parent.parent / SOURCES
        if kept.is_dir():
            # The tree may be that of another build by now.
            places = [kept / os.path.normpath(place).lstrip("/") for place in places]
        for place in places:
            if place.is_file():
                return place.read_bytes()
        return None


def only_lines_differ(old: Atom, new: Atom, pre: LineTables, post: LineTables) -> bool:
    """Whether two functions of equal size, with equal references, are the same but for line numbers."""
    instructions = list(x86.Decoder(64, old.data)), list(x86.Decoder(64, new.data))
    if len(instructions[0]) != len(instructions[1]):
        return False
    rows = pre.rows(old), post.rows(new)
    if not rows[0] or [r.address for r in rows[0]] != [r.address for r in rows[1]]:
        return False
    lines = {(a.line, b.line) for a, b in zip(*rows, strict=True)}
    inlined: Set[tuple[int, int]] = set()
    for index, (one, other) in enumerate(zip(*instructions, strict=True)):
        if one.len != other.len:
            return False
        at = one.ip
        if old.data[at : at + one.len] == new.data[at : at + one.len]:
            continue
        if one.code != other.code or one.code not in _LINE_ARGUMENTS:
            return False
        end = at + one.len
        start = end - _LINE_ARGUMENTS[one.code]
        if old.data[at:start] != new.data[at:start]:
            return False
        before, after = (int.from_bytes(data[start:end], "little") for data in (old.data, new.data))
        if not _lines_of_one_statement(before, after, lines):
            if not inlined:
                inlined = _inlined(old, new, pre, post)
            if not _lines_of_one_statement(before, after, inlined):
                return False
        if not _goes_to_a_call(old, instructions[0], index):
            return False
        for literals in (pre.literals, post.literals):
            if literals is None or before in literals or after in literals:
                return False
    return True


def _lines_of_one_statement(before: int, after: int, lines: Set[tuple[int, int]]) -> bool:
    """Whether two lines are those of the same statement, or stand the same few lines after its first one."""
    return any((before - further, after - further) in lines for further in range(_STATEMENT))


def _inlined(old: Atom, new: Atom, pre: LineTables, post: LineTables) -> Set[tuple[int, int]]:
    """Old and new lines from which the same calls were inlined; empty when not the same calls were."""
    before, after = pre.call_lines(old), post.call_lines(new)
    return set(zip(before, after, strict=True)) if len(before) == len(after) else set()


def _goes_to_a_call(function: Atom, instructions: Sequence[x86.Instruction], index: int) -> bool:
    """Whether what an instruction loads can only become an argument: on all ways from it, the register is read by
    nothing but a call (or a jump that leaves the function), and one of them is reached. What it loads onto the stack
    must come straight to its call.

    Which registers outlive a call or a return: System V AMD64 ABI, section 3.2.1."""
    first = instructions[index]
    register = first.op0_register if first.op0_kind == x86.OpKind.REGISTER else x86.Register.NONE
    register = x86.RegisterExt.full_register(register)
    factory = x86.InstructionInfoFactory()
    at = {instruction.ip: number for number, instruction in enumerate(instructions)}
    relocated = {reference.offset for reference in function.references}
    called = False
    todo, seen = [index + 1], set[int]()
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        if number >= len(instructions):
            return False
        instruction = instructions[number]
        flow = instruction.flow_control
        if flow in (x86.FlowControl.CALL, x86.FlowControl.INDIRECT_CALL):
            called = True
            if register in _KEPT:
                todo.append(number + 1)
            continue
        if flow == x86.FlowControl.RETURN:
            if register in _RETURNED or register == x86.Register.NONE:
                return False
            continue
        if flow in (x86.FlowControl.UNCONDITIONAL_BRANCH, x86.FlowControl.CONDITIONAL_BRANCH):
            outside = any(offset in relocated for offset in range(instruction.ip, instruction.ip + instruction.len))
            target = None if outside else at.get(instruction.near_branch_target)
            if target is None and not outside:
                return False
            if target is None:
                called = True
            else:
                todo.append(target)
            if flow == x86.FlowControl.CONDITIONAL_BRANCH:
                if register == x86.Register.NONE:
                    return False
                todo.append(number + 1)
            continue
        if flow != x86.FlowControl.NEXT:
            return False
        read, written = _use(factory, instruction, register)
        if read:
            return False
        if not written:
            todo.append(number + 1)
    return called


def _use(factory: x86.InstructionInfoFactory, instruction: x86.Instruction, register: int) -> tuple[bool, bool]:
    """Whether an instruction reads a register (or a part of it), and whether it replaces it as a whole."""
    read = written = False
    for used in factory.info(instruction).used_registers():  # those of addresses too
        if x86.RegisterExt.full_register(used.register) != register or register == x86.Register.NONE:
            continue
        if used.access == x86.OpAccess.WRITE and x86.RegisterExt.size(used.register) >= 4:
            written = True  # 32-bit results clear the rest
        elif used.access != x86.OpAccess.NO_MEM_ACCESS:
            read = True
    return read, written
