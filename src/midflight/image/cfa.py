"""Executes call frame programs: at one address, how to find the caller's registers.

Source: DWARF 5, 6.4.2 and 6.4.3; LSB Core 5.0, 10.5.1 (DW_CFA_GNU_*).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from midflight.image.dwarf import Cursor, bad

RuleKind = Literal["same", "undefined", "offset", "val_offset", "register", "expression", "val_expression"]

_MOST_REMEMBERED = 256
_HIGHEST_REGISTER = 255


@dataclass(frozen=True, slots=True)
class Rule:
    """How the caller's value of one register is found.

    offset: in memory at CFA + ``number``; val_offset: CFA + ``number``; register: in register ``number``; expression:
    in memory where ``code`` says; val_expression: what ``code`` says; same: unchanged; undefined: lost."""

    kind: RuleKind
    number: int = 0
    code: bytes = b""


@dataclass(slots=True)
class Row:
    """All rules at one address. The CFA is ``cfa_register`` + ``cfa_offset``, or what ``cfa_expression`` says."""

    cfa_register: int | None = None
    cfa_offset: int = 0
    cfa_expression: bytes | None = None
    rules: dict[int, Rule] = field(default_factory=dict)

    def copy(self) -> Row:
        """An independent copy."""
        return Row(self.cfa_register, self.cfa_offset, self.cfa_expression, dict(self.rules))


@dataclass(frozen=True, slots=True)
class Cie:
    """What the frame descriptions of one common information entry share.

    ``signal``: its frames are made by signals, so that their callers' addresses are no return addresses."""

    code_alignment: int
    data_alignment: int
    return_register: int
    pointer_encoding: int
    lsda_encoding: int
    personality: int | None
    signal: bool
    augmented: bool
    program: bytes


class _Machine:
    """The state of one call frame program."""

    def __init__(self, cie: Cie, location: int, target: int) -> None:
        self.cie = cie
        self.row = Row()
        self.initial: Row | None = None
        self.remembered: list[Row] = []
        self.location = location
        self.target = target

    def run(self, program: bytes, vaddr: int) -> None:
        """Run instructions until they end, or tell of an address after the target."""
        cursor = Cursor(program, vaddr=vaddr)
        while cursor.at < cursor.end:
            op = cursor.byte()
            high, low = op & 0xC0, op & 0x3F
            if high == 0x40:  # advance_loc
                self.location += low * self.cie.code_alignment
            elif high == 0x80:  # offset
                self._set(low, Rule("offset", cursor.uleb() * self.cie.data_alignment))
            elif high == 0xC0:  # restore
                self._restore(low)
            elif op <= 0x04:
                self._move(op, cursor)
            elif 0x0C <= op <= 0x0F or op in (0x12, 0x13):
                self._define_cfa(op, cursor)
            else:
                self._other(op, cursor)
            if self.location > self.target:
                return

    def _move(self, op: int, cursor: Cursor) -> None:
        if op == 0x01:  # set_loc
            place = cursor.pointer(self.cie.pointer_encoding)
            if place is None or place < self.location:
                raise bad("a call frame program goes backwards")
            self.location = place
        elif op:  # advance_loc1, 2, 4; 0 is nop
            self.location += cursor.fixed(1 << op - 2) * self.cie.code_alignment

    def _define_cfa(self, op: int, cursor: Cursor) -> None:
        row = self.row
        if op == 0x0F:  # def_cfa_expression
            row.cfa_expression = cursor.take(cursor.uleb())
            return
        if op in (0x0C, 0x12):  # def_cfa, def_cfa_sf
            row.cfa_register = cursor.uleb()
            row.cfa_expression = None
        elif row.cfa_expression is not None or row.cfa_register is None:
            raise bad("a call frame program changes a CFA that is no register and offset")
        if op == 0x0D:  # def_cfa_register
            row.cfa_register = cursor.uleb()
        elif op in (0x0C, 0x0E):  # def_cfa_offset
            row.cfa_offset = cursor.uleb()
        else:  # the factored ones
            row.cfa_offset = cursor.sleb() * self.cie.data_alignment

    def _other(self, op: int, cursor: Cursor) -> None:
        factor = self.cie.data_alignment
        if op == 0x0A:  # remember_state
            if len(self.remembered) >= _MOST_REMEMBERED:
                raise bad("a call frame program remembers too much")
            self.remembered.append(self.row.copy())
        elif op == 0x0B:  # restore_state; the CFA too, as compilers rely on
            if not self.remembered:
                raise bad("a call frame program restores what it did not remember")
            self.row = self.remembered.pop()
        elif op == 0x2E:  # GNU_args_size
            cursor.uleb()
        else:
            register = cursor.uleb()
            if op == 0x05:  # offset_extended
                rule = Rule("offset", cursor.uleb() * factor)
            elif op == 0x06:  # restore_extended
                self._restore(register)
                return
            elif op == 0x07:
                rule = Rule("undefined")
            elif op == 0x08:
                rule = Rule("same")
            elif op == 0x09:
                rule = Rule("register", cursor.uleb())
            elif op == 0x10:
                rule = Rule("expression", code=cursor.take(cursor.uleb()))
            elif op == 0x11:  # offset_extended_sf
                rule = Rule("offset", cursor.sleb() * factor)
            elif op == 0x14:
                rule = Rule("val_offset", cursor.uleb() * factor)
            elif op == 0x15:  # val_offset_sf
                rule = Rule("val_offset", cursor.sleb() * factor)
            elif op == 0x16:
                rule = Rule("val_expression", code=cursor.take(cursor.uleb()))
            elif op == 0x2F:  # GNU_negative_offset_extended
                rule = Rule("offset", -cursor.uleb() * factor)
            else:
                raise bad(f"a call frame program uses the instruction {op:#x}, which is not supported")
            self._set(register, rule)

    def _set(self, register: int, rule: Rule) -> None:
        if register > _HIGHEST_REGISTER:
            raise bad(f"a call frame program speaks of register {register}")
        self.row.rules[register] = rule

    def _restore(self, register: int) -> None:
        if self.initial is None:
            raise bad("a common information entry restores a register")
        rule = self.initial.rules.get(register)
        if rule is None:
            self.row.rules.pop(register, None)
        else:
            self.row.rules[register] = rule


def row_at(cie: Cie, program: bytes, program_vaddr: int, start: int, target: int) -> Row:
    """The rules at ``target`` of the function that begins at ``start`` (all are link-time addresses)."""
    machine = _Machine(cie, start, start)
    machine.run(cie.program, 0)
    if machine.location != start:
        raise bad("a common information entry advances")
    machine.initial = machine.row.copy()
    machine.target = target
    machine.run(program, program_vaddr)
    return machine.row
