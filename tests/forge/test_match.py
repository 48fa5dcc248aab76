"""Run-pre matching against images of the real linkers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from midflight.forge.matching import decode
from midflight.forge.matching.match import Wanted, match
from midflight.forge.model import Match, ObjectCode
from midflight.forge.objects import read_object
from midflight.image.elf import ElfFile

SECTIONS = ("-ffunction-sections", "-fdata-sections")


def sh(command: str, cwd: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def everything_in(code: ObjectCode) -> Wanted:
    path = code.path
    functions = frozenset((path, key) for key, atom in code.atoms.items() if atom.kind == "function")
    data = frozenset((path, key) for key, atom in code.atoms.items() if atom.kind != "function" and atom.name)
    return Wanted(functions, data)


def compile_and_match(
    tmp_path: Path,
    files: dict[str, str],
    pre: str,
    flags: str = "-O2",
    link: str = "",
    cc: str = "gcc",
    strip: bool = False,
    run_files: dict[str, str] | None = None,
) -> tuple[Match, ElfFile, ObjectCode]:
    """Link ``run_files`` (usually ``files``) plainly, compile ``pre`` of ``files`` by sections, and match all of it."""
    for name, text in {**files, **(run_files or {})}.items():
        (tmp_path / name).write_text(text)
    names = " ".join(sorted(files))
    sh(f"{cc} {flags} -c {names} && gcc -o run *.o {link} -Wl,--build-id", tmp_path)
    (tmp_path / pre).write_text(files[pre])
    sh(f"{cc} {flags} {' '.join(SECTIONS)} -c {pre} -o pre.object", tmp_path)
    if strip:
        sh("cp run named && strip run", tmp_path)
    code = read_object(tmp_path / "pre.object", tmp_path / pre)
    run = ElfFile.open(tmp_path / "run")
    return match(run, {code.path: code}, everything_in(code)), run, code


TWO_FILES = {
    "one.c": """
#include <stdio.h>
static int count; static const int table[] = {3, 1, 4, 1, 5};
static __attribute__((noinline)) int step(int x) { count += table[x % 5]; return printf("one %d\\n", count); }
int one(int x) { switch (x) { case 0: return step(1); case 1: return 7; case 2: puts("x"); return step(9);
  case 3: return count; case 4: return step(x) * 2; } return x > 100 ? one(x - 1) : step(x); }
""",
    "two.c": """
#include <stdio.h>
static int count; static const int table[] = {2, 7, 1, 8, 2};
static __attribute__((noinline)) int step(int x) { count += table[x % 5]; return printf("one %d\\n", count); }
int one(int); int two(int x) { return step(x) + one(x); }
int main(int argc, char **argv) { return two(argc); }
""",
}


def test_every_function_and_variable_is_found_where_the_symbol_table_has_it(tmp_path: Path) -> None:
    found, run, _code = compile_and_match(tmp_path, TWO_FILES, "one.c")
    assert found.findings == ()
    for (_, key), place in {**found.functions, **found.data}.items():
        symbols = [s for s in run.symbols_by_name[key] if s.file in ("one.c", None)]
        assert [s.value for s in symbols] == [place.vaddr]
    assert {"step", "one"} == {key for _, key in found.functions}
    assert {"count", "table"} == {key for _, key in found.data}


def test_statics_of_the_same_name_are_told_apart_by_what_they_refer_to(tmp_path: Path) -> None:
    """Both files have step, count and table; the bytes of step are equal but for relocations."""
    one, run, _ = compile_and_match(tmp_path, TWO_FILES, "one.c")
    sh(f"gcc -O2 {' '.join(SECTIONS)} -c two.c -o two.object", tmp_path)
    code = read_object(tmp_path / "two.object", tmp_path / "two.c")
    two = match(run, {code.path: code}, everything_in(code))
    assert two.findings == ()
    assert one.functions[tmp_path / "one.c", "step"].vaddr != two.functions[tmp_path / "two.c", "step"].vaddr
    assert one.data[tmp_path / "one.c", "table"].vaddr != two.data[tmp_path / "two.c", "table"].vaddr


def test_without_any_symbols_the_contents_and_references_suffice(tmp_path: Path) -> None:
    found, _, _ = compile_and_match(tmp_path, TWO_FILES, "one.c", strip=True)
    assert found.findings == ()
    with ElfFile.open(tmp_path / "named") as named:
        for (_, key), place in {**found.functions, **found.data}.items():
            assert place.vaddr in [s.value for s in named.symbols_by_name[key] if s.file in ("one.c", None)], key


@pytest.mark.parametrize("change", ["(x) * 2", "9)", "{3, 1", '"x"'])
def test_a_run_from_another_source_is_refused(tmp_path: Path, change: str) -> None:
    """One constant, one argument, one byte of a table, one string: each is noticed."""
    other = {"(x) * 2": "(x) * 3", "9)": "8)", "{3, 1": "{3, 2", '"x"': '"y"'}[change]
    assert change in TWO_FILES["one.c"]
    run_files = {"one.c": TWO_FILES["one.c"].replace(change, other, 1)}
    found, _, _ = compile_and_match(tmp_path, TWO_FILES, "one.c", run_files=run_files)
    assert found.findings
    assert {item.code for item in found.findings} <= {"MF130", "MF133"}
    assert all(item.file.endswith("one.c") for item in found.findings)


def test_other_flags_are_refused_and_the_first_difference_is_named(tmp_path: Path) -> None:
    for name, text in TWO_FILES.items():
        (tmp_path / name).write_text(text)
    sh("gcc -O1 one.c two.c -o run", tmp_path)
    sh("gcc -O2 -c one.c -o pre.object", tmp_path)
    code = read_object(tmp_path / "pre.object", tmp_path / "one.c")
    with ElfFile.open(tmp_path / "run") as run:
        found = match(run, {code.path: code}, everything_in(code))
    reasons = {item.symbol: item.reason for item in found.findings if item.code == "MF130"}
    assert "one" in reasons
    assert "pre has" in reasons["one"] and "run has" in reasons["one"]


def test_equal_functions_that_nothing_tells_apart_are_ambiguous(tmp_path: Path) -> None:
    same = "static __attribute__((noinline,used)) int same(int x) { return x * 12345 + 678901 * (x ^ 4242) + x / 7; }\n"
    files = {"one.c": same, "two.c": same + "int main(void) { return 0; }\n"}
    found, _, _ = compile_and_match(tmp_path, files, "one.c", strip=True)
    assert [item.code for item in found.findings] == ["MF131"]


def test_a_function_that_was_inlined_everywhere_is_absent_not_missing(tmp_path: Path) -> None:
    files = {
        "one.c": "int gone(int x) { return x * 77; }\nint kept(int x) { return gone(x) + 1; }\n",
        "two.c": "int kept(int); int main(int c, char **v) { return kept(c); }\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    sh(f"gcc -O2 {' '.join(SECTIONS)} -c one.c -o pre.object", tmp_path)
    sh(f"gcc -O2 {' '.join(SECTIONS)} one.c two.c -Wl,--gc-sections -o run", tmp_path)
    code = read_object(tmp_path / "pre.object", tmp_path / "one.c")
    with ElfFile.open(tmp_path / "run") as run:
        found = match(run, {code.path: code}, everything_in(code))
    assert found.findings == ()
    assert found.absent == {(code.path, "gone")}
    assert (code.path, "kept") in found.functions


def test_code_that_the_linker_folded_is_refused(tmp_path: Path) -> None:
    source = """
int number;
__attribute__((noinline)) int first(int x) { return x * 31 + number; }
__attribute__((noinline)) int second(int x) { return x * 31 + number; }
int main(int c, char **v) { return first(c) + second(c); }
"""
    (tmp_path / "one.c").write_text(source)
    sh(f"gcc -O2 -fno-ipa-icf {' '.join(SECTIONS)} -c one.c -o pre.object", tmp_path)
    sh("gcc -fuse-ld=gold -Wl,--icf=all pre.object -o run", tmp_path)
    code = read_object(tmp_path / "pre.object", tmp_path / "one.c")
    with ElfFile.open(tmp_path / "run") as run:
        assert len({run.symbols_by_name[n][0].value for n in ("first", "second")}) == 1
        found = match(run, {code.path: code}, Wanted(frozenset({(code.path, "first")})))
    assert [item.code for item in found.findings] == ["MF134"]
    assert "second" in found.findings[0].reason


THREADS = """
extern __thread int elsewhere; __thread int mine = 3; static __thread int hidden = 4;
int all(int x) { return elsewhere + mine++ + hidden++ + x; }
int main(int c, char **v) { return all(c); }
"""


@pytest.mark.parametrize("flags", ["-fPIC", "-fPIE", "-fno-pie", "-fPIC -fno-plt", "-fPIC -mtls-dialect=gnu2"])
@pytest.mark.parametrize("where", ["here", "library"])
def test_relaxed_thread_local_accesses_are_seen_through(tmp_path: Path, flags: str, where: str) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "e.c").write_text("__thread int elsewhere = 5;\n")
    link = "-no-pie" if "no-pie" in flags else ""
    if where == "library":
        sh("gcc -fPIC -shared library/e.c -o libe.so", tmp_path)
        link += " -L. -le -Wl,-rpath,."
    files = {"one.c": THREADS}
    if where == "here":
        files["e.c"] = "__thread int elsewhere = 5;\n"
    found, run, code = compile_and_match(tmp_path, files, "one.c", flags=f"-O2 {flags}", link=link)
    assert found.findings == ()
    assert (code.path, "all") in found.functions
    for name in ("mine", "hidden", *(["elsewhere"] if where == "here" else [])):
        symbol = run.symbol(name)
        assert symbol is not None
        key = f"{code.path}:{name}" if name == "hidden" else name
        assert found.tls[key] == run.thread_pointer_offset(symbol.value)


GOT = """
#include <string.h>
extern int far_data; extern int far_function(int); int (*pointer)(int);
int uses(int x) {
  pointer = far_function; if (pointer == far_function) x += far_data; x ^= far_data; far_data = x;
  if (&far_data == 0) return 1;
  return far_function(x) + (int)strlen("four");
}
int leaves(int x) { return far_function(x + far_data); }
int main(int c, char **v) { return uses(c) + leaves(c); }
"""


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("linker", ["bfd", "gold"])
@pytest.mark.parametrize("link", ["-pie", "-no-pie"])
def test_relaxed_got_accesses_are_seen_through(tmp_path: Path, cc: str, linker: str, link: str) -> None:
    files = {"one.c": GOT, "far.c": "int far_data = 6; int far_function(int x) { return x * 3; }\n"}
    found, _run, _code = compile_and_match(
        tmp_path, files, "one.c", flags="-O2 -fPIC -fno-plt", link=f"-fuse-ld={linker} {link}", cc=cc
    )
    assert found.findings == ()
    assert {"uses", "leaves", "main"} == {key for _, key in found.functions}


def test_short_jumps_and_padding_may_differ(tmp_path: Path) -> None:
    """By sections, a tail call to a neighbour is a near jump with a relocation; in one section it is a short one."""
    source = """
static __attribute__((noinline)) int leaf(int x) { return x * 3 + 1; }
int tail(int x) { return leaf(x + 5); }
int main(int c, char **v) { return tail(c); }
"""
    found, _run, code = compile_and_match(tmp_path, {"one.c": source}, "one.c", flags="-O2")
    assert found.findings == ()
    assert found.functions[code.path, "tail"].size < code.atoms["tail"].size


def test_a_jump_to_another_place_is_a_difference() -> None:
    pre = bytes.fromhex("85ff 7402 ffc0 ffc3 c3".replace(" ", ""))
    same = decode.compare_code(pre, (), pre + b"\x90" * 8, 0x1000)
    assert isinstance(same, decode.Same) and same.size == len(pre)
    other = bytes.fromhex("85ff 7404 ffc0 ffc3 c3".replace(" ", ""))
    assert isinstance(decode.compare_code(pre, (), other, 0x1000), decode.Different)
    near = bytes.fromhex("85ff 0f8402000000 ffc0 ffc3 c3".replace(" ", ""))
    longer = decode.compare_code(pre, (), near, 0x1000)
    assert isinstance(longer, decode.Same) and longer.size == len(near)


@pytest.mark.parametrize("strip", [False, True])
def test_a_jump_over_a_lock_prefix(tmp_path: Path, strip: bool) -> None:
    # glibc's malloc: `je 1f; lock; 1: cmpxchg`
    files = {
        "one.c": """
int count(int *p, int many, int x) {
  for (int i = 0; i < x; i++) {
    __asm__ volatile("testl %1, %1; je 1f; lock; 1: addl $3, %0" : "+m"(*p) : "r"(many) : "cc");
    x -= *p * 7 + many;
  }
  return x ^ many;
}
int main(int c, char **v) { return count(&c, c, 9); }
"""
    }
    found, _run, _code = compile_and_match(tmp_path, files, "one.c", strip=strip)
    assert found.findings == ()
    assert {key for _, key in found.functions} == {"count", "main"}
    other = {"one.c": files["one.c"].replace("je 1f; lock; 1:", "je 1f; 1: lock;")}
    (tmp_path / "other").mkdir()
    found, _run, _code = compile_and_match(tmp_path / "other", files, "one.c", strip=strip, run_files=other)
    assert any(item.symbol == "count" and item.code in ("MF130", "MF132") for item in found.findings)
    assert "count" not in {key for _, key in found.functions}


def test_a_thread_local_variable_is_known_by_each_of_its_names(tmp_path: Path) -> None:
    # glibc's errno is __libc_errno for its own objects.
    (tmp_path / "one.c").write_text(
        'extern __thread int inner __attribute__((visibility("hidden")));\n'
        "int fail(int x) { if (x > 3) { inner = x * 7; return -1; } return x + 1; }\n"
    )
    (tmp_path / "two.c").write_text(
        "__thread int outer;\n"
        'extern __thread int inner __attribute__((alias("outer"), visibility("hidden")));\n'
        "int last(void) { return outer; }\n"
    )
    flags = "-O2 -fPIC -ftls-model=initial-exec"
    sh(f"gcc {flags} -c one.c two.c && gcc -shared -o run one.o two.o -Wl,--build-id && strip run", tmp_path)
    codes = {}
    for name in ("one", "two"):
        sh(f"gcc {flags} {' '.join(SECTIONS)} -c {name}.c -o {name}.object", tmp_path)
        code = read_object(tmp_path / f"{name}.object", tmp_path / f"{name}.c")
        codes[code.path] = code
    with ElfFile.open(tmp_path / "run") as run:
        found = match(run, codes, everything_in(codes[tmp_path / "one.c"]))
    assert found.tls_slots["inner"] == found.tls_slots["outer"]
