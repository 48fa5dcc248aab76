"""The unwinder of 64-bit Windows, on functions and stacks made by hand: each prolog and epilog instruction by
instruction, against what the processor would really have done.
"""

from __future__ import annotations

import struct

import pytest

from midflight.errors import ImageError
from midflight.image.seh import Function, FunctionTable, Module, step
from midflight.image.unwind import RIP, walk

RSP, RBP, RBX, RSI, RDI = 7, 6, 3, 4, 5  # DWARF numbers
BASE = 0x140000000
TOP = 0x20000
RETURN = BASE + 0x9000
UNWIND = 0x5000


class Memory:
    """An image with one function at 0x1000, and a stack that instructions are carried out on."""

    def __init__(self, code: bytes, unwind: bytes, chained: bytes = b"") -> None:
        self.image = {0x1000: code.ljust(256, b"\xcc"), UNWIND: unwind.ljust(64, b"\0"), UNWIND + 64: chained}
        self.words: dict[int, int] = {TOP: RETURN}
        self.registers = {n: 0x1111 * (n + 1) for n in range(16)} | {RSP: TOP}
        self.callers = dict(self.registers)
        rows = [Function(0x1000, 0x1000 + len(code), UNWIND)]
        self.table = FunctionTable(rows, self.read)

    def read(self, at: int, size: int) -> bytes:
        for start, data in self.image.items():
            if start <= at < start + len(data):
                return data[at - start : at - start + size]
        return b""

    def word(self, address: int) -> int:
        return self.words[address]

    def push(self, register: int) -> None:
        self.registers[RSP] -= 8
        self.words[self.registers[RSP]] = self.registers[register]

    def pop(self, register: int) -> None:
        self.registers[register] = self.words[self.registers[RSP]]
        self.registers[RSP] += 8

    def check(self, offset: int) -> None:
        """At this offset of the function, the caller's registers come out."""
        pc = BASE + 0x1000 + offset
        found = step(self.table, 0x1000 + offset, self.registers | {RIP: pc}, self.word, BASE)
        assert found.caller is not None, offset
        assert found.caller[RIP] == RETURN and found.caller[RSP] == TOP + 8, hex(offset)
        for register in (RBX, RBP, RSI, RDI, 12, 13, 14, 15):
            assert found.caller[register] == self.callers[register], (hex(offset), register)


def info(prolog: int, codes: list[int], frame: int = 0, version: int = 1, flags: int = 0) -> bytes:
    """UNWIND_INFO; ``codes`` are slots of 16 bits."""
    return struct.pack("<BBBB", version | flags << 3, prolog, len(codes), frame) + struct.pack(
        f"<{len(codes)}H", *codes
    )


def slot(offset: int, operation: int, extra: int) -> int:
    return offset | operation << 8 | extra << 12


def test_pushes_and_an_allocation_at_every_instruction() -> None:
    # push rbx; push r12; sub rsp, 0x28; nop; add rsp, 0x28; pop r12; pop rbx; ret
    code = b"\x53" + b"\x41\x54" + b"\x48\x83\xec\x28" + b"\x90" + b"\x48\x83\xc4\x28" + b"\x41\x5c" + b"\x5b" + b"\xc3"
    memory = Memory(code, info(7, [slot(7, 2, 4), slot(3, 0, 12), slot(1, 0, 3)]))
    memory.check(0)
    memory.push(RBX)
    memory.check(1)
    memory.push(12)
    memory.check(3)
    memory.registers[RSP] -= 0x28
    memory.registers[RBX] = memory.registers[12] = 0xDEAD
    memory.check(7)
    memory.check(8)  # the epilog begins: it is simulated
    memory.registers[RSP] += 0x28
    memory.check(12)
    memory.pop(12)
    memory.check(14)
    memory.pop(RBX)
    memory.check(15)


def test_a_frame_register_with_saved_registers_and_a_large_frame() -> None:
    # push rbp; sub rsp, 0x1000; lea rbp, [rsp+0x80]; mov [rsp+0x1008], rsi (as saved); nop ...; lea rsp, [rbp+0xf80]
    code = (
        b"\x55" + b"\x48\x81\xec\x00\x10\0\0" + b"\x48\x8d\xac\x24\x80\0\0\0" + b"\x48\x89\xb4\x24\x08\x02\0\0"
        + b"\x90\x90" + b"\x48\x8d\xa5\x80\x0f\x00\x00" + b"\x5d" + b"\xc3"
    )  # fmt: skip
    codes = [slot(24, 4, 6), 0x208 // 8, slot(16, 3, 0), slot(8, 1, 0), 0x1000 // 8, slot(1, 0, 5)]
    memory = Memory(code, info(24, codes, frame=5 | 8 << 4))
    memory.check(0)
    memory.push(RBP)
    memory.check(1)
    memory.registers[RSP] -= 0x1000
    memory.check(8)
    memory.registers[RBP] = memory.registers[RSP] + 0x80
    memory.check(16)
    memory.words[memory.registers[RSP] + 0x208] = memory.registers[RSI]
    memory.registers[RSI] = 0xDEAD
    memory.check(24)
    memory.registers[RSP] -= 0x300  # alloca: only the frame register knows the frame now
    memory.check(25)
    # rsi is restored by code before the epilog; then the frame is given up
    memory.registers[RSI] = memory.callers[RSI]
    memory.check(26)
    memory.registers[RSP] = memory.registers[RBP] + 0xF80
    memory.check(33)
    memory.pop(RBP)
    memory.check(34)


def test_a_leaf_function_has_no_entry() -> None:
    memory = Memory(b"\x90\xc3", info(0, []))
    found = step(memory.table, 0x2000, memory.registers | {RIP: BASE + 0x2000}, memory.word, BASE)
    assert found.caller is not None and found.caller[RIP] == RETURN and found.caller[RSP] == TOP + 8


def test_chained_information_goes_on_in_its_parent() -> None:
    parent = info(5, [slot(5, 2, 3), slot(1, 0, 3)])
    chain = struct.pack("<III", 0x1000, 0x1100, UNWIND + 64)
    memory = Memory(b"\x90" * 32, info(0, [], flags=4) + chain, parent)
    memory.push(RBX)
    memory.registers[RSP] -= 0x20
    memory.registers[RBX] = 0xDEAD
    memory.check(3)


def test_a_jump_that_may_be_an_epilog_is_not_guessed_at() -> None:
    # sub rsp, 0x28; jmp somewhere else: a tail call never comes like this, a part moved elsewhere does
    memory = Memory(b"\x48\x83\xec\x28" + b"\xe9\x00\x10\x00\x00", info(4, [slot(4, 2, 4)]))
    memory.registers[RSP] -= 0x28
    with pytest.raises(LookupError):
        memory.check(4)


def test_an_exception_dispatcher_frame_leads_to_what_was_interrupted() -> None:
    memory = Memory(b"\x90" * 16, info(0, [slot(0, 10, 0)]))
    memory.words |= {TOP: BASE + 0x7000, TOP + 24: 0x30000}
    found = step(memory.table, 0x1004, memory.registers | {RIP: BASE + 0x1004}, memory.word, BASE)
    assert found.frame.signal and found.caller is not None
    assert (found.caller[RIP], found.caller[RSP]) == (BASE + 0x7000, 0x30000)


def test_a_stack_ends_at_return_address_0() -> None:
    memory = Memory(b"\x90" * 16, info(0, [slot(0, 2, 4)]))
    memory.words = {TOP + 0x28: BASE + 0x1008, TOP + 0x58: 0}
    registers = memory.registers | {RIP: BASE + 0x1004}
    stack = walk(registers, lambda _: Module(BASE, memory.table), memory.word)
    assert stack.complete and [frame.pc - BASE for frame in stack.frames] == [0x1004, 0x1008]
    stack = walk(registers, lambda _: None, memory.word)
    assert not stack.complete


@pytest.mark.parametrize(
    "unwind", [b"\x03\0\0\0", info(0, [slot(0, 7, 0)]), info(0, [slot(0, 1, 1)]), info(0, [slot(0, 11, 0)])]
)
def test_malformed_information_is_refused(unwind: bytes) -> None:
    memory = Memory(b"\x90" * 16, unwind)
    with pytest.raises(ImageError):
        memory.check(3)


def test_a_chain_without_an_end() -> None:
    chain = struct.pack("<III", 0x1000, 0x1100, UNWIND)
    memory = Memory(b"\x90" * 32, info(0, [], flags=4) + chain)
    with pytest.raises(ImageError, match="without an end"):
        memory.check(3)


def test_a_table_that_is_not_sorted() -> None:
    with pytest.raises(ImageError):
        FunctionTable([Function(0x1000, 0x1100, 0), Function(0x1080, 0x1200, 0)], lambda at, size: b"")
