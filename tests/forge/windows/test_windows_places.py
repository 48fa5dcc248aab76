"""Where things lie in PE images that were linked in other ways than what capture builds: still provable, or refused."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from iced_x86 import Decoder

from midflight.forge.forge import RefusedWithFindings, forge
from midflight.image.pe import PeFile
from tests.forge.windows.programs import request

GCC = "x86_64-w64-mingw32-gcc"
COUNTERS = {
    "Makefile": f"prog.exe: t.c\n\t{GCC} -O2 -g -o $@ $<\n",
    "t.c": r"""
#include <stdio.h>
struct mark { short a; char b; };
static volatile int first; static volatile char one; static volatile struct mark mark; static volatile long long big;
static volatile int errors; static volatile char letter = 'x'; static volatile double last = 2.5;
__attribute__((noinline)) int count(int n) { errors += n; one++; mark.a += n; big -= n; first = n; return errors; }
__attribute__((noinline)) int show(void) { return errors + one + mark.a + (int)big + first + letter + (int)last; }
int main(int argc, char **argv) { printf("%d %d\n", count(argc), show()); return 0; }
""",
}
MORE = {"t.c": ("errors += n; one++", "errors += n + 1; one++")}
HOOKED = {
    "Makefile": f"prog.exe: t.c\n\t{GCC} -O2 -g -o $@ $<\n",
    "t.c": r"""
#include <stdio.h>
__asm__(".text\n.globl hidden\nhidden: lea 1(%rcx), %eax\nret\n");
__attribute__((ms_hook_prologue, noinline)) int f(int a) { return a * 77 + 1; }
int main(int argc, char **argv) { printf("%d\n", f(argc)); return 0; }
""",
}
SLOTS = {
    "Makefile": (
        "prog.exe: t.obj kernel32.lib\n"
        "\tlld-link /entry:mainCRTStartup /subsystem:console /nodefaultlib /debug:symtab /out:$@ $^\n"
        "t.obj: t.c\n\tclang --target=x86_64-pc-windows-msvc -O2 -c $< -o $@\n"
        "kernel32.lib: kernel32.def\n\tx86_64-w64-mingw32-dlltool -d $< -l $@\n"
    ),
    "kernel32.def": "LIBRARY KERNEL32.dll\nEXPORTS\nGetStdHandle\nWriteFile\nExitProcess\n",
    "t.c": r"""
__declspec(dllimport) void *GetStdHandle(unsigned n);
__declspec(dllimport) int WriteFile(void *h, const void *p, unsigned n, unsigned *d, void *o);
__declspec(dllimport) void ExitProcess(unsigned code);
static const char *volatile text = "hi\n";
__attribute__((noinline)) int say(const char *s, unsigned n) {
  unsigned d;
  WriteFile(GetStdHandle(-11), s, n, &d, 0);
  return d;
}
int mainCRTStartup(void) { ExitProcess(say(text, 3)); return 0; }
""",
}


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counters")


def running(where: Path) -> Path:
    (plain,) = where.glob("work/*/plain/prog.exe")
    return plain


def test_variables_that_stand_close_together_in_what_runs(counters: Path) -> None:
    """Capture gives each variable a section, which the assembler aligns to 16 bytes; what runs has them in one."""
    asked = request(counters, COUNTERS, MORE)
    (target,) = forge(asked).manifest.targets
    assert [function.name for function in target.functions] == ["count"]
    with PeFile.open(running(counters)) as image:
        symbols = {name: image.symbol(name) for name in ("first", "one", "mark", "big", "errors", "letter", "last")}
        places = [s.value for s in symbols.values() if s is not None]
        assert len(places) == len(symbols) and any(place % 16 for place in places)
        meant = {r.target for r in target.relocations if r.kind == "image"}
        assert {symbols["errors"].value, symbols["big"].value} <= meant  # type: ignore[union-attr]


def test_a_variable_that_would_be_misaligned_is_another_baseline(counters: Path, tmp_path: Path) -> None:
    """An int is at a multiple of four, whatever its section says; a stripped image has nothing else that says so."""
    asked = request(counters, COUNTERS, MORE)
    forge(asked)
    plain = running(counters)
    data = bytearray(plain.read_bytes())
    moved = 0
    with PeFile.open(plain) as image:
        errors = image.symbol("errors")
        assert errors is not None
        for name in ("count", "show"):
            function = image.symbol(name)
            assert function is not None
            for item in Decoder(64, image.read_vaddr(function.value, function.size), ip=function.value):
                if item.is_ip_rel_memory_operand and item.ip_rel_memory_address == errors.value:
                    at = image.vaddr_to_offset(item.ip)
                    assert at is not None
                    raw = data[at : at + item.len]
                    field = raw.index(struct.pack("<i", errors.value - item.next_ip))
                    struct.pack_into("<i", data, at + field, errors.value - item.next_ip + 1)
                    moved += 1
    assert moved >= 3
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    subprocess.run(["x86_64-w64-mingw32-strip", other], check=True)
    with pytest.raises(RefusedWithFindings) as caught:
        forge(replace(asked, running=other))
    assert any("errors" in f.reason and "not aligned to 4" in f.reason for f in caught.value.findings)


def test_padding_that_the_compiler_made_behind_code_without_unwind_information(tmp_path: Path) -> None:
    (target,) = forge(request(tmp_path, HOOKED, {"t.c": ("a * 77", "a * 78")})).manifest.targets
    (function,) = target.functions
    assert function.entry.kind == "hotpatch" and function.entry.pad_vaddr == function.entry.vaddr - 5
    assert function.entry.pad_before == b"\xcc" * 5


def test_padding_that_the_compiler_did_not_make_stays(tmp_path: Path) -> None:
    """The same five bytes, but what comes before them is part of the object, and may be code that falls into them."""
    hidden = r'__asm__(".section .text$f,\"x\"\nhidden: lea 1(%rcx), %eax\nret\n");'
    source = HOOKED["t.c"].replace(HOOKED["t.c"].splitlines()[2], hidden)
    makefile = HOOKED["Makefile"].replace("-O2", "-O2 -ffunction-sections")
    asked = request(tmp_path, {"Makefile": makefile, "t.c": source}, {"t.c": ("a * 77", "a * 78")})
    (target,) = forge(asked).manifest.targets
    (function,) = target.functions
    assert function.entry.kind == "near"


def test_import_slots_of_dlltool_are_at_multiples_of_four(tmp_path: Path) -> None:
    asked = request(tmp_path, SLOTS, {"t.c": ("return d;", "return d + 1;")})
    (target,) = forge(asked).manifest.targets
    slots = {r.target for r in target.relocations if r.kind == "slot"}
    with PeFile.open(running(tmp_path)) as image:
        by_name = {item.name: item.slot for item in image.imports}
        assert any(slot % 8 for slot in by_name.values())
        assert slots == {by_name["WriteFile"], by_name["GetStdHandle"]}


def test_a_word_that_only_looks_like_a_slot_is_another_baseline(tmp_path: Path) -> None:
    """Four bytes beside the slot nothing is that the loader fills."""
    asked = request(tmp_path, SLOTS, {"t.c": ("return d;", "return d + 1;")})
    forge(asked)
    plain = running(tmp_path)
    data = bytearray(plain.read_bytes())
    with PeFile.open(plain) as image:
        text = image.section(".text")
        slot = next(item.slot for item in image.imports if item.name == "WriteFile")
        assert text is not None
        code = image.section_data(text)
        for item in Decoder(64, code, ip=text.address):
            if item.is_ip_rel_memory_operand and item.ip_rel_memory_address == slot:
                at = image.vaddr_to_offset(item.next_ip - 4)
                assert at is not None
                struct.pack_into("<i", data, at, slot + 4 - item.next_ip)
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    with pytest.raises(RefusedWithFindings) as caught:
        forge(replace(asked, running=other))
    assert any("slot" in f.reason for f in caught.value.findings)


def test_another_compiler_is_named(counters: Path, tmp_path: Path) -> None:
    """Other instructions, and what the image says of who compiled it: the reason, and not only the effect."""
    asked = request(counters, COUNTERS, MORE)
    forge(asked)
    data = bytearray(running(counters).read_bytes())
    data[:] = data.replace(b"GCC: (GNU) 12-win32", b"GCC: (GNU) 10-win32")
    with PeFile.open(running(counters)) as image:
        count = image.symbol("count")
        assert count is not None and "GCC: (GNU) 12-win32" in image.comments
        at = image.vaddr_to_offset(count.value)
    assert at is not None
    data[at] ^= 1
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    with pytest.raises(RefusedWithFindings) as caught:
        forge(replace(asked, running=other))
    (reason,) = {f.reason for f in caught.value.findings if f.code == "MF130" and f.symbol == "count"}
    assert "run names GCC: (GNU) 10-win32, " in reason and "; pre was compiled by GCC: (GNU) 12-win32" in reason
