"""Objects as atoms: what is cut where, what refers to what, and the unwind information that goes with it."""

from __future__ import annotations

from pathlib import Path

import iced_x86
import pytest

from midflight.errors import ImageError
from midflight.forge.families import base_name
from midflight.forge.model import ObjectCode, Reference
from midflight.forge.objects import frames, read_object

from .object_pairs import compile_object

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])
BOTH_CXX = pytest.mark.parametrize("compiler", ["g++", "clang++"])


def read(directory: Path, source: str, compiler: str = "gcc", flags: tuple[str, ...] = ()) -> ObjectCode:
    return read_object(compile_object(directory, source, "unit", compiler, flags), directory / "unit.o")


def meant(code: ObjectCode, reference: Reference) -> tuple[str, int]:
    """What a reference really means: the key of its target, and the offset in it."""
    return reference.atom or reference.symbol or "", reference.addend + reference.bias


@BOTH
def test_kinds_of_atoms(tmp_path: Path, compiler: str) -> None:
    code = read(
        tmp_path,
        """
        int counter = 5; static int zeroed; const int fixed = 7; __thread int own = 1; __thread int blank;
        static const char *names[] = {"one", "two"};
        int f(int x) { zeroed += x; return counter + own + blank + names[x & 1][zeroed]; }
        """,
        compiler,
    )
    kinds = {key: atom.kind for key, atom in code.atoms.items() if atom.name}
    names = kinds.pop("names" if compiler == "gcc" else "reltable.f")  # clang makes a table of distances of it
    assert names in ("data", "rodata")
    assert kinds == {
        "f": "function",
        "counter": "data",
        "zeroed": "bss",
        "fixed": "rodata",
        "own": "tls",
        "blank": "tls",
    }
    strings = [atom.data for atom in code.atoms.values() if atom.kind == "string"]
    assert strings == [b"one\0", b"two\0"]
    assert code.atoms["zeroed"].size == 4 and code.atoms["zeroed"].data == b""
    assert ("clang" if compiler == "clang" else "GCC") in code.compiler


@BOTH
def test_references_mean_the_right_place_whatever_follows_the_field(tmp_path: Path, compiler: str) -> None:
    """A PC-relative field before an immediate has a larger bias than 4: the place that is meant must not move by it."""
    code = read(
        tmp_path,
        """
        static struct { char byte; int word; long far[4]; } s;
        void set(void) { s.byte = 3; s.word = 70000; s.far[2] = 9; }
        long get(void) { return s.byte + s.word + s.far[2]; }
        void *end(void) { return &s + 1; }
        """,
        compiler,
    )
    places = {meant(code, r) for r in code.atoms["set"].references}
    assert places == {("s", 0), ("s", 4), ("s", 24)}
    assert {meant(code, r) for r in code.atoms["get"].references} == places
    assert [meant(code, r) for r in code.atoms["end"].references] == [("s", 40)]
    assert {r.bias for r in code.atoms["set"].references} >= {5, 8}


@BOTH
def test_entries_of_several_jump_tables_in_one_section(tmp_path: Path, compiler: str) -> None:
    """Each entry is a distance from its own table: what it means is a label, not that much before or behind it."""
    cases = "".join(f"case {n}: x = x * {n + 3} ^ {n * n}; break;" for n in range(9))
    code = read(
        tmp_path,
        f"""
        int g(int);
        int f(int a, int b, int x) {{
            switch (a) {{ {cases} }}
            x = g(x);
            switch (b) {{ {cases} }}
            return g(x);
        }}
        """,
        compiler,
        ("-fPIC",),
    )
    function = code.atoms["f"]
    entries = [r for atom in code.atoms.values() if atom.kind == "rodata" for r in atom.references]
    assert len(entries) >= 18
    starts, at = set(), 0
    for instruction in iced_x86.Decoder(64, function.data):
        starts.add(at)
        at += instruction.len
    places = [meant(code, entry) for entry in entries]
    assert {target for target, _ in places} == {"f"}
    assert {offset for _, offset in places} <= starts
    assert len({offset for _, offset in places}) >= 16


def test_aliases_and_weak_names(tmp_path: Path) -> None:
    code = read(
        tmp_path,
        'int real(int x) { return x + 1; }\nint other(int) __attribute__((alias("real")));\n'
        'int soft(int) __attribute__((weak, alias("real")));\n',
    )
    assert list(code.atoms) == ["real"] or list(code.atoms) == ["other"]
    atom = next(iter(code.atoms.values()))
    assert {atom.name, *atom.aliases} == {"real", "other", "soft"}
    assert atom.binding == "global"


def test_ifunc(tmp_path: Path) -> None:
    code = read(
        tmp_path,
        "static int one(void) { return 1; }\nstatic int (*choose(void))(void) { return one; }\n"
        'int pick(void) __attribute__((ifunc("choose")));\nint use(void) { return pick(); }\n',
    )
    assert code.atoms["pick"].ifunc
    assert not code.atoms["use"].ifunc


def test_object_without_sections_per_function(tmp_path: Path) -> None:
    """Hand-written assembler: several functions in one section, cut at the symbols, local labels kept inside."""
    code = read(
        tmp_path,
        """
        .text
        .globl first
        .type first, @function
        first: xorl %eax, %eax
        inner: incl %eax
          jne inner
          call second
          ret
        .size first, .-first
        .p2align 4
        .type second, @function
        second: leaq table(%rip), %rax
          ret
        .size second, .-second
        .data
        value: .quad first + 2
        table: .quad value, second
        """,
        flags=("-xassembler",),
    )
    assert set(code.atoms) == {"first", "second", "value", "table"}
    assert [meant(code, r) for r in code.atoms["second"].references] == [("table", 0)]
    assert [meant(code, r) for r in code.atoms["value"].references] == [("first", 2)]
    assert [meant(code, r) for r in code.atoms["table"].references] == [("value", 0), ("second", 0)]
    assert code.atoms["first"].sized


def test_strings_of_wide_characters(tmp_path: Path) -> None:
    code = read(
        tmp_path, '#include <wchar.h>\nextern void say(const wchar_t *);\nvoid f(void) { say(L"ab"); say(L"c"); }\n'
    )
    strings = {atom.data.decode("utf-32-le").rstrip("\0") for atom in code.atoms.values() if atom.kind == "string"}
    assert strings == {"ab", "c"}


@BOTH_CXX
def test_frames_with_exception_tables(tmp_path: Path, compiler: str) -> None:
    code = read(
        tmp_path,
        """
        struct Guard { ~Guard(); };
        extern int work(int);
        int plain(int x) { return x * 2; }
        int guarded(int x) { Guard g; try { return work(x); } catch (int n) { return n; } }
        """,
        compiler,
    )
    found = frames(code)
    plain, guarded = found["_Z5plaini"][0], found["_Z7guardedi"][0]
    assert (plain.offset, plain.size) == (0, code.atoms["_Z5plaini"].size)
    assert plain.personality is None and plain.lsda is None
    assert guarded.lsda is not None and guarded.lsda.atom is not None
    assert code.atoms[guarded.lsda.atom].parent == "_Z7guardedi"
    assert code.atoms[guarded.lsda.atom].section.startswith(".gcc_except_table")
    assert guarded.personality is not None
    assert guarded.personality.atom == "DW.ref.__gxx_personality_v0"
    assert guarded.cie is not None and guarded.cie.augmentation == "zPLR"
    assert guarded.instructions != b""


@BOTH_CXX
def test_comdat_functions(tmp_path: Path, compiler: str) -> None:
    code = read(
        tmp_path,
        "template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }\n"
        "int a(int x) { return twice(x); }\nlong b(long x) { return twice(x); }\n",
        compiler,
    )
    assert code.atoms["_Z5twiceIiET_S0_"].binding == "weak"
    assert {r.atom for r in code.atoms["_Z1ai"].references} == {"_Z5twiceIiET_S0_"}
    assert {r.atom for r in code.atoms["_Z1bl"].references} == {"_Z5twiceIlET_S0_"}


def test_names_of_clones() -> None:
    assert base_name("f.isra.0.cold") == "f"
    assert base_name("f.part.12") == "f"
    assert base_name("f") == "f"
    assert base_name("x.27") == "x.27"


@pytest.mark.parametrize("content", [b"", b"no object", b"\x7fELF" + bytes(60)])
def test_what_is_no_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.o"
    file.write_bytes(content)
    with pytest.raises(ImageError):
        read_object(file, file)
