"""Hotpatches for PE images: from a source tree and a fix to a manifest and a payload, or a refusal with reasons."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from iced_x86 import Decoder, Instruction, Register

from midflight.forge.capture.source import read_fix
from midflight.forge.forge import ForgeRequest, ForgeResult, RefusedWithFindings, forge
from midflight.forge.model import Finding
from midflight.image.pe import PeFile
from midflight.patch.encoding import decode_manifest, encode_manifest
from midflight.patch.manifest import Target
from midflight.patch.validate import validate_manifest
from tests.forge.windows.meaning import differences
from tests.forge.windows.programs import CATCH, CXX, LENGTH, MSVC, THROW, C, request


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C program is built."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def cxx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C++ program is built."""
    return tmp_path_factory.mktemp("cxx")


@pytest.fixture(scope="module")
def msvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program for the MSVC ABI is built."""
    return tmp_path_factory.mktemp("msvc")


def built(asked: ForgeRequest) -> tuple[ForgeResult, Target]:
    """A hotpatch whose file comes back as it was, and whose payload means what the fixed image does."""
    result = forge(asked)
    validate_manifest(result.manifest)
    assert decode_manifest(encode_manifest(result.manifest)) == result.manifest
    assert result.manifest.schema == 3
    (target,) = result.manifest.targets
    plain, post = images(asked)
    # What a stripped image is patched to is read with the symbols that it had.
    with PeFile.open(plain) as image:
        names = plain if image.symbols() else post.parents[2] / "pre" / "image" / plain.name
    wrong = list(differences(target, result.payloads[target.payload], names, post)) if names == plain else []
    assert not wrong, "\n".join(wrong)
    check_unwinding(target, result.payloads[target.payload])
    return result, target


def images(asked: ForgeRequest) -> tuple[Path, Path]:
    """The running image with its symbols, and the fixed one."""
    (base,) = [path.parent for path in asked.work.glob("*/complete")]
    post = "post-" + read_fix(asked.source, asked.fix).digest()[:24]
    plain = base / "plain" / Path(asked.image).name
    return plain, base / post / "image" / Path(asked.image).name


def check_unwinding(target: Target, payload: bytes) -> None:
    """Every byte of new code that can be called from is described, in order, by an UNWIND_INFO of the payload."""
    assert target.unwind is not None
    memory = bytearray(max(s.offset + s.size for s in target.segments))
    for segment in target.segments:
        part = payload[segment.file_offset : segment.file_offset + segment.file_size]
        memory[segment.offset : segment.offset + len(part)] = part
    at, size = target.unwind.offset, target.unwind.size
    rows = [[int.from_bytes(memory[o + n : o + n + 4], "little") for n in (0, 4, 8)] for o in range(at, at + size, 12)]
    assert rows == sorted(rows)
    for function in target.functions:
        parts = [(a, b) for a, b, _ in rows if function.new_offset <= a < function.new_offset + function.new_size]
        assert parts[0][0] == function.new_offset and parts[-1][1] == function.new_offset + function.new_size
        assert all(0 <= after - end < 16 for (_, end), (after, _) in pairwise(parts)), "filling between parts"
    rodata = next(s for s in target.segments if s.kind == "rodata")
    for begin, end, info in rows:
        assert begin < end and rodata.offset <= info < rodata.offset + rodata.size
        version, flags, codes = memory[info] & 7, memory[info] >> 3, memory[info + 2]
        assert version == 1 and flags in (0, 1, 3)
        if flags:
            handler = int.from_bytes(memory[info + 4 + (codes + 1) // 2 * 4 :][:4], "little")
            assert memory[handler : handler + 6] == b"\xf3\x0f\x1e\xfa\xff\x25", "the handler is reached through a stub"


def refused(asked: ForgeRequest) -> tuple[Finding, ...]:
    with pytest.raises(RefusedWithFindings) as caught:
        forge(asked)
    return caught.value.findings


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {item.code for item in findings}


# --- C -------------------------------------------------------------------------------------------------------------


def test_a_fix_of_a_c_program(c: Path) -> None:
    result, target = built(request(c, C, LENGTH))
    assert [function.name for function in target.functions] == ["parse_record"]
    plain, _ = images(request(c, C, LENGTH))
    with PeFile.open(plain) as image:
        assert target.build_id == image.build_id
        symbol = image.symbol("parse_record")
        assert symbol is not None and target.functions[0].ranges[0].vaddr == symbol.value
    assert target.image_name == "prog.exe" and not target.imports
    assert result.manifest.compiler.startswith("GCC: (GNU)")


def test_new_strings_constants_and_jump_tables_go_along(c: Path) -> None:
    changes = {"parse.c": ('case 2: puts("two"); return 2.5;', 'case 2: puts("two, mended"); return 2.625;')}
    result, target = built(request(c, C, changes))
    assert [function.name for function in target.functions] == ["rate"]
    payload = result.payloads[target.payload]
    assert b"two, mended\0" in payload and struct.pack("<d", 2.625) in payload


def test_an_import_that_the_program_did_not_have(c: Path) -> None:
    changes = {"parse.c": ("if (n > 64)", 'if (n > 64 || strpbrk(text, "<>"))')}
    _, target = built(request(c, C, changes))
    assert [(i.name, i.library, i.version, i.type) for i in target.imports] == [("strpbrk", "msvcrt.dll", None, "func")]


def test_a_stripped_image_is_patched_as_one_with_symbols(c: Path, tmp_path: Path) -> None:
    asked = request(c, C, LENGTH)
    _, target = built(asked)
    stripped = tmp_path / "prog.exe"
    subprocess.run(["x86_64-w64-mingw32-strip", "-o", stripped, images(asked)[0]], check=True)
    with PeFile.open(stripped) as image:
        assert not image.symbols()
    _, other = built(replace(asked, running=stripped))
    assert other.build_id != target.build_id
    assert other.functions == target.functions and other.relocations == target.relocations


def test_another_baseline_is_refused(c: Path, tmp_path: Path) -> None:
    asked = request(c, C, LENGTH)
    forge(asked)
    plain = images(asked)[0]
    data = bytearray(plain.read_bytes())
    with PeFile.open(plain) as image:
        symbol = image.symbol("parse_record")
        assert symbol is not None
        at = image.vaddr_to_offset(symbol.value + 20)
    assert at is not None
    data[at] ^= 1
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    assert codes(refused(replace(asked, running=other))) & {"MF130", "MF131"}


@pytest.mark.parametrize("trailing", [2, 3, 5, 6])
def test_a_constant_that_differs_behind_zeros_is_another_baseline(c: Path, tmp_path: Path, trailing: int) -> None:
    """COFF does not say how long a table is; that its last bytes are zero must not mean that nobody looks at them."""
    asked = request(c, C, LENGTH)
    forge(asked)
    plain = images(asked)[0]
    data = bytearray(plain.read_bytes())
    with PeFile.open(plain) as image:
        symbol = image.symbol("weights")
        assert symbol is not None
        at = image.vaddr_to_offset(symbol.value + trailing)
    assert at is not None and data[at] == 0
    data[at] = 9
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    assert codes(refused(replace(asked, running=other))) & {"MF130", "MF133"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parse.c": ("int limit = 16;", "int limit = 17;")}, "MF110"),
        ({"parse.h": ("int kind; double", "int kind; int more; double")}, "MF111"),
        ({"main.c": ("Sleep(1);", "Sleep(2);")}, "MF117"),
    ],
)
def test_what_no_format_can_hotpatch(c: Path, changes: dict[str, tuple[str, str]], code: str) -> None:
    assert code in codes(refused(request(c, C, changes)))


def test_hooks_are_refused(c: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.c"
    hooks.write_text("void midflight_after_apply(void) {}\n")
    assert "MF184" in codes(refused(request(c, C, LENGTH, hooks=hooks)))


def test_a_captured_image_without_symbols_is_refused(tmp_path: Path) -> None:
    """Stripped where capture does not see it; -s, which it sees, does not matter."""
    strips = C["Makefile"].replace("$(CC) -o $@ $^", "$(CC) -s -o $@ $^")
    assert forge(request(tmp_path / "seen", {**C, "Makefile": strips}, LENGTH)).manifest.targets
    hidden = C["Makefile"].replace("$(CC) -o $@ $^", "$(CC) -Wl,--gc-sections,-S,-s -o $@ $^")
    found = refused(request(tmp_path / "hidden", {**C, "Makefile": hidden}, LENGTH))
    assert "MF183" in codes(found)


def test_an_image_that_says_nothing_of_itself_is_refused(c: Path, tmp_path: Path) -> None:
    asked = request(c, C, LENGTH)
    forge(asked)
    data = bytearray(images(asked)[0].read_bytes())
    at = int.from_bytes(data[60:64], "little")
    data[at + 8 : at + 12] = data[at + 24 + 64 : at + 24 + 68] = bytes(4)
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    assert "MF161" in codes(refused(replace(asked, running=other)))


def test_an_image_without_base_relocations_is_refused(c: Path, tmp_path: Path) -> None:
    asked = request(c, C, LENGTH)
    forge(asked)
    data = bytearray(images(asked)[0].read_bytes())
    at = int.from_bytes(data[60:64], "little") + 24 + 112 + 8 * 5
    data[at : at + 8] = bytes(8)
    other = tmp_path / "prog.exe"
    other.write_bytes(data)
    assert "MF181" in codes(refused(replace(asked, running=other)))


# --- C++ -----------------------------------------------------------------------------------------------------------


def test_a_fix_that_throws(cxx: Path) -> None:
    _, target = built(request(cxx, CXX, THROW))
    assert [function.name for function in target.functions] == ["_Z5parsePKc"]
    assert {i.library for i in target.imports} == {"libstdc++-6.dll"}
    assert target.unwind is not None and target.unwind.throws


def test_a_fix_that_catches(cxx: Path) -> None:
    _, target = built(request(cxx, CXX, CATCH))
    assert [function.name for function in target.functions] == ["_Z7guardedPKc"]
    kinds = [(r.kind, r.form) for r in target.relocations if r.offset >= target.segments[1].offset]
    assert ("image", "abs64") in kinds, "the type information that it catches by is the image's own"


# --- the MSVC ABI --------------------------------------------------------------------------------------------------


def test_a_fix_of_a_function_with_try_and_except(msvc: Path) -> None:
    changes = {"core.cpp": ('step(1); } __except (1) { say("fault"); return -1; }',
                            'step(2); } __except (1) { say("a fault, mended"); return -2; }')}  # fmt: skip
    result, target = built(request(msvc, MSVC, changes))
    assert [function.name for function in target.functions] == ["guarded"]
    assert result.manifest.compiler.startswith("Debian clang version") or "clang version" in result.manifest.compiler
    assert b"a fault, mended\0" in result.payloads[target.payload]
    assert not target.imports


def test_thread_local_variables_stay_where_they_are(msvc: Path) -> None:
    asked = request(msvc, MSVC, {"core.cpp": ("depth += x; other++;", "depth += x + 1; other += 2;")})
    result, target = built(asked)
    assert [function.name for function in target.functions] == ["step"]
    _, post = images(asked)
    offsets = []
    new = result.payloads[target.payload][target.functions[0].new_offset :][: target.functions[0].new_size]
    for code in (new, read_function(post, "step")):
        # mov %gs:0x58,%reg; then offsets of variables in the block, as displacements of add and inc
        assert b"\x65\x48\x8b" in code
        offsets.append(sorted(i.memory_displacement for i in Decoder(64, code) if is_thread_local(i)))
    assert offsets[0] == offsets[1] and len(offsets[0]) >= 2


def read_function(image: Path, name: str) -> bytes:
    with PeFile.open(image) as pe:
        symbol = pe.symbol(name)
        assert symbol is not None
        return pe.read_vaddr(symbol.value, symbol.size)


def is_thread_local(instruction: Instruction) -> bool:
    """An instruction with a base register and a displacement of four bytes: no frame here is so large."""
    base = instruction.memory_base not in (Register.NONE, Register.RIP, Register.RSP)
    return base and instruction.memory_displ_size == 4 + 4 and instruction.memory_displacement < 64


def test_a_distance_from_the_image_base_in_new_code_is_refused(msvc: Path) -> None:
    assembler = 'asm volatile("movl $step@IMGREL, %0" : "=r"(r));'
    changes = {"core.cpp": ("count++; depth", f"int r; {assembler} count += r; depth")}
    assert "MF180" in codes(refused(request(msvc, MSVC, changes)))


def test_a_switch_whose_table_stands_behind_the_code(msvc: Path) -> None:
    changes = {"core.cpp": ("case 4: return 9.125;", "case 4: return 9.375;")}
    result, target = built(request(msvc, MSVC, changes))
    assert [function.name for function in target.functions] == ["rate"]
    assert struct.pack("<d", 9.375) in result.payloads[target.payload]
