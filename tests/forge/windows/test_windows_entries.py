"""Room for trampolines in PE images, judged on functions as compilers make them hot-patchable, and as they do not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from midflight.forge.linking.entries import NoRoom, classify
from midflight.forge.matching.runimage import RunImage
from midflight.image.pe import PeFile
from midflight.patch.manifest import Entry

ASSEMBLER = """
  .text
  .globl start
  .def start; .scl 2; .type 32; .endef
  .balign 16, 0xcc
.seh_proc start
start:
.seh_endprologue
ud2
.seh_endproc
"""


def function(name: str, body: str, before: str = ".balign 16, 0xcc\n.fill 16, 1, 0xcc") -> str:
    """A function with the unwind information that tells where it ends."""
    return (
        f"{before}\n.globl {name}\n.def {name}; .scl 2; .type 32; .endef\n.seh_proc {name}\n{name}:\n"
        f".seh_endprologue\n{body}\n.seh_endproc\n"
    )


def judge(
    tmp_path: Path, text: str, name: str = "f", *, padded: bool = True, flags: tuple[str, ...] = ()
) -> Entry | NoRoom:
    """Build ``text`` (assembler, or C when it has braces), and classify the function ``name``."""
    source = tmp_path / ("t.c" if "{" in text else "t.s")
    source.write_text(text if "{" in text else ASSEMBLER + text)
    command = ["x86_64-w64-mingw32-gcc", "-O2", "-nostdlib", "-e", "start", *flags, str(source), "-o", "t.exe"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with PeFile.open(tmp_path / "t.exe") as image:
        symbol = image.symbol(name)
        assert symbol is not None and symbol.size
        found = classify(RunImage(image), symbol.value, symbol.size, padded=padded)
        if isinstance(found, Entry):
            assert image.read_vaddr(found.vaddr, len(found.before)) == found.before
            if found.pad_vaddr is not None and found.pad_before is not None:
                assert image.read_vaddr(found.pad_vaddr, 5) == found.pad_before
        return found


BODY = "mov $1, %eax\nmov $2, %ecx\nret"


def test_padding_and_a_first_instruction_of_two_bytes(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", f"mov %edi, %edi\n{BODY}"))
    assert isinstance(found, Entry) and found.kind == "hotpatch"
    assert found.pad_vaddr == found.vaddr - 5 and found.before == b"\x89\xff" and found.pad_before == b"\xcc" * 5
    assert found.vaddr % 2 == 0


def test_nops_are_padding_as_well(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", BODY, ".balign 16\n.byte 0x66, 0x0f, 0x1f, 0x44, 0, 0"))
    assert isinstance(found, Entry) and found.kind == "hotpatch"


def test_padding_may_be_left_alone(tmp_path: Path) -> None:
    found = judge(tmp_path, function("f", BODY), padded=False)
    assert isinstance(found, Entry) and found.kind == "near"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (function("f", f"push %rbx\npop %rbx\n{BODY}"), "the first instruction has one byte"),
        (function("f", BODY, ".balign 16, 0xcc\n.fill 17, 1, 0xcc"), "the entry is odd"),
        (function("g", "ret") + function("f", BODY, ".fill 4, 1, 0xcc"), "only four bytes are free"),
        (function("g", "mov $7, %eax\nret", ".balign 16") + function("f", BODY, ""), "nothing is free"),
        (function("f", f"endbr64\n{BODY}"), "an endbr64 must stay"),
        (function("f", f"mov $3, %eax\n1: dec %eax\njnz f+1\n{BODY}"), "a jump leads between the two bytes"),
    ],
    ids=lambda value: value if " " in value and "\n" not in value else "",
)
def test_other_entries_are_overwritten_with_threads_stopped(tmp_path: Path, text: str, why: str) -> None:
    found = judge(tmp_path, text)
    assert isinstance(found, NoRoom) or found.kind in ("near", "short"), why


def test_code_that_no_table_describes_is_no_padding(tmp_path: Path) -> None:
    """A leaf function needs no entry of .pdata; only its instructions say that it is there."""
    hidden = ".balign 16, 0xcc\nhidden: lea 1(%rcx), %eax\nret\nnop\nnop\nnop\nnop\nnop\n"
    found = judge(tmp_path, hidden + function("f", BODY, ""))
    assert isinstance(found, NoRoom) or found.kind != "hotpatch"


@pytest.mark.parametrize(
    ("attribute", "flags"),
    [("ms_hook_prologue", ()), ("patchable_function_entry(8,6)", ()), ("", ("-fpatchable-function-entry=16,16",))],
)
def test_what_gcc_makes_hot_patchable(tmp_path: Path, attribute: str, flags: tuple[str, ...]) -> None:
    text = (
        f"__attribute__(({attribute}, noinline)) int f(int a) {{ return a * 77 + 1; }}\n"
        "int start(void) { return f(3); }\n"
    )
    found = judge(tmp_path, text.replace("((, ", "(("), flags=flags)
    assert isinstance(found, Entry)
    assert found.kind == "hotpatch" or attribute.startswith("patchable"), found
