"""An oracle for payloads: the new code must mean what the linker made of the fixed build, instruction by instruction.

The payload is bound as the engine would bind it, the image taken at address 0. Every instruction of every new function
must then be that of the same function in the fixed image, and where a field holds an address, both must mean the same:
the same symbol with the same offset, the same import, or the same bytes where it is an unnamed constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import iced_x86 as x86

from midflight.image.pe import PeFile
from midflight.patch.manifest import Target

BASE = 0x4000_0000
"""Where the payload is put; imports are at IMPORTS + 16 times their index."""
IMPORTS = 0x7000_0000
_UNNAMED = (".rdata", ".data", ".bss", ".text", ".L", ".str", "reltable.")
CONSTANT = 16
"""Bytes of an unnamed constant that are compared, at most."""


class Bound:
    """A payload in its place beside the image."""

    def __init__(self, target: Target, payload: bytes, run: PeFile) -> None:
        self.target, self.run = target, run
        self.memory = bytearray(max(s.offset + s.size for s in target.segments))
        for segment in target.segments:
            part = payload[segment.file_offset : segment.file_offset + segment.file_size]
            self.memory[segment.offset : segment.offset + len(part)] = part
        for item in target.relocations:
            value = item.target + item.addend
            if item.kind == "payload":
                value += BASE
            elif item.kind == "import":
                value = IMPORTS + 16 * item.target + item.addend
            if item.form == "pc32":
                value -= BASE + item.offset
            width = 8 if item.form == "abs64" else 4
            self.memory[item.offset : item.offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

    def read(self, address: int, size: int) -> bytes:
        if address >= BASE:
            return bytes(self.memory[address - BASE : address - BASE + size])
        return read(self.run, address, size)

    def meaning(self, address: int, code: bool) -> object:
        if address >= IMPORTS:
            return "import", self.target.imports[(address - IMPORTS) // 16].name
        if address < BASE:
            return meaning(self.run, address, self.read, code)
        offset = address - BASE
        for symbol in self.target.symbols:
            if symbol.offset <= offset < symbol.offset + symbol.size:
                return "symbol", symbol.name, offset - symbol.offset
        stub = self._stub(offset)
        if stub is not None:
            return self.meaning(stub, True)
        slot = (int.from_bytes(self.read(address, 8), "little") - IMPORTS) // 16
        if 0 <= slot < len(self.target.imports):
            return "slot", self.target.imports[slot].name
        return "constant", self.read(address, CONSTANT)

    def _stub(self, offset: int) -> int | None:
        code = bytes(self.memory[offset : offset + 10])
        if code[:6] != b"\xf3\x0f\x1e\xfa\xff\x25":
            return None
        slot = offset + 10 + int.from_bytes(code[6:], "little", signed=True)
        return int.from_bytes(self.memory[slot : slot + 8], "little")


def read(image: PeFile, address: int, size: int) -> bytes:
    segment = image.segment_at(address)
    assert segment is not None, hex(address)
    return image.read_vaddr(address, min(size, segment.address + segment.memory_size - address))


def meaning(image: PeFile, address: int, reader: object, code: bool) -> object:
    """What an address of an image means: an import, a named thing and an offset in it, or a constant."""
    stub = next((p for p in image.plt_entries if p.vaddr == address and p.symbol is not None), None)
    if stub is not None and stub.symbol is not None:
        return "import", stub.symbol.name
    slot = next((g for g in image.got_entries if g.vaddr == address), None)
    if slot is not None:
        return "slot", slot.symbol.name
    best = None
    for symbol in image.symbols():
        named = symbol.name.strip() and symbol.section is not None and symbol.type in ("func", "object")
        if not named or symbol.value > address or symbol.name.startswith(_UNNAMED):
            continue
        if best is None or symbol.value > best.value:
            best = symbol
    section = next((s for s in image.sections if s.address <= address < s.address + max(s.size, 1)), None)
    known = best is not None and section is not None and best.section == section.index
    if best is not None and known and (code or address - best.value < 64):
        return "symbol", best.name, address - best.value
    return "constant", read(image, address, CONSTANT)


def function_of(image: PeFile, name: str) -> tuple[int, int]:
    symbol = image.symbol(name)
    assert symbol is not None and symbol.size, name
    return symbol.value, symbol.size


def differences(target: Target, payload: bytes, run: Path, post: Path) -> Iterator[str]:
    """Every place where a new function does not mean what the fixed image does."""
    with PeFile.open(run) as running, PeFile.open(post) as fixed:
        bound = Bound(target, payload, running)
        for function in target.functions:
            start, size = function_of(fixed, function.name)
            size = max(size, function.new_size)  # with the handlers of its exceptions, which stand behind it
            code = bytes(bound.memory[function.new_offset : function.new_offset + function.new_size])
            mine = list(x86.Decoder(64, code, ip=BASE + function.new_offset))
            theirs = list(x86.Decoder(64, fixed.read_vaddr(start, size), ip=start))
            mine = [i for i in mine if i.mnemonic != x86.Mnemonic.NOP]
            theirs = [i for i in theirs if i.mnemonic != x86.Mnemonic.NOP]
            if [i.mnemonic for i in mine] != [i.mnemonic for i in theirs]:
                yield f"{function.name}: other instructions"
                continue
            index = ({i.ip: n for n, i in enumerate(mine)}, {i.ip: n for n, i in enumerate(theirs)})
            for a, b in zip(mine, theirs, strict=True):
                yield from _instruction(function.name, a, b, index, bound, fixed)


def _instruction(
    name: str,
    mine: x86.Instruction,
    theirs: x86.Instruction,
    index: tuple[dict[int, int], dict[int, int]],
    bound: Bound,
    fixed: PeFile,
) -> Iterator[str]:
    where = f"{name}+{mine.ip - BASE:#x} {mine}"
    if mine.op0_kind == theirs.op0_kind == x86.OpKind.NEAR_BRANCH64:
        one, other = mine.near_branch_target, theirs.near_branch_target
        if one in index[0] or other in index[1]:
            if index[0].get(one) != index[1].get(other):
                yield f"{where}: jumps elsewhere in the function"
            return
        code = True
    elif mine.is_ip_rel_memory_operand and theirs.is_ip_rel_memory_operand:
        one, other, code = mine.ip_rel_memory_address, theirs.ip_rel_memory_address, False
    else:
        if str(mine) != str(theirs):
            yield f"{where}: is {theirs} in the fixed image"
        return
    meant, expected = bound.meaning(one, code), meaning(fixed, other, None, code)
    if meant == expected or _same_constant(mine, one, other, bound, fixed):
        return
    table = mine.mnemonic == x86.Mnemonic.LEA
    if table and (_same_table(one, other, index, bound, fixed) or _same_texts(one, other, bound, fixed)):
        return
    yield f"{where}: means {meant}, and {expected} in the fixed image"


def _same_table(
    one: int, other: int, index: tuple[dict[int, int], dict[int, int]], bound: Bound, fixed: PeFile
) -> bool:
    """Two jump tables: distances from the table to the same instructions of the function."""
    entries = 0
    while entries < 64:
        a = one + int.from_bytes(bound.read(one + 4 * entries, 4), "little", signed=True)
        b = other + int.from_bytes(read(fixed, other + 4 * entries, 4), "little", signed=True)
        if a not in index[0] or index[0][a] != index[1].get(b):
            break
        entries += 1
    return entries >= 5


def _same_texts(one: int, other: int, bound: Bound, fixed: PeFile) -> bool:
    """Two tables of distances from the table to the same texts (three at least)."""
    for entry in range(3):
        a = one + int.from_bytes(bound.read(one + 4 * entry, 4), "little", signed=True)
        b = other + int.from_bytes(read(fixed, other + 4 * entry, 4), "little", signed=True)
        if fixed.segment_at(b) is None or not (BASE <= a < BASE + len(bound.memory) or bound.run.segment_at(a)):
            return False
        text = read(fixed, b, 64).split(b"\0")[0]
        if len(text) < 2 or bound.read(a, 64).split(b"\0")[0] != text:
            return False
    return True


def _same_constant(instruction: x86.Instruction, one: int, other: int, bound: Bound, fixed: PeFile) -> bool:
    """The same text, or the same bytes as far as the instruction reads."""
    if instruction.mnemonic == x86.Mnemonic.LEA:
        a, b = bound.read(one, 200).split(b"\0")[0], read(fixed, other, 200).split(b"\0")[0]
        return a == b and len(a) > 1
    size = x86.MemorySizeExt.size(instruction.memory_size)
    writable = fixed.segment_at(other)
    return (
        bool(size)
        and writable is not None
        and not writable.writable
        and bound.read(one, size) == read(fixed, other, size)
    )
