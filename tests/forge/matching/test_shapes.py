"""Shapes of real images that generated programs do not reach by themselves: each is matched rightly, or refused."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.forge.matching.building import Built, Kit, build
from tests.forge.matching.campaign import read_known
from tests.forge.matching.programs import generate
from tests.forge.matching.trials import ask, some
from tests.forge.matching.truth import Truth
from tests.forge.matching.verdict import Verdict, everything, judge

NOINLINE = "__attribute__((noinline))"
MAIN = "int work(int); int main(int c, char **v) { return work(c); }\n"


def verdict_on(built: Built, texts: Mapping[str, str], image: bytes) -> Verdict:
    """Ask for everything in an image of a program, and judge."""
    known = read_known(built)
    objects = {path: item.code for path, item in known.items()}
    wanted = everything(objects.values())
    truth = Truth(built.named, [name for name in texts if name in built.objects or name.endswith("main.c")])
    return judge(ask(image, built, objects, wanted), wanted, truth, known)


def check(folder: Path, texts: Mapping[str, str], kit: Kit, least: float, *images: str) -> list[Verdict]:
    """Build, and judge every kind of image: nothing wrong, and at least so many of the functions found."""
    built = build(folder / "program", texts, kit)
    verdicts = [verdict_on(built, texts, (folder / "program" / name).read_bytes()) for name in images]
    for name, verdict in zip(images, verdicts, strict=True):
        assert not verdict.wrong, f"{name}: {some(verdict.wrong)}"
        assert verdict.recall >= least, f"{name}: {verdict}"
    return verdicts


# --- how an image is stripped ----------------------------------------------------------------------------------------


def without_sections(image: bytes) -> bytes:
    """No section headers at all, as sstrip leaves it (gABI: a loader does without them)."""
    data = bytearray(image)
    struct.pack_into("<Q", data, 0x28, 0)
    struct.pack_into("<HH", data, 0x3C, 0, 0)
    ends = []
    (at,) = struct.unpack_from("<Q", image, 0x20)
    (count,) = struct.unpack_from("<H", image, 0x38)
    for i in range(count):
        _, _, offset, _, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", image, at + 56 * i)
        ends.append(offset + size)
    return bytes(data[: max(ends)])


def command(*words: str) -> Callable[[Path, Path], bytes]:
    def made(named: Path, folder: Path) -> bytes:
        out = folder / "made"
        subprocess.run(
            [*words, str(named), "-o" if words[0] == "strip" else str(out)]
            + ([str(out)] if words[0] == "strip" else []),
            check=True,
        )
        return out.read_bytes()

    return made


def no_headers(named: Path, folder: Path) -> bytes:
    return without_sections(command("strip")(named, folder))


def linked_to_debug_file(named: Path, folder: Path) -> bytes:
    """The way of distributions: the names go to a file beside it."""
    debug = folder / "image.debug"
    subprocess.run(["objcopy", "--only-keep-debug", str(named), str(debug)], check=True)
    command("strip", "--strip-unneeded")(named, folder)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", str(folder / "made")], check=True)
    return (folder / "made").read_bytes()


STRIPPERS: Mapping[str, Callable[[Path, Path], bytes]] = {
    "no section headers": no_headers,
    "strip-unneeded": command("strip", "--strip-unneeded"),
    "strip -x": command("strip", "-x"),
    "strip -X": command("strip", "-X"),
    "strip-debug": command("strip", "-g"),
    "debuglink": linked_to_debug_file,
    "objcopy -S": command("objcopy", "-S"),
    "no eh_frame_hdr": command("objcopy", "-S", "-R", ".eh_frame_hdr"),
    "no comment": command("objcopy", "-S", "-R", ".comment", "-R", ".note.gnu.build-id"),
}


@pytest.mark.parametrize(
    "kit", [Kit(), Kit("clang", "-O2", "shared", "lld"), Kit("gcc", "-O2", "static", "bfd")], ids=str
)
def test_however_an_image_is_stripped(tmp_path: Path, kit: Kit) -> None:
    texts = generate(5, 2, 40)
    built = build(tmp_path / "program", texts, kit)
    complaints = []
    for name, strip in STRIPPERS.items():
        verdict = verdict_on(built, texts, strip(built.named, tmp_path))
        complaints += [f"{name}: {item}" for item in verdict.wrong]
        if verdict.recall < 0.75:
            complaints.append(f"{name}: {verdict}")
    assert not complaints, some(complaints)


# --- how an image is linked ------------------------------------------------------------------------------------------

LINKED = {
    "emit-relocs": Kit(link=("-Wl,--emit-relocs",)),
    "relr": Kit("clang", "-O2", "shared", "lld", (), ("-Wl,--pack-dyn-relocs=relr",)),
    "android relocations": Kit("clang", "-O2", "pie", "lld", (), ("-Wl,--pack-dyn-relocs=android",)),
    "sysv hash": Kit("gcc", "-O2", "shared", "bfd", ("-fno-plt",), ("-Wl,--hash-style=sysv", "-Wl,-z,now")),
    "gnu hash, lazy": Kit("gcc", "-O2", "shared", "lld", ("-fno-plt",), ("-Wl,--hash-style=gnu", "-Wl,-z,lazy")),
    "both hashes": Kit("gcc", "-O2", "shared", "gold", (), ("-Wl,--hash-style=both",)),
    "ibt": Kit("gcc", "-O2", "pie", "bfd", ("-fcf-protection",), ("-Wl,-z,ibtplt",)),
    "shuffled": Kit("gcc", "-O2", "pie", "lld", ("-ffunction-sections",), ("-Wl,--shuffle-sections=*=7",)),
    "prefixes kept": Kit("gcc", "-O2", "no-pie", "lld", (), ("-Wl,-z,keep-text-section-prefix",)),
    "no build id, no relax": Kit("gcc", "-O2", "pie", "bfd", (), ("-Wl,--build-id=none", "-Wl,--no-relax")),
    "medium model": Kit("gcc", "-O2", "no-pie", "bfd", ("-mcmodel=medium",)),
    "large model": Kit("gcc", "-O2", "no-pie", "bfd", ("-mcmodel=large",)),
    "folded by the compiler": Kit("gcc", "-O2", "pie", "bfd", ("-fipa-icf",)),
    "hot and cold": Kit("gcc", "-O2", "pie", "bfd", ("-freorder-functions", "-fno-toplevel-reorder")),
    "patchable entries": Kit("gcc", "-O2", "pie", "bfd", ("-fpatchable-function-entry=5",)),
    "profiled": Kit("gcc", "-O2", "pie", "bfd", ("-pg", "-mfentry")),
    "sanitized": Kit("gcc", "-O1", "pie", "bfd", ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")),
    "retpolines": Kit("clang", "-O2", "pie", "lld", ("-mretpoline",)),
    "thunks": Kit("gcc", "-O2", "pie", "bfd", ("-mindirect-branch=thunk",)),
}


@pytest.mark.parametrize("name", LINKED)
def test_however_an_image_is_linked(tmp_path: Path, name: str) -> None:
    # Relocations in Android's packed form are not read, so pointers contradict pre, and everything may be refused.
    check(tmp_path, generate(6, 2, 40), LINKED[name], 0.0 if name == "android relocations" else 0.7, "stripped")


# --- hand-made -------------------------------------------------------------------------------------------------------

HEADER = f"""
inline {NOINLINE} int shared(int x) {{ static int n = 3; n += x; return n * 7 + (x > 100 ? 9 : x / 3); }}
template <int N> {NOINLINE} int many(int x) {{ static const int t[] = {{1, 4, N, 9, 2, 6}}; return t[x % 6] + x * N; }}
struct B {{ virtual int f(int x) {{ return x * 3 + 77; }} virtual ~B() {{}} }};
"""


def plus_plus(name: str, more: str = "") -> str:
    return (
        f'{HEADER}{more}static {NOINLINE} int own(int x) {{ B b; B *p = &b; asm("" : "+r"(p)); return p->f(x) + 5; }}\n'
        f'extern "C" int {name}(int x) {{ return shared(x) + many<5>(x) + many<{len(name)}>(x + 1) + own(x); }}\n'
    )


@pytest.mark.parametrize(
    "kit", [Kit(), Kit("clang"), Kit("gcc", "-O0", "shared", "lld"), Kit("clang", "-O2", "no-pie")], ids=str
)
def test_copies_of_inline_functions_are_where_the_kept_one_is(tmp_path: Path, kit: Kit) -> None:
    texts = {
        "one.cc": plus_plus("one"),
        "second.cc": plus_plus("second"),
        "work.c": "int one(int); int second(int); int work(int x) { return one(x) + second(x); }\n",
        "main.c": MAIN,
    }
    check(tmp_path, texts, kit, 0.6, "plain", "stripped")


def test_a_copy_that_was_compiled_otherwise_is_not_the_one_that_runs(tmp_path: Path) -> None:
    """The first object's copy of a function is kept; the second object has other code for it (-D, another -O)."""
    other = plus_plus("second").replace("x / 3", "x / 5")
    texts = {
        "one.cc": plus_plus("one"),
        "second.cc": other,
        "work.c": "int one(int); int second(int); int work(int x) { return one(x) + second(x); }\n",
        "main.c": MAIN,
    }
    built = build(tmp_path / "program", texts, Kit())
    known = read_known(built)
    path = Path("/src/second.cc")
    for image in (built.plain, built.stripped):
        found = ask(image.read_bytes(), built, {path: known[path].code}, everything([known[path].code]))
        assert (path, "_Z6sharedi") not in found.functions, image.name
        assert [item.code for item in found.findings if item.symbol == "_Z6sharedi"]


TWICE = f"""
static int n = 5;
static {NOINLINE} int same(int x) {{ n += x; return n * 31 + (x > 7 ? x / 3 : x * 11); }}
int NAME(int x) {{ for (int i = 0; i < x; i++) n ^= i * 77 + CONSTANT; return same(x + 1) * 3 + same(x) + n; }}
"""


@pytest.mark.parametrize("kit", [Kit(), Kit("clang"), Kit("gcc", "-O2", "shared", "lld")], ids=str)
def test_files_of_one_name_in_two_directories(tmp_path: Path, kit: Kit) -> None:
    """STT_FILE has the last component alone, so that not even the symbol table tells their statics apart."""
    texts = {
        "a/util.c": TWICE.replace("NAME", "a").replace("CONSTANT", "1001"),
        "b/util.c": TWICE.replace("NAME", "b").replace("CONSTANT", "2002"),
        "work.c": "int a(int); int b(int); int work(int x) { return a(x) + b(x); }\n",
        "main.c": MAIN,
    }
    check(tmp_path, texts, kit, 0.5, "plain", "stripped")


@pytest.mark.parametrize("linker", ["bfd", "lld", "gold"])
def test_a_weak_definition_that_another_file_overrules(tmp_path: Path, linker: str) -> None:
    weak = f"__attribute__((weak)) {NOINLINE} int f(int x) {{ return x * VALUE + 5; }}\n"
    texts = {
        "weak.c": weak.replace("VALUE", "3") + "int other(int x) { return f(x) + 12; }\n",
        "strong.c": weak.replace("VALUE", "4").replace("__attribute__((weak))", ""),
        "work.c": "int f(int); int other(int); int work(int x) { return f(x) + other(x); }\n",
        "main.c": MAIN,
    }
    built = build(tmp_path / "program", texts, Kit("gcc", "-O2", "pie", linker))
    known = read_known(built)
    path = Path("/src/weak.c")
    for image in (built.plain, built.stripped):
        found = ask(image.read_bytes(), built, {path: known[path].code}, everything([known[path].code]))
        assert (path, "f") not in found.functions and (path, "f") not in found.absent, image.name


DROPPED = f"""
static {NOINLINE} int twin(int x) {{ return x * 31 + (x > 7 ? x / 3 : x * 11); }}
int NAME(int x) {{ return twin(x + 1) * CONSTANT; }}
"""


@pytest.mark.parametrize("linker", ["bfd", "lld", "gold"])
@pytest.mark.parametrize("which", ["plain", "stripped"])
@pytest.mark.parametrize("with_linked", [True, False])
def test_a_dropped_function_is_not_its_twin_of_another_file(
    tmp_path: Path, linker: str, which: str, with_linked: bool
) -> None:
    """--gc-sections took one of two equal functions away; asked by a fix of its file alone."""
    kit = Kit("gcc", "-O2", "pie", linker, ("-ffunction-sections",), ("-Wl,--gc-sections",))
    texts = {
        "gone.c": DROPPED.replace("NAME", "gone").replace("CONSTANT", "3") + "int stays(int x) { return x + 1; }\n",
        "kept.c": DROPPED.replace("NAME", "kept").replace("CONSTANT", "5"),
        "work.c": "int kept(int); int stays(int); int work(int x) { return kept(x) + stays(x); }\n",
        "main.c": MAIN,
    }
    built = build(tmp_path / "program", texts, kit)
    known = read_known(built)
    path = Path("/src/gone.c")
    found = ask(
        (tmp_path / "program" / which).read_bytes(),
        built if with_linked else None,
        {path: known[path].code},
        everything([known[path].code]),
    )
    assert (path, "twin") not in found.functions
    assert (path, "gone") not in found.functions


@pytest.mark.parametrize("level", ["all", "safe"])
@pytest.mark.parametrize("linker", ["lld", "gold"])
def test_folded_functions_are_told(tmp_path: Path, linker: str, level: str) -> None:
    """Identical code folding: whatever is found is where the folded code is, under every name of it."""
    kit = Kit("gcc", "-O2", "pie", linker, ("-ffunction-sections", "-fno-ipa-icf"), (f"-Wl,--icf={level}",))
    texts = {
        "one.c": TWICE.replace("NAME", "a")
        .replace("CONSTANT", "1001")
        .replace("static int n", "extern int n")
        .replace("= 5;", ";"),
        "two.c": TWICE.replace("NAME", "b").replace("CONSTANT", "1001").replace("static int n", "int n"),
        "work.c": "int a(int); int b(int); int work(int x) { return a(x) + b(x + 1); }\n",
        "main.c": MAIN,
    }
    check(tmp_path, texts, kit, 0.0, "plain", "stripped")


ASSEMBLER = """
 .file "hand.s"
 .text
helper: lea 3(%rdi,%rdi,4), %eax
 ret
 .globl by_hand
by_hand: push %rbx
 mov %edi, %ebx
 call helper
 add counter(%rip), %eax
 imul $77, %ebx, %ebx
 add %ebx, %eax
 incl counter(%rip)
 pop %rbx
 ret
 .data
counter: .long 7
 .section .note.GNU-stack,"",@progbits
"""


@pytest.mark.parametrize("kit", [Kit(), Kit("gcc", "-O2", "no-pie", "lld")], ids=str)
def test_assembler_without_types_sizes_and_unwind_tables(tmp_path: Path, kit: Kit) -> None:
    texts = {
        "hand.s": ASSEMBLER,
        "work.c": "int by_hand(int); int work(int x) { return by_hand(x) + 3; }\n",
        "main.c": MAIN,
    }
    check(tmp_path, texts, kit, 0.0, "plain", "stripped")
