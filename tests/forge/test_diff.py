"""Pre-post differencing of real objects: each test is a small source, the fix, and exactly what must come out."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.difference.diff import difference
from midflight.forge.objects import read_object

from .object_pairs import compile_object, compile_pair

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])
BOTH_CXX = pytest.mark.parametrize("compiler", ["g++", "clang++"])

FUNCTION = """
extern int limit(int);
int first(int x) { return limit(x) + 40; }
int second(int x) { return limit(x) * 3; }
"""


@BOTH
def test_same_source_has_no_difference(tmp_path: Path, compiler: str) -> None:
    pair = compile_pair(tmp_path, FUNCTION, FUNCTION, compiler)
    assert (pair.diff.changed, pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), (), ())
    assert pair.diff.correlation == {"first": "first", "second": "second"}


@BOTH
def test_changed_constant_in_code(tmp_path: Path, compiler: str) -> None:
    pair = compile_pair(tmp_path, FUNCTION, FUNCTION.replace("40", "41"), compiler)
    assert pair.diff.changed == (("first", "first"),)
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


@BOTH
def test_changed_macro_changes_all_its_users(tmp_path: Path, compiler: str) -> None:
    source = """
    #define MAX 64
    int a(int x) { return x > MAX; }
    int b(int x) { return x / MAX; }
    int c(int x) { return -x; }
    """
    pair = compile_pair(tmp_path, source, source.replace("64", "96"), compiler)
    assert pair.changed == {"a", "b"}
    assert not pair.diff.findings


@BOTH
def test_other_callee_is_a_change(tmp_path: Path, compiler: str) -> None:
    after = FUNCTION.replace("limit(x) * 3", "first(x) * 3").replace("int first", "__attribute__((noinline)) int first")
    before = FUNCTION.replace("int first", "__attribute__((noinline)) int first")
    pair = compile_pair(tmp_path, before, after, compiler)
    assert pair.changed == {"second"}


@BOTH
def test_inlined_static_function_changes_its_callers(tmp_path: Path, compiler: str) -> None:
    source = """
    static inline int clamp(int x) { return x > 10 ? 10 : x; }
    int user(int x) { return clamp(x) * 2; }
    int other(int x) { return x * 2; }
    """
    pair = compile_pair(tmp_path, source, source.replace("x > 10 ? 10", "x > 9 ? 9"), compiler)
    assert pair.changed == {"user"}
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


@BOTH
def test_new_function_static_and_global(tmp_path: Path, compiler: str) -> None:
    after = FUNCTION.replace(
        "int second",
        "static int seen;\nint total = 5;\n__attribute__((noinline)) static "
        "int check(int x) { total += x; return ++seen + x; }\nint second",
    )
    after = after.replace("limit(x) * 3", "limit(check(x)) * 3")
    pair = compile_pair(tmp_path, FUNCTION, after, compiler)
    assert pair.changed == {"second"}
    assert set(pair.diff.new) == {"seen", "total", "check"}
    assert not pair.diff.findings


@BOTH
def test_string_change_changes_its_user_alone(tmp_path: Path, compiler: str) -> None:
    source = """
    extern void say(const char *);
    void hello(void) { say("hello"); }
    void bye(void) { say("bye"); say("world"); }
    """
    pair = compile_pair(tmp_path, source, source.replace('"world"', '"you"'), compiler)
    assert pair.diff.changed == (("bye", "bye"),)
    assert (pair.diff.new, pair.diff.findings) == ((), ())


@BOTH
def test_moved_strings_are_no_change(tmp_path: Path, compiler: str) -> None:
    before = 'extern void say(const char *);\nvoid a(void) { say("aaa"); }\nvoid b(void) { say("bbb"); }\n'
    after = 'extern void say(const char *);\nvoid c(void) { say("longer than those"); }\n' + before.split("\n", 1)[1]
    pair = compile_pair(tmp_path, before, after, compiler)
    assert pair.diff.changed == ()
    assert pair.diff.new == ("c",)


@BOTH
def test_pointer_to_before_a_string_compares_by_content(tmp_path: Path, compiler: str) -> None:
    """Compilers make it of a loop that counts before it looks."""
    source = """
    extern void say(const char *);
    void hello(void) { say("hello" - 1); }
    void bye(void) { say("bye" - 1); }
    """
    pair = compile_pair(tmp_path, source, source.replace('"bye"', '"you"'), compiler, flags=("-w",))
    assert pair.changed == {"bye"}
    pair = compile_pair(tmp_path, source, source.replace('"bye" - 1', '"bye" - 2'), compiler, flags=("-w",))
    assert pair.changed == {"bye"}


@BOTH
def test_floating_point_constant_compares_by_content(tmp_path: Path, compiler: str) -> None:
    source = "double a(double x) { return x * 1.25; }\ndouble b(double x) { return x * 2.75; }\n"
    pair = compile_pair(tmp_path, source, source.replace("2.75", "2.5"), compiler)
    assert pair.changed == {"b"}
    moved = compile_pair(tmp_path, source, "double z(double x) { return x / 0.3; }\n" + source, compiler)
    assert moved.diff.changed == ()


SWITCH = """
extern int act(int);
int choose(int x) {
  switch (x) {
    case 0: return act(3); case 1: return act(1) + 1; case 2: return act(4) + 7; case 3: return act(5) * 2;
    case 4: return act(9) - 1; case 5: return act(2) ^ 4; case 6: return act(6) | 1;
  }
  return act(0);
}
int other(int x) { return act(x); }
"""


@BOTH
def test_jump_table_belongs_to_its_function(tmp_path: Path, compiler: str) -> None:
    pair = compile_pair(tmp_path, SWITCH, "int before;\n" + SWITCH, compiler)
    assert pair.diff.changed == ()
    tables = [a for a in pair.pre.atoms.values() if a.kind == "rodata" and a.references]
    assert [a.parent for a in tables] == ["choose"]


@BOTH
def test_jump_table_alone_changes_its_function(tmp_path: Path, compiler: str) -> None:
    """Two cases swapped: the code is the same, only the table leads elsewhere."""
    swapped = SWITCH.replace("case 0:", "case X:").replace("case 3:", "case 0:").replace("case X:", "case 3:")
    pair = compile_pair(tmp_path, SWITCH, swapped, compiler)
    assert pair.changed == {"choose"}
    assert not pair.diff.findings


@BOTH
def test_value_table_of_a_switch(tmp_path: Path, compiler: str) -> None:
    """gcc's CSWTCH.N, clang's switch.table.f: unnumbered or numbered, it goes along with its function."""
    source = (
        "int weight(int x) { switch (x) { case 0: return 7; case 1: return 31; case 2: return 5; case 3: return 90;"
        " case 4: return 2; case 5: return 77; } return 0; }\nint other(int x) { return -x; }\n"
    )
    pair = compile_pair(tmp_path, source, source.replace("90", "91"), compiler)
    assert pair.changed == {"weight"}
    assert not pair.diff.findings


COUNTERS = """
extern int use(int *);
int alpha(int x) { static int count = 1; count += x; return use(&count); }
int beta(int x) { static int count = 1; count += x * 2; return use(&count); }
"""


@BOTH
def test_numbered_statics_follow_their_functions(tmp_path: Path, compiler: str) -> None:
    """A new function before the others moves all the numbers that the compiler gives to static locals."""
    extra = "int gamma(int x) { static int count = 1; count += x * 5; return use(&count); }\n"
    after = COUNTERS.replace("int alpha", extra + "int alpha").replace("x * 2", "x * 4")
    pair = compile_pair(tmp_path, COUNTERS, after, compiler)
    assert pair.changed == {"beta"}
    assert not pair.diff.findings
    owners = {}
    for side, code in (("pre", pair.pre), ("post", pair.post)):
        for function in ("alpha", "beta", "gamma"):
            if function in code.atoms:
                owners[side, function] = next(
                    r.atom for r in code.atoms[function].references if r.atom and "count" in r.atom
                )
    assert pair.diff.correlation[owners["post", "alpha"]] == owners["pre", "alpha"]
    assert pair.diff.correlation[owners["post", "beta"]] == owners["pre", "beta"]
    assert set(pair.diff.new) == {"gamma", owners["post", "gamma"]}


def test_static_of_an_inlined_function_keeps_its_value(tmp_path: Path) -> None:
    source = """
    static int next(void) { static int id = 7; return id++; }
    int a(int x) { return next() + x; }
    int b(int x) { return next() * x; }
    """
    pair = compile_pair(tmp_path, source, source.replace("+ x", "+ x + 1"))
    assert pair.changed == {"a"}
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


def test_second_static_of_the_same_name_is_not_guessed(tmp_path: Path) -> None:
    before = "extern int use(int *);\nint f(int x) { if (x) { static int n; return use(&n); } return 0; }\n"
    after = before.replace("return 0;", "{ static int n; return use(&n) + 1; }")
    pair = compile_pair(tmp_path, before, after)
    assert pair.changed == {"f"}
    assert {code for code, _ in pair.codes} == {"MF118"}


def test_renamed_static_function_with_equal_code(tmp_path: Path) -> None:
    before = (
        "extern int g(int, int);\n__attribute__((noinline)) static int old_name(int x) { return g(x, 3) + g(x, 4); }\n"
        "int user(int x) { return old_name(x); }\n"
    )
    pair = compile_pair(tmp_path, before, before.replace("old_name", "new_name"))
    assert pair.diff.changed == ()
    assert pair.diff.correlation["new_name"] == "old_name"
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


def test_global_function_becomes_static_and_back(tmp_path: Path) -> None:
    before = """
    extern int g(int);
    __attribute__((noinline)) int f(int x) { return g(x) + 1; }
    int u(int x) { return f(x); }
    """
    after = before.replace("int f(", "static int f(")
    for one, other in ((before, after), (after, before)):
        pair = compile_pair(tmp_path, one, other)
        assert pair.diff.changed == ()
        assert (pair.diff.new, pair.diff.gone) == ((), ())


COLD = """
extern void __attribute__((cold)) complain(const char *, int);
extern int work(int);
int job(int x) {
  if (__builtin_expect(x < 0, 0)) { complain("negative", 3); complain("twice", 4); return work(-x) + 1; }
  return work(x);
}
"""


def test_change_in_the_cold_part_changes_the_function(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, COLD, COLD.replace("work(-x) + 1", "work(-x) + 2"))
    assert "job.cold" in pair.pre.atoms
    assert pair.pre.atoms["job.cold"].parent == "job"
    assert pair.changed == {"job", "job.cold"}
    assert not pair.diff.findings


def test_change_in_the_hot_part_takes_the_cold_part_along(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, COLD, COLD.replace("return work(x);", "return work(x) ^ 5;"))
    assert pair.changed == {"job", "job.cold"}


def test_constprop_clone(tmp_path: Path) -> None:
    source = """
    extern int g(int, int);
    __attribute__((noinline)) static int f(int x, int mode) { return mode == 3 ? g(x, 1) + g(x, 5) : g(x, 2); }
    int a(int x) { return f(x, 3); }
    int b(int x) { return f(x + 1, 3); }
    """
    pair = compile_pair(tmp_path, source, source.replace("g(x, 5)", "g(x, 6)"))
    assert "f.constprop.0" in pair.pre.atoms
    assert pair.changed == {"f.constprop.0"}
    assert not pair.diff.findings


def test_isra_clone(tmp_path: Path) -> None:
    source = """
    struct pair { int a, b; };
    extern int g(int);
    __attribute__((noinline)) static int f(struct pair *p, int unused) { return g(p->a) + 4; }
    int a(struct pair *p) { return f(p, 1); }
    int b(struct pair *p) { return f(p, 2) + 1; }
    """
    pair = compile_pair(tmp_path, source, source.replace("+ 4", "+ 6"))
    assert any(".isra" in key for key in pair.pre.atoms)
    assert len(pair.changed) == 1
    assert ".isra" in pair.changed.pop()


def test_static_function_whose_clone_appears_changes_the_callers(tmp_path: Path) -> None:
    before = """
    extern int g(int, int);
    __attribute__((noinline)) static int f(int x, int mode) { return mode == 3 ? g(x, 1) : g(x, 2); }
    int a(int x) { return f(x, 3); }
    int b(int x, int y) { return f(x, y); }
    """
    pair = compile_pair(tmp_path, before, before.replace("f(x, y)", "f(x, 3) + y"))
    assert pair.changed == {"a", "b"}
    assert pair.diff.gone == ("f",)
    assert pair.diff.new == ("f.constprop.0",)
    assert not pair.diff.findings


# --- data ----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("before", "after", "code", "symbol"),
    [
        ("int limit = 3;", "int limit = 4;", "MF110", "limit"),
        ("int limit;", "int limit = 4;", "MF110", "limit"),
        ("int a, b, *p = &a;", "int a, b, *p = &b;", "MF110", "p"),
        ('char *s[] = {"a", "b"};', 'char *s[] = {"a", "c"};', "MF110", "s"),
        ("int table[4] = {1};", "int table[5] = {1};", "MF116", "table"),
        ("char b[8];", "char b[8] __attribute__((aligned(64)));", "MF116", "b"),
        ("const int limit = 3;", "const int limit = 4;", "MF115", "limit"),
        ("int limit = 3;", "const int limit = 3;", "MF153", "limit"),
        ("", "__thread int t; int *at(void) { return &t; }", "MF113", "t"),
        ("__thread int t = 1;", "__thread int t = 2;", "MF110", "t"),
        (
            "extern void f(void);",
            "extern void f(void); __attribute__((constructor)) void begin(void) { f(); }",
            "MF114",
            "begin",
        ),
        (
            '__attribute__((section("probes"))) int one = 1;',
            '__attribute__((section("probes"))) int one = 1, two = 2;',
            "MF151",
            "two",
        ),
    ],
)
def test_data_that_cannot_be_patched(
    tmp_path: Path, compiler: str, before: str, after: str, code: str, symbol: str
) -> None:
    pair = compile_pair(tmp_path, before + "\nint user;\n", after + "\nint user;\n", compiler)
    assert (code, symbol) in pair.codes
    assert {c for c, _ in pair.codes} == {code}


def test_tentative_definitions_compare_by_size(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, "int a[3];", "int a[4]; int b;", flags=("-fcommon",))
    assert pair.codes == {("MF116", "a")}
    assert pair.diff.new == ("b",)
    assert pair.post.common == {"a", "b"}


@BOTH
def test_local_constant_goes_along_with_its_functions(tmp_path: Path, compiler: str) -> None:
    source = """
    static const int primes[9] = {2, 3, 5, 7, 11, 13, 17, 20, 23};
    int a(int x) { return primes[x & 7]; }
    int b(int x) { return primes[x & 3] + 1; }
    int c(int x) { return x; }
    """
    pair = compile_pair(tmp_path, source, source.replace("20", "19"), compiler)
    assert pair.diff.replaced_constants == (("primes", "primes"),)
    assert pair.changed == {"a", "b"}
    assert not pair.diff.findings


@BOTH
def test_local_constant_that_data_points_to_is_refused(tmp_path: Path, compiler: str) -> None:
    source = """
    static const int primes[9] = {2, 3, 5, 7, 11, 13, 17, 20, 23};
    const int *chosen = primes;
    int a(int x) { return primes[x & 7]; }
    """
    pair = compile_pair(tmp_path, source, source.replace("20", "19"), compiler)
    assert pair.codes == {("MF115", "primes")}
    assert "chosen" in pair.reason("MF115")


@BOTH
def test_changed_constant_behind_a_constant_table(tmp_path: Path, compiler: str) -> None:
    source = """
    static const int odd[3] = {1, 3, 6};
    static const int even[3] = {2, 4, 6};
    static const int *const sets[2] = {odd, even};
    int a(int x, int y) { return sets[x & 1][y]; }
    int b(int x) { return x + 1; }
    """
    pair = compile_pair(tmp_path, source, source.replace("{1, 3, 6}", "{1, 3, 5}"), compiler)
    assert pair.changed == {"a"}
    assert {new for _, new in pair.diff.replaced_constants} == {"odd", "reltable.a" if compiler == "clang" else "sets"}
    assert not pair.diff.findings


@BOTH
def test_function_pointer_table_changed(tmp_path: Path, compiler: str) -> None:
    source = """
    struct ops { int (*read)(int); int (*write)(int); };
    static int slow(int x) { return x * x; }
    static int fast(int x) { return x + x; }
    static int drop(int x) { return x - 9; }
    static const struct ops table = { slow, drop };
    extern void keep(const void *);
    int other(int x) { keep((void *)fast); return x; }
    int run(const struct ops *o, int x) { keep(&table); return o->read(x); }
    """
    pair = compile_pair(tmp_path, source, source.replace("{ slow, drop }", "{ fast, drop }"), compiler)
    assert ("MF152", "table") in pair.codes
    assert "slow became fast" in pair.reason("MF152")
    assert pair.changed == {"run"}


def test_computed_goto_table_goes_along_with_its_function(tmp_path: Path) -> None:
    source = """
    extern int step(int);
    int run(const unsigned char *p, int x) {
      static const void *const labels[] = { &&add, &&sub, &&end };
      goto *labels[*p++];
      add: x = step(x) + 1; goto *labels[*p++];
      sub: x = step(x) - 1; goto *labels[*p++];
      end: return x;
    }
    int other(int x) { return step(x); }
    """
    pair = compile_pair(tmp_path, source, source.replace("- 1;", "- 2;"))
    assert pair.changed == {"run"}
    assert [new.split(".")[0] for _, new in pair.diff.replaced_constants] == ["labels"]
    assert not pair.diff.findings


# --- start-up, gone, compilers -------------------------------------------------------------------------------------

MAIN = """
extern int step(int); extern int more(void);
__attribute__((noinline)) static int once(int x) { return step(x) + 40; }
__attribute__((noinline)) static int often(int x) { return step(x) + 50; }
int main(int argc, char **argv) { int x = once(argc); while (more()) x += often(x); return x; }
"""


def test_main_changed(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, MAIN, MAIN.replace("return x;", "return x + 1;"))
    assert pair.codes == {("MF117", "main")}


def test_function_that_only_start_up_calls(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, MAIN, MAIN.replace("40", "41"))
    assert pair.changed == {"once"}
    assert pair.codes == {("MF114", "once")}


def test_function_called_in_the_loop_of_main(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, MAIN, MAIN.replace("50", "51"))
    assert pair.changed == {"often"}
    assert pair.codes == set()


@BOTH
def test_changed_constructor(tmp_path: Path, compiler: str) -> None:
    source = "extern void init(int);\n__attribute__((constructor)) static void begin(void) { init(3); init(7); }\n"
    pair = compile_pair(tmp_path, source, source.replace("7", "8"), compiler)
    assert pair.codes == {("MF114", "begin")}


def test_ifunc_resolver(tmp_path: Path) -> None:
    source = """
    static int one(void) { return 1; }
    static int two(void) { return 2; }
    static int (*choose(void))(void) { return one; }
    int pick(void) __attribute__((ifunc("choose")));
    int (*other(void))(void) { return two; }
    """
    pair = compile_pair(tmp_path, source, source.replace("{ return one; }", "{ return two; }"))
    assert {c for c, _ in pair.codes} >= {"MF114"}


def test_gone_function(tmp_path: Path) -> None:
    held = (
        "extern void keep(void *);\n__attribute__((noinline)) static int cb(int x) { return x * 77 - 3; }\n"
        "void install(void) { keep(cb); }\n"
    )
    after = held.replace("{ return x * 77 - 3; }", "{ return x * 76; }").replace("cb", "better")
    pair = compile_pair(tmp_path, held, after)
    assert pair.codes == {("MF119", "cb")}
    called = held.replace("{ keep(cb); }", "{ extern int volatile v; v = cb(v); }")
    pair = compile_pair(tmp_path, called, called.replace("cb", "better").replace("- 3", "- 4"))
    assert pair.codes == set()
    assert (pair.changed, pair.diff.new, pair.diff.gone) == ({"install"}, ("better",), ("cb",))


@BOTH
def test_lto_objects_are_refused_by_name(tmp_path: Path, compiler: str) -> None:
    pair = compile_pair(tmp_path, FUNCTION, FUNCTION.replace("40", "41"), compiler, flags=("-flto",))
    assert pair.codes == {("MF101", "unit.o")}
    assert pair.diff.changed == ()


def test_other_compiler_is_refused_by_name(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, FUNCTION, FUNCTION, "gcc", post_compiler="clang")
    assert ("MF102", "unit.o") in pair.codes
    assert "clang" in pair.reason("MF102")


def test_object_without_debug_information(tmp_path: Path) -> None:
    pair = compile_pair(tmp_path, FUNCTION, FUNCTION.replace("40", "41"), flags=("-g0",))
    assert pair.changed == {"first"}
    assert pair.codes == {("MF104", "unit.o")}


def test_hand_written_assembler(tmp_path: Path) -> None:
    source = ".text\n.globl f\nf: movl $3, %eax\n ret\n.globl g\ng: movl $9, %eax\n ret\n"
    pair = compile_pair(tmp_path, source, source.replace("$9", "$8"), flags=("-xassembler",))
    assert pair.changed == {"g"}
    assert ("MF103", "g") in pair.codes


def test_added_object(tmp_path: Path) -> None:
    post = read_object(compile_object(tmp_path, FUNCTION + "__thread int t;", "post"), tmp_path / "unit.o")
    diff = difference(None, post)
    assert diff.pre is None
    assert set(diff.new) == {"first", "second", "t"}
    assert [(f.code, f.symbol) for f in diff.findings] == [("MF113", "t")]


# --- C++ -----------------------------------------------------------------------------------------------------------

CXX = """
#include <stdexcept>
struct Base { virtual ~Base(); virtual int area(int) const; };
struct Box : Base { int side; int area(int) const override; };
Base::~Base() {}
int Base::area(int x) const { return x; }
int Box::area(int x) const { if (x < 0) throw std::runtime_error("negative"); return side * x + 40; }
template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }
int ints(int x) { return twice(x) + 1; }
double doubles(double x) { return twice(x); }
int guarded(Base *b, int x) {
  try { return b->area(x); } catch (const std::runtime_error &) { return -1; }
}
int lambda(int x) { auto f = [x](int y) __attribute__((noinline)) { return x * y + 60; }; return f(3) + f(x); }
"""


@BOTH_CXX
@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("+ 40", "+ 41", {"_ZNK3Box4areaEi"}),
        ("return x + x", "return x + x + 1", {"_Z5twiceIiET_S0_", "_Z5twiceIdET_S0_"}),
        ("+ 60", "+ 61", {"the lambda"}),
        ("return -1", "return -2", {"_Z7guardedP4Basei"}),
        ('"negative"', '"below zero"', {"_ZNK3Box4areaEi"}),
    ],
)
def test_cxx(tmp_path: Path, compiler: str, before: str, after: str, changed: set[str]) -> None:
    pair = compile_pair(tmp_path, CXX, CXX.replace(before, after), compiler)
    shown = {"the lambda" if name.startswith("_ZZ6lambdai") else name for name in pair.changed}
    assert {name for name in shown if not name.endswith(".cold")} == changed
    assert (pair.diff.new, pair.diff.gone, pair.diff.findings) == ((), (), ())


@BOTH_CXX
def test_exception_table_alone_changes_the_function(tmp_path: Path, compiler: str) -> None:
    """Only the type that is caught differs: the code has the same bytes, the exception table does not."""
    after = CXX.replace("const std::runtime_error &", "const std::logic_error &")
    pair = compile_pair(tmp_path, CXX, after, compiler)
    assert {name for name in pair.changed if not name.endswith(".cold")} == {"_Z7guardedP4Basei"}
    assert not pair.diff.findings


@BOTH_CXX
def test_new_virtual_function_is_refused(tmp_path: Path, compiler: str) -> None:
    after = CXX.replace("virtual int area(int) const;", "virtual int area(int) const; virtual int edge() const;")
    after += "int Base::edge() const { return 0; }\n"
    pair = compile_pair(tmp_path, CXX, after, compiler)
    assert ("MF115", "_ZTV4Base") in pair.codes


@BOTH_CXX
def test_new_global_object_with_a_constructor_is_refused(tmp_path: Path, compiler: str) -> None:
    before = "extern int now();\nint started = now();\nint get() { return started; }\n"
    after = before + "int again = now();\n"
    pair = compile_pair(tmp_path, before, after, compiler)
    assert "MF114" in {code for code, _ in pair.codes}


ENTRIES = """
extern int limit(int);
struct call { int (*run)(int); int level; };
#define PASTE(a, b) a##b
#define CALL(line, function, level) \\
  static const struct call *const PASTE(call_, line) __attribute__((section("calls"), used)) = \\
    &(const struct call){function, level};
#define REGISTER(function, level) CALL_AT(__LINE__, function, level)
#define CALL_AT(line, function, level) CALL(line, function, level)
static int one(int x) { return limit(x) + 1; }
static int two(int x) { return limit(x) + 2; }
REGISTER(one, 1)
REGISTER(two, 1)
"""


@BOTH
@pytest.mark.parametrize("lines", [1, 2, -1, 40])
def test_entries_named_after_lines_are_the_same_in_the_same_order(tmp_path: Path, compiler: str, lines: int) -> None:
    """By one line, each entry gets the name that its neighbour had."""
    before = "\n" * 3 + ENTRIES
    pair = compile_pair(tmp_path, before, "\n" * (3 + lines) + ENTRIES, compiler)
    assert (pair.diff.changed, pair.diff.new, pair.diff.findings) == ((), (), ())


@BOTH
@pytest.mark.parametrize(
    "after",
    [
        ENTRIES.replace("REGISTER(one, 1)", "REGISTER(one, 2)"),
        ENTRIES.replace("REGISTER(one, 1)", "REGISTER(two, 1)"),
        ENTRIES.replace("REGISTER(one, 1)", ""),
        ENTRIES + "REGISTER(one, 3)\n",
    ],
)
def test_other_entries_are_refused(tmp_path: Path, compiler: str, after: str) -> None:
    pair = compile_pair(tmp_path, ENTRIES, "\n" + after, compiler)
    assert {code for code, _ in pair.codes} & {"MF110", "MF115", "MF151", "MF152"}
