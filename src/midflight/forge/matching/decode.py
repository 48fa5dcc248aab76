"""Compares the code of one function of an object with linked code, instruction by instruction.

Every instruction must be the same, but for what assembler and linker may choose: fields that relocations fill, short or
near jumps, padding, and the linker's relaxations. What the filled fields say is handed back as witnesses.
Sources: AMD64 psABI 4.4 and B.2 (GOTPCRELX), Drepper "ELF Handling For Thread-Local Storage" 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.model import Reference

Form = Literal["address", "slot", "tpoff", "gottpoff", "tlsgd", "tlsld", "dtpoff", "tlsdesc"]


@dataclass(frozen=True, slots=True)
class Witness:
    """What one reference of pre says in run. ``value`` by form: address: of the start of the atom (or the symbol);
    slot, gottpoff, tlsgd, tlsld, tlsdesc: vaddr of the GOT slot; tpoff, dtpoff: the offset of the variable."""

    reference: Reference
    form: Form
    value: int
    branch: bool = False


@dataclass(frozen=True, slots=True)
class Inner:
    """A reference without relocation (the assembler resolved it): offset in pre, relative to the function's start, and
    the address in run."""

    offset: int
    vaddr: int


@dataclass(frozen=True, slots=True)
class Same:
    """Run is this function."""

    size: int
    """Bytes in run, without padding after it."""
    witnesses: tuple[Witness, ...]
    outside: tuple[Inner, ...]
    """References without relocation that leave the function."""
    places: Mapping[int, int]
    """Offset in pre of every instruction (and of the end) to its address in run."""


@dataclass(frozen=True, slots=True)
class Different:
    """Run is not this function: the first difference."""

    offset: int
    pre: str
    run: str

    def describe(self) -> str:
        return f"at +{self.offset:#x} pre has “{self.pre}”, run has “{self.run}”"


_LE_GD = re.compile(rb"\x64\x48\x8b\x04\x25\0\0\0\0\x48\x8d\x80([\s\S]{4})")
_IE_GD = re.compile(rb"\x64\x48\x8b\x04\x25\0\0\0\0\x48\x03\x05([\s\S]{4})")
_LE_LD = re.compile(
    rb"(?:\x66{3,4}\x64\x48\x8b\x04\x25\0\0\0\0|\x64\x48\x8b\x04\x25\0\0\0\0(?:\x0f\x1f\x00|\x0f\x1f\x40\x00))"
)


CALL = x86.Mnemonic.CALL
_LOCK = 0xF0  # Intel SDM volume 2, 2.1.1


def decode(code: bytes, vaddr: int = 0) -> list[x86.Instruction]:
    """All instructions of ``code``; undecodable bytes become INVALID instructions."""
    return list(x86.Decoder(64, code, ip=vaddr))


def is_padding(instruction: x86.Instruction) -> bool:
    return instruction.mnemonic == x86.Mnemonic.NOP


def is_near_branch(instruction: x86.Instruction) -> bool:
    """A direct jump, conditional jump, loop or call."""
    return instruction.op_count > 0 and instruction.op0_kind == x86.OpKind.NEAR_BRANCH64


def text(instruction: x86.Instruction) -> str:
    return str(x86.Formatter(x86.FormatterSyntax.GAS).format(instruction))


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


class _Mismatch(Exception):
    """The instructions at hand differ."""


@dataclass(slots=True)
class _Comparison:
    """One comparison under way: ``at`` and ``position`` are the offsets reached in pre and run."""

    code: bytes
    references: Sequence[Reference]
    run: bytes
    vaddr: int
    at: int = 0
    position: int = 0
    next_reference: int = 0
    witnesses: list[Witness] = field(default_factory=list)
    inner: list[Inner] = field(default_factory=list)
    pre_index: dict[int, int] = field(default_factory=dict)
    run_index: dict[int, int] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    end: int = 0
    tls_relaxed: bool = False
    tables: list[Inner] = field(default_factory=list)
    """Places further on in the function whose address its code loads: jump tables that are put behind the code."""

    def __post_init__(self) -> None:
        self.pre_decoder = x86.Decoder(64, self.code)
        self.run_decoder = x86.Decoder(64, self.run, ip=self.vaddr)

    pre_decoder: x86.Decoder = field(init=False)
    run_decoder: x86.Decoder = field(init=False)

    def _pre(self) -> x86.Instruction:
        self.pre_decoder.position = self.at
        self.pre_decoder.ip = self.at
        return self.pre_decoder.decode()

    def _run(self) -> x86.Instruction:
        self.run_decoder.position = self.position
        self.run_decoder.ip = self.vaddr + self.position
        return self.run_decoder.decode()

    def _inside(self, end: int) -> Sequence[Reference]:
        """References in the pre instruction that ends at ``end``."""
        stop = self.next_reference
        while stop < len(self.references) and self.references[stop].offset < end:
            stop += 1
        return self.references[self.next_reference : stop]

    def compare(self) -> Same | Different:
        index = 0
        while True:
            self._skip_padding(index)
            if self.at >= len(self.code):
                break
            pre, run = self._pre(), self._run()
            if self._is_same_table():
                self.end = self.position = self.position + len(self.code) - self.at
                break
            if self.position >= len(self.run):
                return Different(self.at, text(pre), "the end of the code")
            at = self.at
            self.places[at] = self.vaddr + self.position
            self._note_lock(index)
            try:
                self._step(pre, run)
            except _Mismatch:
                return Different(at, text(pre), text(run))
            self.end = self.position
            index += 1
        self.places[len(self.code)] = self.vaddr + self.end
        self.pre_index.setdefault(len(self.code), index)
        self.run_index.setdefault(self.end, index)
        return self._check_inner()

    def _is_same_table(self) -> bool:
        """Whether the rest is a jump table, which is no instructions, and the same: distances that the assembler knew,
        of places that are as far away in run (clang for Windows)."""
        shift = self.vaddr + self.position - self.at
        begun = any(item.offset == self.at and item.vaddr - item.offset == shift for item in self.tables)
        rest = self.code[self.at :]
        fixed = self.next_reference >= len(self.references) and len(rest) % 4 == 0
        straight = all(where - place == shift for place, where in self.places.items())
        return begun and fixed and straight and self.run[self.position : self.position + len(rest)] == rest

    def _note_lock(self, index: int) -> None:
        """C libraries jump over a lock prefix when they have one thread alone: into the middle of an instruction."""
        if self.code[self.at] == self.run[self.position] == _LOCK:
            self.pre_index[self.at + 1] = self.run_index[self.position + 1] = ~index

    def _skip_padding(self, index: int) -> None:
        """Go over alignment on both sides; every place in it means the instruction after it."""
        self.pre_index[self.at] = index
        self.run_index[self.position] = index
        while self.at < len(self.code):
            pre = self._pre()
            if not is_padding(pre) or self._inside(self.at + pre.len):
                break
            self.places[self.at] = self.vaddr + self.position
            self.at += pre.len
            self.pre_index[self.at] = index
        while self.at < len(self.code) and self.position < len(self.run):
            run = self._run()
            if not is_padding(run):
                break
            self.position += run.len
            self.run_index[self.position] = index

    def _step(self, pre: x86.Instruction, run: x86.Instruction) -> None:
        references = self._inside(self.at + pre.len)
        if references and self._thread_local_sequence(references[0]):
            return
        if not references:
            self._without_references(pre, run)
        elif pre.len == run.len and self._equal_outside(references, pre.len):
            for reference in references:
                self._filled(reference, pre, run)
        elif len(references) == 1:
            self._relaxed(references[0], pre, run)
        else:
            raise _Mismatch
        self.next_reference += len(references)
        self.at += pre.len
        self.position += run.len

    def _bytes(self, pre: x86.Instruction, run: x86.Instruction) -> tuple[bytes, bytes]:
        return self.code[self.at : self.at + pre.len], self.run[self.position : self.position + run.len]

    def _equal_outside(self, references: Sequence[Reference], size: int) -> bool:
        mine = bytearray(self.code[self.at : self.at + size])
        theirs = bytearray(self.run[self.position : self.position + size])
        for reference in references:
            start, width = reference.offset - self.at, r.FIELD_SIZE.get(reference.type, 0)
            mine[start : start + width] = theirs[start : start + width] = bytes(width)
        return mine == theirs

    def _without_references(self, pre: x86.Instruction, run: x86.Instruction) -> None:
        if is_near_branch(pre):
            same_kind = is_near_branch(run) and pre.mnemonic == run.mnemonic
            if not same_kind or pre.has_repne_prefix != run.has_repne_prefix:
                raise _Mismatch
            self.inner.append(Inner(pre.near_branch_target, run.near_branch_target))
            return
        mine, theirs = self._bytes(pre, run)
        if pre.is_ip_rel_memory_operand:
            at = self.pre_decoder.get_constant_offsets(pre).displacement_offset
            mine, theirs = mine[:at] + mine[at + 4 :], theirs[:at] + theirs[at + 4 :]
            if mine == theirs:
                self.inner.append(Inner(_wrap(pre.ip_rel_memory_address), run.ip_rel_memory_address))
                if pre.mnemonic == x86.Mnemonic.LEA and self.at < self.inner[-1].offset < len(self.code):
                    self.tables.append(self.inner[-1])
        if mine != theirs:
            raise _Mismatch

    def _filled(self, reference: Reference, pre: x86.Instruction, run: x86.Instruction) -> None:
        """The same instruction: read the field."""
        kind = reference.type
        start = self.position + reference.offset - self.at
        raw = self.run[start : start + r.FIELD_SIZE.get(kind, 0)]
        here = self.vaddr + start
        branch = is_near_branch(pre)
        form: Form
        if kind in (r.PC32, r.PLT32, r.GOTPC32, r.PC64):
            form, value = "address", _signed(raw) + here - reference.addend
        elif kind in (r.R_32, r.RVA32):
            form, value = "address", int.from_bytes(raw, "little") - reference.addend
        elif kind in (r.R_32S, r.R_64):
            form, value = "address", _signed(raw) - reference.addend
        elif kind in r.GOT_SLOT:
            form, value = "slot", _signed(raw) + here - reference.addend
        elif kind in r.TLS_SLOT:
            forms: dict[int, Form] = {
                r.GOTTPOFF: "gottpoff",
                r.TLSGD: "tlsgd",
                r.TLSLD: "tlsld",
                r.GOTPC32_TLSDESC: "tlsdesc",
            }
            form, value = forms[kind], _signed(raw) + here - reference.addend
        elif kind in (r.TPOFF32, r.TPOFF64):
            form, value = "tpoff", _signed(raw) - reference.addend
        elif kind in (r.DTPOFF32, r.DTPOFF64):
            form, value = ("tpoff" if self.tls_relaxed else "dtpoff"), _signed(raw) - reference.addend
        elif kind in r.MARKS:
            return
        else:
            raise _Mismatch
        self.witnesses.append(Witness(reference, form, value, branch))

    def _relaxed(self, reference: Reference, pre: x86.Instruction, run: x86.Instruction) -> None:
        """Another instruction of the same effect, that assembler or linker chose."""
        # What the field would mean if it were the address itself: S = meant - (A + distance to the instruction's end).
        shift = reference.addend + self.at + pre.len - reference.offset
        if is_near_branch(pre) and reference.type in (r.PC32, r.PLT32):
            if not is_near_branch(run) or pre.mnemonic != run.mnemonic:
                raise _Mismatch
            self.witnesses.append(Witness(reference, "address", run.near_branch_target - shift, True))
        elif reference.type in r.GOT_SLOT and pre.is_ip_rel_memory_operand:
            self._relaxed_got(reference, pre, run, shift)
        elif reference.type in (r.GOTTPOFF, r.GOTPC32_TLSDESC) and pre.is_ip_rel_memory_operand:
            self._relaxed_tls(reference, pre, run)
        else:
            raise _Mismatch

    def _relaxed_got(self, reference: Reference, pre: x86.Instruction, run: x86.Instruction, shift: int) -> None:
        m = x86.Mnemonic
        if pre.mnemonic in (m.CALL, m.JMP):  # call *foo@GOTPCREL(%rip) -> addr32 call foo; jmp * -> jmp foo; nop
            if not is_near_branch(run) or run.mnemonic != pre.mnemonic:
                raise _Mismatch
            self.witnesses.append(Witness(reference, "address", run.near_branch_target - shift, True))
            return
        register = pre.op0_register if pre.op0_kind == x86.OpKind.REGISTER else pre.op1_register
        if run.op_count < 2 or run.op0_kind != x86.OpKind.REGISTER or not _same_register(run.op0_register, register):
            raise _Mismatch
        if pre.mnemonic == m.MOV and run.mnemonic == m.LEA and run.is_ip_rel_memory_operand:
            value = run.ip_rel_memory_address
        elif run.mnemonic == pre.mnemonic and run.op1_kind in _IMMEDIATES:
            value = _signed(self.run[self.position + run.len - 4 : self.position + run.len])
        else:
            raise _Mismatch
        self.witnesses.append(Witness(reference, "address", value - shift))

    def _relaxed_tls(self, reference: Reference, pre: x86.Instruction, run: x86.Instruction) -> None:
        m = x86.Mnemonic
        register = pre.op0_register
        if run.op_count < 2 or run.op0_kind != x86.OpKind.REGISTER or run.op0_register != register:
            raise _Mismatch
        last = _signed(self.run[self.position + run.len - 4 : self.position + run.len])
        into = pre.mnemonic in (m.MOV, m.LEA)
        if into and run.mnemonic == m.MOV and run.op1_kind in _IMMEDIATES:
            form: Form = "tpoff"
        elif pre.mnemonic == m.ADD and (
            (run.mnemonic == m.ADD and run.op1_kind in _IMMEDIATES)
            or (
                run.mnemonic == m.LEA
                and run.memory_base == register
                and run.memory_index == x86.Register.NONE
                and run.memory_displ_size == 8
            )
        ):
            form = "tpoff"
        elif pre.mnemonic == m.LEA and run.mnemonic == m.MOV and run.is_ip_rel_memory_operand:
            form, last = "gottpoff", run.ip_rel_memory_address
        else:
            raise _Mismatch
        self.witnesses.append(Witness(reference, form, last))

    def _thread_local_sequence(self, reference: Reference) -> bool:
        """Dynamic sequences that the linker made initial or local exec: several instructions at once."""
        if reference.type == r.TLSDESC_CALL:
            # call *(%rax) became two bytes of padding, which were skipped already.
            if self.run[self.position : self.position + 2] != b"\xff\x10":
                self.at += 2
                self.next_reference += 1
                return True
            return False
        if reference.type not in (r.TLSGD, r.TLSLD):
            return False
        general = reference.type == r.TLSGD
        size = 16
        if not general:
            size = 12 if self.code[self.at + 7 : self.at + 8] == b"\xe8" else 13
        following = self.run[self.position : self.position + 20]
        form: Form = "tpoff"
        if general:
            found = _LE_GD.match(following)
            if found is None:
                form, found = "gottpoff", _IE_GD.match(following)
        else:
            found = _LE_LD.match(following)
        if found is None:
            return False
        if general:
            value = _signed(found[1])
            if form == "gottpoff":
                value += self.vaddr + self.position + 16
            self.witnesses.append(Witness(reference, form, value))
        else:
            self.tls_relaxed = True
        self.next_reference += len(self._inside(self.at + size))
        self.at += size
        self.position += found.end()
        return True

    def _check_inner(self) -> Same | Different:
        outside = []
        for item in self.inner:
            offset = _wrap(item.offset)
            if not 0 <= offset <= len(self.code):
                outside.append(Inner(offset, item.vaddr))
            elif self.pre_index.get(offset) is None or self.pre_index[offset] != self.run_index.get(
                item.vaddr - self.vaddr
            ):
                return Different(offset, f"a jump to +{offset:#x}", f"a jump to {item.vaddr - self.vaddr:+#x}")
        return Same(self.end, tuple(self.witnesses), tuple(outside), self.places)


_IMMEDIATES = (x86.OpKind.IMMEDIATE32, x86.OpKind.IMMEDIATE32TO64)


def _same_register(one: int, other: int) -> bool:
    """mov $imm32, %r32 may stand for a 64-bit load of a non-negative address."""
    full = x86.RegisterExt.full_register
    return one == other or full(one) == full(other)  # type: ignore[arg-type]


def _wrap(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def compare_bytes(code: bytes, run: bytes, vaddr: int) -> Same | None:
    """Tables that assembler code keeps between its functions are no instructions: without relocations, the same bytes
    are the same table."""
    if run[: len(code)] != code:
        return None
    return Same(len(code), (), (), {offset: vaddr + offset for offset in range(len(code) + 1)})


def compare_code(code: bytes, references: Sequence[Reference], run: bytes, vaddr: int) -> Same | Different:
    """Whether linked code ``run`` at ``vaddr`` is the function ``code`` of an object; it may go on after it.

    ``references`` are its relocations in order of offset.
    """
    return _Comparison(code, references, run, vaddr).compare()
