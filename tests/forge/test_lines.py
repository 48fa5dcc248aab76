"""Line numbers alone are no change; constants that look like line numbers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.difference.diff import difference

from .object_pairs import Pair, compile_pair

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])

HEADER = """
extern void fail(const char *, const char *, int) __attribute__((noreturn));
extern void note(int, int, int, int, int, int, int);
extern int work(int);
#define CHECK(x) ((x) ? (void)0 : fail(#x, "unit.c", __LINE__))
"""

BODY = """
int first(int x) {
  CHECK(x > 3);
  x = work(x);
  CHECK(x < 900);
  return x;
}
int second(int x) { return work(x) + 7; }
"""


def shifted(directory: Path, body_before: str, body_after: str, compiler: str, lines: int) -> Pair:
    """Compile with the body moved down by some lines; the body starts at line 100 before."""
    before = HEADER + "\n" * (100 - HEADER.count("\n")) + body_before
    after = HEADER + "\n" * (100 - HEADER.count("\n") + lines) + body_after
    return compile_pair(directory, before, after, compiler)


@BOTH
@pytest.mark.parametrize("lines", [1, 3, 250, -20])
def test_shifted_asserts_are_no_change(tmp_path: Path, compiler: str, lines: int) -> None:
    pair = shifted(tmp_path, BODY, BODY, compiler, lines)
    assert pair.diff.changed == ()
    assert pair.diff.line_only == ("first",)
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


@BOTH
def test_real_change_beside_shifted_asserts(tmp_path: Path, compiler: str) -> None:
    pair = shifted(tmp_path, BODY, BODY.replace("900", "901"), compiler, 3)
    assert pair.changed == {"first"}
    assert pair.diff.line_only == ()


@BOTH
def test_line_number_on_the_stack(tmp_path: Path, compiler: str) -> None:
    body = "int f(int x) { note(1, 2, 3, 4, 5, 6, __LINE__); return work(x); }\n"
    body = "\n" * 60 + body
    pair = shifted(tmp_path, body, body, compiler, 5)
    assert pair.diff.line_only == ("f",)


@BOTH
def test_constant_that_moves_like_its_line_is_a_change(tmp_path: Path, compiler: str) -> None:
    """The number in the call is that of its line, before and after: only the source tells that it is written out."""
    body = "int f(int x) { note(1, 2, NUMBER, 4, 5, 6, 7); return work(x); }\n"
    pair = shifted(tmp_path, body.replace("NUMBER", "101"), body.replace("NUMBER", "104"), compiler, 3)
    assert pair.changed == {"f"}
    assert pair.diff.line_only == ()


@BOTH
def test_constant_behind_a_macro_that_moves_like_its_line_is_a_change(tmp_path: Path, compiler: str) -> None:
    body = "int f(int x) { note(1, 2, LIMIT, 4, 5, 6, 7); return work(x); }\n"
    before = HEADER + "#define LIMIT 0x65\n" + "\n" * (99 - HEADER.count("\n")) + body
    after = HEADER + "#define LIMIT 0x68\n" + "\n" * (102 - HEADER.count("\n")) + body
    pair = compile_pair(tmp_path, before, after, compiler)
    assert pair.changed == {"f"}


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        "int f(int x) { return work(x) + __LINE__; }\n",
        "int f(int x) { return x > __LINE__ ? work(x) : 0; }\n",
        "int f(int x) { work(x); return __LINE__; }\n",
    ],
)
def test_line_numbers_that_are_computed_with_are_changes(tmp_path: Path, compiler: str, body: str) -> None:
    pair = shifted(tmp_path, "\n" * 40 + body, "\n" * 40 + body, compiler, 3)
    assert pair.changed == {"f"}


@BOTH
@pytest.mark.parametrize(
    ("way", "same"),
    [
        ("test %%edi, %%edi; jne 1f; call fail; 1:", True),  # loaded before it is known whether it is needed
        ("test %%edi, %%edi; jne 1f; call fail; 1: nop; test %%edi, %%edi; je 2f; call work; 2:", True),
        ("test %%edi, %%edi; jne 1f; call fail; 1: mov %%ecx, %%eax", False),
        ("test %%edi, %%edi; jne 1f; call fail; 1: add %%rcx, counter(%%rip)", False),
        ("test %%edi, %%edi; jne 1f; call fail; 1: mov table(,%%rcx,4), %%eax", False),
        ("test %%edi, %%edi; jne 1f; call fail; 1: mov $0, %%cl; mov %%ecx, %%eax", False),
        ("nop; nop", False),  # no call at all
    ],
)
def test_line_number_on_all_ways_to_a_call(tmp_path: Path, compiler: str, way: str, same: bool) -> None:
    body = f'int counter, table[9]; int f(int x) {{ __asm__ volatile ("mov %0, %%ecx; {way}" :: "i"(__LINE__)'
    body = "\n" * 40 + body + ' : "rax", "rcx", "memory"); return x; }\n'
    pair = shifted(tmp_path, body, body, compiler, 3)
    assert pair.diff.line_only == (("f",) if same else ())
    assert pair.changed == (set() if same else {"f"})


INLINED = """
static inline __attribute__((always_inline)) int check(int x, const char *what, int line) {
  if (x < 0) { fail(what, "unit.c", line); }
  return work(x);
}
int f(int x) {
  x = check(x, "first", __LINE__);
  x += check(work(x),
             "second",
             __LINE__ OFF);
  return x;
}
"""


@BOTH
@pytest.mark.parametrize("lines", [1, 9, -3])
def test_line_of_a_call_that_was_inlined(tmp_path: Path, compiler: str, lines: int) -> None:
    """The instructions have the lines of the callee; the call is written over several lines."""
    body = "\n" * 60 + INLINED.replace("OFF", "")
    pair = shifted(tmp_path, body, body, compiler, lines)
    assert pair.diff.line_only == ("f",)
    assert pair.diff.changed == ()


@BOTH
def test_another_line_of_a_call_that_was_inlined_is_a_change(tmp_path: Path, compiler: str) -> None:
    body = "\n" * 60 + INLINED
    pair = shifted(tmp_path, body.replace("OFF", ""), body.replace("OFF", "+ 1"), compiler, 3)
    assert pair.changed == {"f"}


@BOTH
def test_other_line_than_the_table_says_is_a_change(tmp_path: Path, compiler: str) -> None:
    """Both numbers belong to lines of the function, but the second one is not the line of that call."""
    body = "int f(int x) {\n  note(1, 2, __LINE__ + OFF, 4, 5, 6, 7);\n  x = work(x);\n  return work(x);\n}\n"
    body = "\n" * 40 + body
    pair = shifted(tmp_path, body.replace("OFF", "0"), body.replace("OFF", "1"), compiler, 3)
    assert pair.changed == {"f"}


@BOTH
def test_without_debug_information_it_is_a_change(tmp_path: Path, compiler: str) -> None:
    before = HEADER + BODY
    pair = compile_pair(tmp_path, before, "\n\n" + before, compiler, flags=("-g0",))
    assert pair.changed == {"first"}


@BOTH
def test_without_the_source_it_is_a_change(tmp_path: Path, compiler: str) -> None:
    before = HEADER + BODY
    pair = compile_pair(tmp_path, before, "\n\n" + before, compiler)
    assert pair.diff.line_only == ("first",)
    (tmp_path / "unit.c").unlink()
    assert {new for _, new in difference(pair.pre, pair.post).changed} == {"first"}


def test_asserts_in_a_cold_part(tmp_path: Path) -> None:
    body = """
    extern void __attribute__((cold)) complain(int, const char *);
    int job(int x) {
      if (__builtin_expect(x < 0, 0)) { complain(__LINE__, "one"); complain(__LINE__, "two"); return work(-x) + 1; }
      return work(x);
    }
    """
    pair = shifted(tmp_path, "\n" * 30 + body, "\n" * 30 + body, "gcc", 7)
    assert "job.cold" in pair.pre.atoms
    assert pair.diff.changed == ()
    assert pair.diff.line_only == ("job.cold",)


def test_main_with_asserts_is_not_refused(tmp_path: Path) -> None:
    body = "int main(int argc, char **argv) { CHECK(argc > 1); return work(argc); }\n"
    pair = shifted(tmp_path, body, body, "gcc", 2)
    assert pair.diff.line_only == ("main",)
    assert pair.codes == set()
