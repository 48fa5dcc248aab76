"""Room for trampolines, judged on assembled and linked functions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from midflight.forge.linking.entries import NoRoom, classify
from midflight.forge.matching.runimage import RunImage
from midflight.image.elf import ElfFile
from midflight.patch.manifest import Entry

HEAD = """
.text
.globl _start
.type _start, @function
_start: ud2
.size _start, . - _start
.balign 4096, 0xcc
"""


def function(name: str, body: str) -> str:
    return f".globl {name}\n.type {name}, @function\n{name}:\n{body}\n.size {name}, . - {name}\n"


def judge(tmp_path: Path, text: str, name: str = "f", labels: tuple[str, ...] = ()) -> Entry | NoRoom:
    """Assemble and link ``text``, and classify the function ``name``; ``labels`` are symbols in it."""
    (tmp_path / "t.S").write_text(HEAD + text)
    done = subprocess.run(
        ["gcc", "-nostdlib", "-static", "-o", "run", "t.S"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with ElfFile.open(tmp_path / "run") as elf:
        symbol = elf.symbol(name)
        assert symbol is not None
        inside = [s.value for label in labels if (s := elf.symbol(label)) is not None]
        found = classify(RunImage(elf), symbol.value, symbol.size, inside)
        if isinstance(found, Entry):
            assert elf.read_vaddr(found.vaddr, len(found.before)) == found.before
            if found.pad_vaddr is not None and found.pad_before is not None:
                assert elf.read_vaddr(found.pad_vaddr, 5) == found.pad_before
                assert -128 <= found.pad_vaddr - (found.vaddr + 2) <= 127
        return found


def offset(found: Entry | NoRoom) -> int:
    assert isinstance(found, Entry)
    return found.vaddr & 0xFFF


def test_five_bytes_of_its_own_are_enough(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", "mov $1, %eax\nret") + function("g", "ret"))
    assert isinstance(found, Entry) and found.kind == "near" and offset(found) == 0


def test_an_endbr64_stays(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", "endbr64\nmov $1, %eax\nret"))
    assert isinstance(found, Entry) and found.kind == "near" and offset(found) == 4


def test_a_short_function_before_padding_can_be_overwritten(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", "xor %eax, %eax\nret") + ".balign 16\n" + function("g", "ret"))
    assert isinstance(found, Entry) and found.kind == "near"


def test_a_short_function_between_others_goes_through_padding_nearby(tmp_path: Path) -> None:
    text = function("e", "ret") + ".balign 16\n" + function("f", "xor %eax, %eax\nret") + function("g", "ret")
    found = judge(tmp_path, text)
    assert isinstance(found, Entry) and found.kind == "short"
    assert found.pad_vaddr is not None and found.pad_vaddr + 5 <= found.vaddr


def test_padding_after_the_next_function_serves_too(tmp_path: Path) -> None:
    text = function("f", "xor %eax, %eax\nret") + function("g", "ret") + ".balign 32, 0xcc\n" + function("h", "ret")
    found = judge(tmp_path, text)
    assert isinstance(found, Entry) and found.kind == "short" and found.pad_before == b"\xcc" * 5


def test_no_padding_in_reach_is_no_room(tmp_path: Path) -> None:
    crowd = "".join(function(f"x{i}", "nop\n" * 3 + "ret") for i in range(80))
    found = judge(tmp_path, crowd + function("f", "ret") + crowd.replace("x", "y"))
    assert isinstance(found, NoRoom) and "only 1 bytes" in found.reason


def test_a_loop_to_the_second_instruction_needs_the_short_form(tmp_path: Path) -> None:
    body = "xor %eax, %eax\n1: inc %eax\ncmp $9, %eax\njne 1b\nret"
    found = judge(tmp_path, function("f", body) + ".balign 32, 0xcc\n")
    assert isinstance(found, Entry) and found.kind == "short" and len(found.before) == 2


def test_a_jump_table_into_the_entry_counts_as_a_jump(tmp_path: Path) -> None:
    text = function("f", "nop\nnop\ninside: nop\nnop\nnop\nret") + function("g", "ret")
    free = judge(tmp_path, text)
    assert isinstance(free, Entry) and free.kind == "near"
    taken = judge(tmp_path, text, labels=("inside",))
    assert isinstance(taken, NoRoom) or taken.kind == "short"


@pytest.mark.parametrize("gap", [1, 2, 3, 4])
def test_a_write_that_would_touch_two_pages_is_not_made(tmp_path: Path, gap: int) -> None:
    text = function("e", f".skip {4096 - gap - 16}, 0x90\nret") + ".balign 16, 0xcc\n"
    text += f".skip {16 - gap}, 0xcc\n" + function("f", "mov $7, %eax\nadd $9, %eax\nret")
    found = judge(tmp_path, text)
    if gap >= 2:
        assert isinstance(found, Entry) and found.kind == "short"
        assert found.pad_vaddr is not None and found.pad_vaddr // 4096 == (found.pad_vaddr + 4) // 4096
    else:
        assert isinstance(found, NoRoom) and "two pages" in found.reason


def test_code_without_a_size_is_no_padding(tmp_path: Path) -> None:
    """An assembler routine that no table describes lies behind the short function."""
    text = function("f", "ret") + "hidden: mov %edi, %eax\nimul %eax, %eax\nadd $5, %eax\nret\n" + ".skip 200, 0x55\n"
    found = judge(tmp_path, text)
    assert not isinstance(found, Entry) or (found.kind == "short" and (found.pad_vaddr or 0) < found.vaddr)
