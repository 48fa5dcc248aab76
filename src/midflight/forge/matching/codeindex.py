"""Finds functions by how they begin: an index over all code of the running image, and one over the objects.

A print is the beginning of a function as a few tokens that assembler and linker cannot change: short and near jumps,
addresses and relaxed forms give the same token. Equal prints only propose; the comparison of every byte decides.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.matching import decode
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom, Reference
from midflight.image.binary import is_object, open_object

Key = tuple[Path, str]
Token = int | bytes | tuple[int, int]
Print = tuple[Token, ...]

_TOKENS = 14
_LOAD = -1
_SCAN_BYTES = 48
_SCAN_FIXED = 10
"""A search by content needs this many bytes that no relocation fills, or it would find half the image."""
_SCAN_MOST = 4096
_WINDOW = 256
"""No sequence of so few tokens is longer in bytes."""
_FS = x86.Register.FS
_IMM32 = (x86.OpKind.IMMEDIATE32, x86.OpKind.IMMEDIATE32TO64)


def tokens(code: bytes, references: Sequence[Reference], low: int, high: int) -> Print:
    """The first tokens of a function.

    Args:
        code: its bytes.
        references: its relocations by offset, for code of an object; () for linked code.
        low, high: addresses of a position-dependent image, whose code may hold them as constants; 0, 0 for others.
    """
    found: list[Token] = []
    at = 0
    # The window may cut the last instruction, but no earlier one.
    decoder = x86.Decoder(64, code[:_WINDOW])
    for instruction in decoder:
        end = instruction.ip + instruction.len
        inside = []
        while at < len(references) and references[at].offset < end:
            inside.append(references[at])
            at += 1
        if any(item.type in _UNSTABLE for item in inside) or instruction.mnemonic == x86.Mnemonic.INVALID:
            break
        if instruction.mnemonic == x86.Mnemonic.NOP and not inside:
            continue
        token = _token(instruction, code, decoder, inside, low, high)
        if token is None:
            break
        found.append(token)
        if len(found) == _TOKENS:
            break
    return tuple(found)


_UNSTABLE = r.TLS_SLOT | {r.TLSDESC_CALL, r.DTPOFF32, r.DTPOFF64}


def _token(
    instruction: x86.Instruction,
    code: bytes,
    decoder: x86.Decoder,
    inside: Sequence[Reference],
    low: int,
    high: int,
) -> Token | None:
    mnemonic = instruction.mnemonic
    if decode.is_near_branch(instruction):
        return mnemonic
    start, end = instruction.ip, instruction.ip + instruction.len
    if instruction.is_ip_rel_memory_operand:
        if mnemonic in (x86.Mnemonic.CALL, x86.Mnemonic.JMP):
            return mnemonic
        return _with_register(instruction)
    thread = instruction.segment_prefix == _FS or instruction.memory_segment == _FS
    if not thread and any(item.type in (r.TPOFF32, r.TPOFF64) for item in inside):
        return None
    raw = code[start:end]
    if not (thread or inside or high):
        return raw
    if high and instruction.op_count == 2 and instruction.op1_kind in _IMM32:
        value = instruction.immediate32
        if (low <= value < high or inside) and instruction.op0_kind == x86.OpKind.REGISTER:
            return _with_register(instruction)
    fields = [(item.offset - start, r.FIELD_SIZE.get(item.type, 0)) for item in inside]
    if thread or high:
        offsets = decoder.get_constant_offsets(instruction)
        if offsets.has_displacement and offsets.displacement_size == 4:
            displacement = instruction.memory_displacement & 0xFFFFFFFF
            if thread or low <= displacement < high:
                fields.append((offsets.displacement_offset, 4))
        if offsets.has_immediate and offsets.immediate_size == 4 and low <= instruction.immediate32 < high:
            fields.append((offsets.immediate_offset, 4))
    masked = bytearray(raw)
    for offset, width in fields:
        masked[offset : offset + width] = bytes(width)
    return bytes(masked)


def _with_register(instruction: x86.Instruction) -> tuple[int, int]:
    """A load of or from a fixed address: what remains when the linker turns one form into another."""
    m = x86.Mnemonic
    mnemonic = _LOAD if instruction.mnemonic in (m.MOV, m.LEA) else instruction.mnemonic
    first = instruction.op0_kind == x86.OpKind.REGISTER
    register = instruction.op0_register if first else x86.Register.NONE
    if instruction.op_count > 1 and not first and instruction.op1_kind == x86.OpKind.REGISTER:
        register = instruction.op1_register
    if register == x86.Register.NONE:
        return (mnemonic, 0)
    return (mnemonic, x86.RegisterExt.full_register(register))


class CodeIndex:
    """All functions of the running image, by their prints."""

    def __init__(self, run: RunImage) -> None:
        self.run = run
        loads = [s for s in run.elf.segments if s.type == 1]
        fixed = run.elf.kind == "executable" and not run.elf.is_pie and bool(loads)
        # Addends may lead a little before or behind.
        self.low = min(s.address for s in loads) - 0x1000 if fixed else 0
        self.high = max(s.address + s.memory_size for s in loads) + 0x1000 if fixed else 0
        self._at: dict[int, Print] = {}
        self._by_length: dict[int, dict[Print, list[int]]] = {}

    def print_of(self, atom: Atom) -> Print:
        # Of a function with handlers of exceptions behind it, run knows the end of each part.
        data = atom.data[: atom.stretches[0].end] if len(atom.stretches) > 1 else atom.data
        return tokens(data, atom.references, self.low, self.high)

    def print_at(self, vaddr: int) -> Print:
        if vaddr not in self._at:
            end = self.run.function_end(vaddr)
            size = _WINDOW if end is None else min(end - vaddr, _WINDOW)
            self._at[vaddr] = tokens(self.run.code(vaddr, size), (), self.low, self.high)
        return self._at[vaddr]

    def candidates(self, atom: Atom) -> Sequence[int] | None:
        """Every place in the image where this function could begin; None when they cannot all be told."""
        mark = self.print_of(atom)
        if not mark:
            return None
        if len(mark) not in self._by_length:
            table: dict[Print, list[int]] = {}
            for start in self.run.function_starts:
                table.setdefault(self.print_at(start)[: len(mark)], []).append(start)
            self._by_length[len(mark)] = table
        found = self._by_length[len(mark)].get(mark, [])
        elsewhere = self._outside(atom)
        return None if elsewhere is None else [*found, *elsewhere]

    # --- code that no unwind information and no symbol tells of ------------------------------------------------------

    @cached_property
    def _unknown(self) -> Sequence[tuple[int, bytes]]:
        """Stretches of code outside of all known functions, long enough to hold one; padding left out."""
        found = []
        for vaddr, code in self.run.code_sections:
            at, end = vaddr, vaddr + len(code)
            for start, stop in [*self.run.extents, (end, end)]:
                if start > at and at < end:
                    piece = code[at - vaddr : min(start, end) - vaddr]
                    if piece.strip(b"\0\x90\xcc") and not _is_filling(piece):
                        found.append((at, piece))
                at = max(at, stop)
        return found

    def _outside(self, atom: Atom) -> Sequence[int] | None:
        if not self._unknown:
            return ()
        pattern = signature(atom)
        if pattern is None:
            window = anywhere(atom)
            if window is not None and not any(window.search(code) for _, code in self._unknown):
                return ()
            return None  # too little to look for, in code whose functions nobody knows
        hits = [vaddr + hit.start() for vaddr, code in self._unknown for hit in pattern.finditer(code)]
        return hits if len(hits) <= _SCAN_MOST else None

    # --- order -------------------------------------------------------------------------------------------------------

    def after(self, end: int) -> int | None:
        """The function that begins next after one that ends at ``end``, with nothing but padding between them."""
        starts = self.run.function_starts
        position = bisect.bisect_left(starts, end)
        if position == len(starts) or starts[position] - end > 64:
            return None
        start = starts[position]
        return start if _is_filling(self.run.code(end, start - end)) else None

    def before(self, start: int) -> int | None:
        """The function that ends right before ``start``."""
        starts = self.run.function_starts
        position = bisect.bisect_left(starts, start) - 1
        if position < 0:
            return None
        end = self.run.function_end(starts[position])
        if end is None or end > start or start - end > 64:
            return None
        return starts[position] if _is_filling(self.run.code(end, start - end)) else None


def _is_filling(code: bytes) -> bool:
    return not code.strip(b"\0\x90\xcc") or all(map(decode.is_padding, decode.decode(code)))


class ObjectIndex:
    """The functions of all objects, by their prints; objects that nobody has read are searched as bytes."""

    def __init__(self, inputs: Inputs, code: CodeIndex) -> None:
        self.inputs = inputs
        self.code = code
        self._prints: dict[Print, list[Key]] = {}
        self._indexed: set[Path] = set()

    def fitting(self, vaddr: int, atom: Atom) -> Iterable[Key] | None:
        """Functions of any object that begin as the running image does at ``vaddr``, where ``atom`` fits; None when it
        is too short to look for."""
        pattern = anywhere(atom)
        unread = [path for path in self.inputs if not self.inputs.is_read(path)]
        if pattern is None and unread:
            return None
        if pattern is not None:
            for path in unread:
                if any(pattern.search(code) for code in self._raw[path]):
                    _ = self.inputs[path]
        self._index()
        mark = self.code.print_at(vaddr)
        return [key for length in range(len(mark) + 1) for key in self._prints.get(mark[:length], ())]

    def _index(self) -> None:
        for path in self.inputs:
            if self.inputs.is_read(path) and path not in self._indexed:
                self._indexed.add(path)
                for key, atom in self.inputs[path].atoms.items():
                    if atom.kind == "function":
                        self._prints.setdefault(self.code.print_of(atom), []).append((path, key))

    @cached_property
    def _raw(self) -> Mapping[Path, Sequence[bytes]]:
        return {path: list(_code_of(self.inputs.file(path))) for path in self.inputs}


def _code_of(file: Path) -> Iterator[bytes]:
    if not is_object(file):
        return
    with open_object(file) as elf:
        for section in elf.sections:
            if section.flags & 4 and section.flags & 2 and section.size:
                yield elf.section_data(section)


def signature(atom: Atom) -> re.Pattern[bytes] | None:
    """The beginning of a function as a pattern: up to the first instruction that may be of another length in run.

    None when too little of it is fixed.
    """
    parts: list[bytes] = []
    fixed = 0
    references = {reference.offset: reference for reference in atom.references}
    for instruction in decode.decode(atom.data[: _SCAN_BYTES + 16]):
        start, end = instruction.ip, instruction.ip + instruction.len
        inside = [item for offset, item in references.items() if start <= offset < end]
        relaxable = any(item.type in r.GOT_SLOT or item.type in r.TLS_SLOT for item in inside)
        if end > len(atom.data) or start >= _SCAN_BYTES or relaxable or decode.is_padding(instruction):
            break
        if decode.is_near_branch(instruction) and instruction.mnemonic != decode.CALL:
            either = _jump(atom.data[start:end])
            if either is None:
                break
            parts.append(either)
            fixed += 1
            continue
        raw = bytearray(atom.data[start:end])
        mask = bytearray(len(raw))
        for item in inside:
            width = r.FIELD_SIZE.get(item.type, 0)
            mask[item.offset - start : item.offset - start + width] = b"\1" * width
        if not inside and (instruction.is_ip_rel_memory_operand or decode.is_near_branch(instruction)):
            mask[-4:] = b"\1" * 4
        parts += [b"[\\s\\S]" if hidden else re.escape(bytes([byte])) for byte, hidden in zip(raw, mask, strict=True)]
        fixed += mask.count(0)
    return re.compile(b"".join(parts)) if fixed >= _SCAN_FIXED else None


def anywhere(atom: Atom) -> re.Pattern[bytes] | None:
    """The first stretch of a function of which enough is fixed, as a pattern; None when there is none."""
    for instruction in decode.decode(atom.data):
        start = instruction.ip
        if len(atom.data) - start < _SCAN_FIXED:
            break
        later = tuple(replace(i, offset=i.offset - start) for i in atom.references if i.offset >= start)
        pattern = signature(replace(atom, data=atom.data[start:], references=later))
        if pattern is not None:
            return pattern
    return None


def _jump(code: bytes) -> bytes | None:
    """A jump, short or near, as a pattern (Intel SDM volume 2: 7x cb, 0F 8x cd; EB cb, E9 cd)."""
    if code[0] in (0xEB, 0xE9):
        return rb"(?:\xeb[\s\S]|\xe9[\s\S]{4})"
    condition = code[0] if code[0] & 0xF0 == 0x70 else code[1] if code[0] == 0x0F and code[1] & 0xF0 == 0x80 else None
    if condition is None:
        return None
    short, near = re.escape(bytes([0x70 | condition & 0xF])), re.escape(bytes([0x80 | condition & 0xF]))
    return rb"(?:" + short + rb"[\s\S]|\x0f" + near + rb"[\s\S]{4})"
