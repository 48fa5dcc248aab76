"""The calls that a function of an object makes: whom, and on which source line.

Calls through a pointer that a variable holds (``xmlFree``) are called after the variable; others stay unnamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import iced_x86 as x86

from midflight.forge.difference.lines import LineTables
from midflight.forge.difference.linetable import Row
from midflight.forge.families import base_name
from midflight.forge.model import Atom, ObjectCode, Reference

_FLOW = x86.FlowControl
_VOLATILE = tuple(getattr(x86.Register, name) for name in ("RAX", "RCX", "RDX", "RSI", "RDI", "R8", "R9", "R10", "R11"))
"""Registers that a call may destroy (AMD64 psABI 3.2.1)."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call (or jump that ends in another function). ``line`` 0: unknown."""

    offset: int
    callee: str
    """Name of the function, without .constprop and the like; or of the variable that points to it."""
    file: str
    line: int


def call_sites(code: ObjectCode, atom: Atom, lines: LineTables) -> tuple[CallSite, ...]:
    """All calls of one function, in the order of their addresses."""
    table = LineOf(lines.rows(atom))
    return tuple(CallSite(offset, callee, *table.at(offset)) for offset, callee in _named_calls(code, atom) if callee)


class LineOf:
    """Which line an offset belongs to."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = sorted(rows, key=lambda row: row.address)

    def at(self, offset: int) -> tuple[str, int]:
        """(file, line) of the last row at or before ``offset`` that has a line."""
        low, high = 0, len(self._rows)
        while low < high:
            middle = (low + high) // 2
            if self._rows[middle].address <= offset:
                low = middle + 1
            else:
                high = middle
        for row in reversed(self._rows[:low]):
            if row.line:
                return row.file, row.line
        return "", 0


def name_of(code: ObjectCode, reference: Reference) -> str:
    """What a reference is called: a symbol of elsewhere, or a named atom of the object."""
    if reference.symbol is not None:
        return reference.symbol
    atom = code.atoms.get(reference.atom or "")
    return "" if atom is None else base_name(atom.name)


def _named_calls(code: ObjectCode, atom: Atom) -> Iterator[tuple[int, str]]:
    references = {reference.offset: reference for reference in atom.references}
    held: dict[int, str] = {}
    """What registers hold (the address of a pointer, or the pointer), as far as straight code tells."""
    factory = x86.InstructionInfoFactory()
    for instruction in x86.Decoder(64, atom.data):
        reference = _reference(instruction, references)
        name = name_of(code, reference) if reference is not None else ""
        match instruction.flow_control:
            case _FLOW.CALL:
                yield instruction.ip, name
                _forget(held)
            case _FLOW.UNCONDITIONAL_BRANCH | _FLOW.CONDITIONAL_BRANCH:
                target = code.atoms.get(reference.atom or "") if reference is not None else None
                inside = target is not None and (target.key in (atom.key, atom.parent) or target.parent == atom.key)
                if reference is not None and not inside:
                    yield instruction.ip, name
            case _FLOW.INDIRECT_CALL | _FLOW.INDIRECT_BRANCH:
                yield instruction.ip, name or held.get(_register(instruction), "")
                _forget(held)
            case _:
                _follow(instruction, name, held, factory)


def _reference(instruction: x86.Instruction, references: dict[int, Reference]) -> Reference | None:
    return next(
        (references[at] for at in range(instruction.ip + 1, instruction.ip + instruction.len) if at in references), None
    )


def _register(instruction: x86.Instruction) -> int:
    if instruction.op0_kind == x86.OpKind.REGISTER:
        return int(instruction.op0_register)
    return int(instruction.memory_base) if instruction.memory_displacement == 0 else 0


def _follow(instruction: x86.Instruction, name: str, held: dict[int, str], factory: x86.InstructionInfoFactory) -> None:
    """Keep track of pointers to functions that are loaded into registers."""
    loads = instruction.mnemonic in (x86.Mnemonic.MOV, x86.Mnemonic.LEA)
    if loads and instruction.op0_kind == x86.OpKind.REGISTER and instruction.op1_kind == x86.OpKind.MEMORY:
        source = name or held.get(_register_of_memory(instruction), "")
    elif loads and instruction.op0_kind == x86.OpKind.REGISTER and instruction.op1_kind == x86.OpKind.REGISTER:
        source = held.get(int(instruction.op1_register), "")
    else:
        for used in factory.info(instruction).used_registers():
            if used.access not in (x86.OpAccess.READ, x86.OpAccess.COND_READ, x86.OpAccess.NO_MEM_ACCESS):
                held.pop(int(x86.RegisterExt.full_register(used.register)), None)
        return
    held.pop(int(x86.RegisterExt.full_register(instruction.op0_register)), None)
    if source:
        held[int(instruction.op0_register)] = source


def _register_of_memory(instruction: x86.Instruction) -> int:
    return int(instruction.memory_base) if instruction.memory_displacement == 0 else 0


def _forget(held: dict[int, str]) -> None:
    for register in _VOLATILE:
        held.pop(int(register), None)
