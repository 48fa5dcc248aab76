"""Call frame rules, against what pyelftools makes of the same bytes, and by hand where the ABI says what must be."""

from __future__ import annotations

from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE, ZERO, CFIEntry
from elftools.elf.elffile import ELFFile

from midflight.errors import ImageError
from midflight.image.cfa import Row, Rule
from midflight.image.elf import ElfFile
from midflight.image.expression import evaluate
from midflight.image.unwind import FrameTable, Module, step, unwind, walk
from tests.image.samples import SYSTEM

GNU_ARGS_SIZE = 0x2E
KINDS = {
    "UNDEFINED": "undefined",
    "SAME_VALUE": "same",
    "OFFSET": "offset",
    "VAL_OFFSET": "val_offset",
    "REGISTER": "register",
    "EXPRESSION": "expression",
    "VAL_EXPRESSION": "val_expression",
}


def image_entries(path: Path) -> list[CFIEntry]:
    with path.open("rb") as file:
        return [e for e in ELFFile(file).get_dwarf_info().EH_CFI_entries() if not isinstance(e, ZERO)]


def as_ours(row: dict[str | int, object]) -> Row:
    """A row of pyelftools as a row of ours."""
    result = Row()
    for column, rule in row.items():
        if column == "pc":
            continue
        if column == "cfa":
            if rule.expr is not None:  # type: ignore[attr-defined]
                result.cfa_expression = bytes(rule.expr)  # type: ignore[attr-defined]
            else:
                result.cfa_register, result.cfa_offset = rule.reg, rule.offset  # type: ignore[attr-defined]
            continue
        kind = KINDS[rule.type]  # type: ignore[attr-defined]
        argument = rule.arg  # type: ignore[attr-defined]
        if "expression" in kind:
            result.rules[int(column)] = Rule(kind, code=bytes(argument))  # type: ignore[arg-type]
        else:
            result.rules[int(column)] = Rule(kind, argument or 0)  # type: ignore[arg-type]
    return result


def same(mine: Row, theirs: Row) -> bool:
    if mine.cfa_expression != theirs.cfa_expression or mine.rules != theirs.rules:
        return False
    if mine.cfa_expression is not None:
        return True
    return (mine.cfa_register, mine.cfa_offset) == (theirs.cfa_register, theirs.cfa_offset)


@pytest.mark.parametrize(
    "name", ("pie", "nopie", "old", "lld", "static", "libplus.so", "libsample.so", "liblld.so", "/bin/bash", *SYSTEM)
)
def test_rules_are_those_that_pyelftools_works_out(samples: dict[str, Path], name: str) -> None:
    path = Path(name) if name.startswith("/") else samples[name]
    with ElfFile.open(path) as image:
        table = image.frame_table
        assert table is not None
        tables = image.unwind_tables
        assert tables is not None
    without_header = FrameTable(tables.eh_frame, tables.vaddr)
    entries = [e for e in image_entries(path) if isinstance(e, FDE) and e["address_range"]]
    ranges = [(e["initial_location"], e["initial_location"] + e["address_range"]) for e in entries]
    assert ranges and [r for r in table.functions() if r[0] < r[1]] == ranges
    assert not any(isinstance(entry, ZERO) for entry in entries)
    checked = 0
    for entry in entries[:: max(1, len(entries) // 300)]:
        start, end = entry["initial_location"], entry["initial_location"] + entry["address_range"]
        frame = table.find(start)
        assert frame is not None and (frame.start, frame.end) == (start, end) and without_header.find(end - 1) == frame
        if any(i.opcode == GNU_ARGS_SIZE for i in entry.instructions):
            continue  # which pyelftools cannot decode
        checked += 1
        rows = entry.get_decoded().table
        for row, following in zip(rows, [*rows[1:], {"pc": end}], strict=True):
            if row["pc"] < following["pc"]:
                for pc in (row["pc"], following["pc"] - 1):
                    found = table.row(pc)
                    assert found is not None and same(found[1], as_ours(row)), f"{path} {pc:#x}"
    assert checked > 0.9 * min(len(entries), 300)


def test_every_function_with_a_size_is_covered(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["libplus.so"]) as image:
        table = image.frame_table
        assert table is not None
        functions = [s for s in image.symbols() if s.type == "func" and s.size and s.defined]
        assert functions
        for symbol in functions:
            frame = table.find(symbol.value)
            assert frame is not None and (frame.start, frame.end) == (symbol.value, symbol.value + symbol.size)
        throwing = next(s for s in functions if s.name == "_Z3useR4Basei")
        frame = table.find(throwing.value)
        assert frame is not None and frame.lsda is not None and frame.cie.personality is not None
        gcc_except_table = image.section(".gcc_except_table")
        assert gcc_except_table is not None
        assert 0 <= frame.lsda - gcc_except_table.address < gcc_except_table.size


def test_plt_entries_unwind_at_each_of_their_instructions(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["pie"]) as image:
        table = image.frame_table
        assert table is not None
        [entry] = image.plt()["puts"]
        plt = image.section(".plt")
        assert plt is not None
    top = 0x7FFF0000
    # jmp *slot; push $index; jmp PLT0: the return address stands above what was pushed so far.
    for offset, pushed in ((0, 0), (6, 0), (11, 1)):
        memory = {top - 8: 0x1234}
        registers = {7: top - 8 - 8 * pushed, 16: entry + offset, 3: 77}
        assert unwind(table, entry + offset, registers, memory.__getitem__) == {7: top, 16: 0x1234, 3: 77}
    # PLT0: push link_map; jmp resolver.
    for offset, pushed in ((0, 1), (6, 2)):
        registers = {7: top - 8 - 8 * pushed, 16: plt.address + offset}
        assert unwind(table, plt.address + offset, registers, {top - 8: 0x1234}.__getitem__) == {7: top, 16: 0x1234}


def test_the_signal_trampoline_restores_every_register() -> None:
    with ElfFile.open("/usr/lib/x86_64-linux-gnu/libc.so.6") as image:
        table = image.frame_table
        assert table is not None
    [frame] = [f for f in table.frames() if f.signal]
    # rt_sigreturn's frame: the stack pointer is at a ucontext (AMD64 kernel ABI), whose gregs are in this order.
    order = (8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16)  # r8-r15 rdi rsi rbp rbx rdx rax rcx rsp rip
    sp = 0x10000
    memory = {sp + 40 + 8 * i: 0xA000 + register for i, register in enumerate(order)}
    caller = unwind(table, frame.start, {7: sp, 16: frame.start + 1}, memory.__getitem__)
    assert caller == {register: 0xA000 + register for register in order}


def test_the_start_of_a_program_is_the_outermost_frame(samples: dict[str, Path]) -> None:
    for name in ("pie", "static", "lld"):
        with ElfFile.open(samples[name]) as image:
            table, entry = image.frame_table, image.entry
        assert table is not None
        nothing = dict[int, int]().__getitem__
        assert unwind(table, entry + 10, {7: 0x1000, 16: entry + 10}, nothing) is None


def test_a_walk_says_why_it_is_not_complete(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["pie"]) as image:
        table, entry, main = image.frame_table, image.entry, image.symbol("main")
    assert table is not None and main is not None
    module = Module(0, table, entry)
    top = 0x10000

    def walked(memory: dict[int, int], rbp: int = 1, limit: int = 100, end: int = 1 << 40) -> tuple[int, bool, str]:
        registers = [0] * 17
        registers[6], registers[7], registers[16] = rbp, top, main.value
        stack = walk(registers, lambda pc: module if pc < end else None, memory.__getitem__, limit)
        return len(stack.frames), stack.complete, stack.reason

    assert walked({top: entry + 20}) == (2, True, "outermost frame")
    assert walked({top: 0}, rbp=0) == (1, True, "return address 0")
    frames, complete, reason = walked({top: 0}, rbp=5)
    assert (frames, complete) == (1, False) and "is in no known image" in reason
    assert walked({}) == (0, False, f"at {main.value:#x}: {top}")
    assert walked({top: 1 << 50}) == (1, False, "0x4000000000000 is in no known image")
    assert walked({top: 0x10}) == (1, False, "no unwind information covers 0x10")
    recursive = {top + 8 * i: main.value + 1 for i in range(1000)}
    assert walked(recursive, limit=100) == (100, False, "the stack has more than 100 frames")


def entry_bytes(body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return len(body).to_bytes(4, "little") + body


def table_of(program: bytes, augmentation: bytes = b"zR\0", data: bytes = b"\x01\x04") -> FrameTable:
    """A table with one function at 0x1000, 256 bytes long. The CFA starts as rsp + 8, the return address at CFA - 8."""
    cie = entry_bytes(bytes(4) + b"\x01" + augmentation + b"\x01\x78\x10" + data + b"\x0c\x07\x08\x90\x01")
    fde = (len(cie) + 4).to_bytes(4, "little") + (0x1000).to_bytes(8, "little") + (0x100).to_bytes(8, "little")
    return FrameTable(cie + entry_bytes(fde + b"\0" + program) + bytes(4), 0)


def test_each_instruction_does_what_dwarf_says() -> None:
    table = table_of(
        bytes.fromhex(
            "0e10 8302"  # def_cfa_offset 16; offset r3 at CFA-16
            "0a 41"  # remember_state; advance_loc 1
            "0c0620 140c08 050d03 070e 080f"  # def_cfa r6+32; val_offset r12; offset_extended r13; undefined; same
            "41 0b"  # advance_loc 1; restore_state
            "41 c3 090c0d 2e20 110c7f 150c7e 2f0c02"  # restore r3; then each overrides the rule of r12, or says nothing
        )
    )
    rows = {}
    for pc in (0x1000, 0x1001, 0x1002, 0x1003, 0x10FF):
        found = table.row(pc)
        assert found is not None
        rows[pc] = found[1]
    start = {16: Rule("offset", -8), 3: Rule("offset", -16)}
    assert rows[0x1000] == Row(7, 16, None, start)
    moved = {12: Rule("val_offset", -64), 13: Rule("offset", -24), 14: Rule("undefined"), 15: Rule("same")}
    assert rows[0x1001] == Row(6, 32, None, start | moved)
    assert rows[0x1002] == Row(7, 16, None, start)
    assert rows[0x1003] == rows[0x10FF] == Row(7, 16, None, {16: Rule("offset", -8), 12: Rule("offset", 16)})
    assert table.row(0x1100) is None and table.row(0xFFF) is None


def test_expressions_and_registers_lead_to_the_caller() -> None:
    table = table_of(
        bytes.fromhex(
            "0f03 7678 06"  # def_cfa_expression: what stands at r6 - 8
            "1003 02 481c"  # expression: r3 is at CFA - 24
            "160c 02 2305"  # val_expression: r12 is CFA + 5
            "070d 090e0f"  # r13 is lost; r14 is in r15
        )
    )
    memory = {0x5000 - 8: 0x9000, 0x9000 - 24: 33, 0x9000 - 8: 0x4444}
    found = step(table, 0x1000, {6: 0x5000, 7: 0x100, 13: 1, 15: 15, 0: 99, 16: 0x1000}, memory.__getitem__)
    assert found is not None and found.cfa == 0x9000 and found.return_slot == 0x9000 - 8
    # rax is the callee's to spoil, so nobody knows the caller's.
    assert found.caller == {3: 33, 6: 0x5000, 7: 0x9000, 12: 0x9005, 14: 15, 15: 15, 16: 0x4444}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("0b", "restores what it did not remember"),
        ("0a" * 300, "remembers too much"),
        ("3b", "instruction 0x3b"),
        ("0f09", "cut short"),
        ("0780808080808080808080808080808080808080808080", "does not end"),
        ("07ff7f", "speaks of register"),
        ("0f0130" + "0d06", "no register and offset"),
    ],
)
def test_malformed_programs_are_errors(program: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        table_of(bytes.fromhex(program)).row(0x1050)


def test_a_search_table_that_lies_is_found_out(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["pie"]) as image:
        tables, main = image.unwind_tables, image.symbol("main")
    assert tables is not None and tables.header is not None and main is not None
    shifted = bytearray(tables.header)
    for at in range(12, len(shifted), 8):
        value = int.from_bytes(shifted[at : at + 4], "little", signed=True) - 4
        shifted[at : at + 4] = value.to_bytes(4, "little", signed=True)
    table = FrameTable(tables.eh_frame, tables.vaddr, bytes(shifted), tables.header_vaddr)
    with pytest.raises(ImageError, match="does not agree"):
        table.find(main.value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3335 22", 3 + 5),
        ("3533 1c", 2),
        ("08ff 09ff 1e", -255 & (1 << 64) - 1),
        ("0d feffffff", 0xFFFF_FFFF_FFFF_FFFE),
        ("3112 22", 2),
        ("3132 14 1c 22", 2),
        ("313233 17 1c 22", 1 + 3 - 2 + 2 - 2),
        ("313216", 1),
        ("31 2801 00 08 35", 0x35 - 0x30),
        ("7708 06", 0xBEEF),
        ("9207 08 94 01", 0xEF),
        ("11f87e 19", 0x88),
        ("10 8001 20", ~128 & (1 << 64) - 1),
        ("3f34 24", 15 << 4),
        ("11 70 32 26", -4 & (1 << 64) - 1),
        ("11 70 33 1b", -5 & (1 << 64) - 1),
        ("38 35 29", 0),
        ("35 38 2d", 1),
        ("03 0010000000000000", 0x1100),
        ("3031 15 01", 0),
    ],
)
def test_expressions(expression: str, value: int) -> None:
    code = bytes.fromhex(expression)
    registers, memory = {7: 0x2000}, {0x2008: 0xBEEF}
    assert evaluate(code, registers, memory.__getitem__, bias=0x100) == value


@pytest.mark.parametrize("expression", ["", "22", "2ffdff", "30301b", "f0", "2f0500", "3015ff", "309409", "50"])
def test_malformed_expressions_are_errors(expression: str) -> None:
    with pytest.raises(ImageError):
        evaluate(bytes.fromhex(expression), {}, lambda address: 0)


def test_an_unknown_register_is_no_guess() -> None:
    with pytest.raises(LookupError, match="register 3"):
        evaluate(b"\x73\x00", {7: 1}, lambda address: 0)
