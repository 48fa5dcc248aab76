"""Linked payloads do what the fixed program does: every scenario runs, and its own output is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.forge import RefusedWithFindings
from tests.forge.selfpatching import Kit, Project, run

MAIN = """
void selfpatch(const char *plan, void *anchor);
int before(void);
int work(int, char **);
int main(int argc, char **argv) {
  before();
  if (argv[1][0] != '-') selfpatch(argv[1], (void *)selfpatch);
  return work(argc, argv);
}
"""

EVERYTHING = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int counter;
int shared = 5;
static const char *names[] = {"one", "two", "three"};
static const int squares[] = {0, 1, 4, 9, 16, 25};
__thread int tls_global = 3;
static __thread int tls_static = 100;
extern int other(int);
extern int other_data;
extern void nobody(void) __attribute__((weak));
int (*kept)(int);
FILE *out;
static __attribute__((noinline)) int helper(int x) {
  counter += x; tls_static++; return printf("helper %d %d\\n", x, counter); }
static __attribute__((noinline)) void callback(int x) { printf("callback %s\\n", names[x % 3]); }
static __attribute__((noinline)) void with(void (*f)(int), int x) { if (f) f(x); }
static inline int clamp(int x) { return x > 90 ? 90 : x; }
FIX_HELPERS
__attribute__((noinline)) int by_switch(int x) {
  switch (x) {
    case 0: return helper(3);
    case 1: return other(4);
    case 2: puts("two"); return 5;
    case 3: return x * counter;
    case 4: return (int)strlen(names[1]) + SWITCH_FIX;
    case 5: return shared;
    case 6: return other_data;
    case 7: if (x > 1000) abort(); return 12;
    case 8: with(callback, 1); return 8;
  }
  return tls_global;
}
__attribute__((noinline)) int labels(const char *program) {
  static const void *const table[] = {&&add, &&twice, &&end};
  int value = 1;
  goto *table[*program++ - '0'];
add: value += LABEL_FIX; goto *table[*program++ - '0'];
twice: value *= 2; goto *table[*program++ - '0'];
end: return value;
}
__attribute__((noinline)) double floats(double x) { return x * 3.25 + FLOAT_FIX; }
int calc(int x) {
  if (__builtin_expect(x < 0, 0)) { fprintf(stderr, "negative %d in %s\\n", x, __func__); exit(3); }
  if (nobody) nobody();
  tls_global += CALC_FIX;
  tls_static += 2;
  return clamp(squares[x % 6] + x * CALC_FIX) + tls_global + tls_static;
}
int before(void) { kept = by_switch; return 0; }
int work(int argc, char **argv) {
  out = stdout;
  for (int i = 0; i < 10; i++) printf("switch %d: %d\\n", i, by_switch(i));
  printf("kept %d %d\\n", kept == by_switch, kept(4));
  printf("labels %d\\n", labels("010112"));
  printf("floats %f\\n", floats(1.5));
  for (int i = 0; i < 7; i++) printf("calc %d\\n", calc(i * 9));
  EXTRA
  fprintf(out, "end %d %d %d\\n", counter, tls_global, argc);
  return 0;
}
"""

OTHER = "int other_data = 7; int other(int x) { return x * 2; }\n"


def everything(fixed: bool) -> str:
    helpers = """
static int fresh_bss[20]; int fresh_data = 77; static const char *const fresh_names[] = {"new", "newer"};
static const unsigned char fresh_bytes[] = {9, 8, 7, 1, 2};
static int order(const void *a, const void *b) { return *(const unsigned char *)a - *(const unsigned char *)b; }
static __attribute__((noinline)) int fresh(int x) {
  unsigned char sorted[5];
  memcpy(sorted, fresh_bytes, 5);
  qsort(sorted, 5, 1, order);
  fresh_bss[x % 20]++;
  tls_static += 10;
  return fresh_data++ + fresh_bss[x % 20] + sorted[x % 5] + (int)strtol("1000", 0, 10) + (int)strlen(fresh_names[x % 2])
    + (kept == by_switch) * 10000 + (with == 0);
}
"""
    declared = "int by_switch(int);" + helpers
    texts = {
        "FIX_HELPERS": declared if fixed else "",
        "SWITCH_FIX": "fresh(x)" if fixed else "1",
        "LABEL_FIX": "10" if fixed else "1",
        "FLOAT_FIX": "8.125" if fixed else "7.0",
        "CALC_FIX": "2" if fixed else "1",
        "EXTRA": "",
    }
    text = EVERYTHING
    for word, value in texts.items():
        text = text.replace(word, value)
    return text


KITS = [
    Kit(),
    Kit(flags=("-O1", "-fno-pie"), link=("-no-pie",)),
    Kit(flags=("-O2", "-fPIC", "-fno-plt"), link=("-Wl,-z,now",)),
    Kit(flags=("-O3", "-fcf-protection=full", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")),
    Kit(flags=("-Os",)),
    Kit(flags=("-Og",)),
    Kit(flags=("-O2", "-fPIC", "-ftls-model=global-dynamic")),
    Kit(library=True),
    Kit(flags=("-O2", "-fvisibility=hidden", "-ftls-model=local-dynamic"), library=True, link=("-Wl,-z,now",)),
    Kit(cc="clang"),
    Kit(cc="clang", flags=("-O1", "-fno-pie"), link=("-no-pie",)),
    Kit(cc="clang", flags=("-O2", "-fPIC", "-fno-plt"), library=True),
]


@pytest.mark.parametrize("kit", KITS, ids=str)
def test_everything_of_c(tmp_path: Path, kit: Kit) -> None:
    main = MAIN
    if "-fvisibility=hidden" in kit.flags:
        shown = '__attribute__((visibility("default"))) '
        texts = [
            everything(fix).replace("int work(", f"{shown}int work(").replace("int before(", f"{shown}int before(")
            for fix in (False, True)
        ]
    else:
        texts = [everything(False), everything(True)]
    project = Project(tmp_path, {"main.c": main, "image.c": texts[0], "other.c": OTHER}, {"image.c": texts[1]}, kit)
    sorts = {("MF171", "fresh"): "a new function, which sorts a copy of its own"}
    result = project.forge(overrides=sorts, reviewer="A Tester <tester@example.org>")
    before, patched, fixed = project.outputs(result)
    assert before != fixed
    assert patched == fixed
    names = {function.name for function in result.manifest.targets[0].functions}
    assert {"by_switch", "labels", "floats", "calc"} <= names
    assert not names & {"callback", "main"}


STATIC_FIXED = """
#include <stdio.h>
#include <string.h>
__thread int local = 4;
__attribute__((noinline)) int lengths(const char *a) {
  local++; return (int)strlen(a) + (int)strlen(a + 1) * FIX + local; }
int before(void) { return 0; }
int work(int argc, char **argv) { printf("%d %d\\n", lengths(argc ? "some words" : argv[0]), local); return 0; }
"""


@pytest.mark.parametrize("flags", [("-O2", "-fno-builtin"), ("-O2", "-fno-builtin", "-fPIC")], ids=" ".join)
@pytest.mark.parametrize("link", [("-static",), ("-static-pie",)], ids=" ".join)
def test_static_executables_and_ifuncs(tmp_path: Path, flags: tuple[str, ...], link: tuple[str, ...]) -> None:
    if link == ("-static-pie",):
        flags = (*flags, "-fPIE") if "-fPIC" not in flags else flags
    else:
        flags = (*flags, "-fno-pie") if "-fPIC" not in flags else flags
    kit = Kit(flags=flags, link=link if link == ("-static-pie",) else (*link, "-no-pie"))
    sources = [STATIC_FIXED.replace("FIX", value) for value in ("1", "100")]
    project = Project(tmp_path, {"main.c": MAIN, "image.c": sources[0]}, {"image.c": sources[1]}, kit)
    before, patched, fixed = project.outputs(project.forge())
    assert before != fixed
    assert patched == fixed


IFUNC_ELSEWHERE = """
static int ten(int n) { return n * 10; }
static int eleven(int n) { return n * 11; }
int wanted = 1;
static int (*choose(void))(int) { return wanted ? ten : eleven; }
int pick(int n) __attribute__((ifunc("choose")));
extern __typeof(pick) hidden_pick __attribute__((alias("pick"), visibility("hidden")));
"""
IFUNC_USER = """
#include <stdio.h>
extern int hidden_pick(int) __attribute__((visibility("hidden")));
__attribute__((noinline)) int use(int n) { return hidden_pick(n) + FIX; }
int before(void) { return hidden_pick(1); }
int work(int argc, char **argv) { printf("%d\\n", use(argc + 4)); return 0; }
"""


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("new", [False, True], ids=["called before", "called by the fix alone"])
@pytest.mark.parametrize("name", ["hidden_pick", "pick"])
def test_ifunc_of_another_object_is_called_and_not_its_resolver(
    tmp_path: Path, stripped: bool, new: bool, name: str
) -> None:
    """glibc's own calls of strchr go by a hidden name; the address of both names is that of the resolver."""
    user = IFUNC_USER.replace("hidden_pick", name) if name == "pick" else IFUNC_USER
    old = user.replace(f"return {name}(n)", "return n") if new else user
    sources = {"main.c": MAIN, "image.c": old.replace("FIX", "1"), "other.c": IFUNC_ELSEWHERE}
    project = Project(tmp_path, sources, {"image.c": user.replace("FIX", "2000")}, Kit(library=True))
    pair = project.pair()
    assert pair.plain_image is not None
    if stripped:
        run("strip", "--strip-unneeded", pair.plain_image, cwd=tmp_path)
    before, patched, fixed = project.outputs(project.forge(pair))
    assert before != fixed
    assert patched == fixed


CXX = """
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>
struct Base { virtual ~Base() {} virtual int value(int x) { return x; } };
struct Derived : Base { int value(int x) override; };
struct Guard { const char *name; ~Guard() { std::printf("left %s\\n", name); } };
inline int &once() { static int number = 40; return number; }
template <typename T> __attribute__((noinline)) T twice(T x) { return x / 3 * 7 + x FIX_TEMPLATE; }
FIX_TYPES
__attribute__((noinline)) int Derived::value(int x) {
  Guard guard{"value"};
  if (x > 5) throw std::runtime_error("too big" FIX_TEXT);
  once() += x;
  return twice(x);
}
__attribute__((noinline)) int catching(Base &base, int x) {
  try {
    std::vector<std::string> words(3, std::string(20 FIX_TEMPLATE, 'x'));
    FIX_THROW
    return base.value(x) + (int)words[1].size();
  } catch (const std::logic_error &error) {
    std::printf("logic %s\\n", error.what());
    return -2;
  } catch (const std::exception &error) {
    std::printf("caught %s\\n", error.what());
    return -1;
  }
}
__attribute__((noinline)) int outer(Base &base, int x) {
  try { return base.value(x); }
  catch (std::runtime_error &error) { std::printf("outer %s\\n", error.what()); return -7; }
}
static Derived derived;
extern "C" int before() { return outer(derived, 1); }
extern "C" int work(int argc, char **) {
  for (int x = 0; x < 9; x += 2) std::printf("%d %d %d\\n", catching(derived, x), outer(derived, x), once());
  return argc < 0;
}
"""


FRESH = "struct Fresh : std::logic_error { using std::logic_error::logic_error; int extra = 5; };"


def cxx(fixed: bool, thrown: str = "std::out_of_range") -> str:
    words = {
        "FIX_TEMPLATE": "+ 1" if fixed else "",
        "FIX_TEXT": '" indeed"' if fixed else "",
        "FIX_TYPES": FRESH if fixed else "",
        "FIX_THROW": 'if (x == 4) throw Fresh("fresh"); static int calls; if (++calls == 1) throw THROWN("first");'
        if fixed
        else "",
    }
    text = CXX
    for word, value in words.items():
        text = text.replace(word, value)
    return text.replace("THROWN", thrown)


CXX_MAIN = (
    MAIN.replace("void selfpatch", 'extern "C" void selfpatch')
    .replace("int before", 'extern "C" int before')
    .replace("int work", 'extern "C" int work')
)


@pytest.mark.parametrize(
    "kit",
    [
        Kit(),
        Kit(flags=("-O1", "-fno-pie"), link=("-no-pie",)),
        Kit(library=True),
        Kit(cc="clang"),
        Kit(cc="clang", flags=("-O2", "-fno-pie"), link=("-no-pie",)),
    ],
    ids=str,
)
def test_exceptions_through_and_in_patched_cxx(tmp_path: Path, kit: Kit) -> None:
    # Position-dependent code cannot be made to look elsewhere for a variable of a library: see the next test.
    thrown = "std::runtime_error" if "-no-pie" in kit.link else "std::out_of_range"
    project = Project(tmp_path, {"main.cc": CXX_MAIN, "image.cc": cxx(False)}, {"image.cc": cxx(True, thrown)}, kit)
    pair = project.pair()
    with pytest.raises(RefusedWithFindings) as refused:
        project.forge(pair)
    findings = {(item.code, item.symbol) for item in refused.value.findings}
    assert {code for code, _ in findings} == {"MF170"} and all("Fresh" in symbol for _, symbol in findings), findings
    # Its destructors free: those of a new class, of which the old code made no object.
    reasons = dict.fromkeys(findings, "a new class")
    result = project.forge(pair, overrides=reasons, reviewer="A Tester <tester@example.org>")
    before, patched, fixed = project.outputs(result)
    assert before != fixed
    assert patched == fixed
    unwind = result.manifest.targets[0].unwind
    assert unwind is not None and unwind.throws


def test_new_variable_of_a_library_in_position_dependent_code_is_refused(tmp_path: Path) -> None:
    kit = Kit(flags=("-O1", "-fno-pie"), link=("-no-pie",))
    project = Project(tmp_path, {"main.cc": CXX_MAIN, "image.cc": cxx(False)}, {"image.cc": cxx(True)}, kit)
    with pytest.raises(RefusedWithFindings, match="_ZTISt12out_of_range, a variable of a library"):
        project.forge()


TAKES = """
#include <stdio.h>
#include <string.h>
#include <ctype.h>
static __attribute__((noinline)) int each(int (*f)(int), const char *s) {
  int n = 0; while (*s) n += f(*s++); return n; }
__attribute__((noinline)) int count(const char *s) { return each(FUNCTION, s); }
int before(void) { return 0; }
int work(int argc, char **argv) { printf("%d\\n", count("AbC") + toupper(argc)); return 0; }
"""


def test_address_of_an_imported_function_in_position_dependent_code_needs_a_word(tmp_path: Path) -> None:
    kit = Kit(flags=("-O1", "-fno-pie", "-fno-builtin"), link=("-no-pie",))
    texts = [TAKES.replace("FUNCTION", name) for name in ("tolower", "toupper")]
    project = Project(tmp_path, {"main.c": MAIN, "image.c": texts[0]}, {"image.c": texts[1]}, kit)
    pair = project.pair()
    with pytest.raises(RefusedWithFindings) as caught:
        project.forge(pair)
    assert [(item.code, item.symbol) for item in caught.value.findings] == [("MF143", "count")]
    result = project.forge(pair, overrides={("MF143", "count"): "the address is only called"})
    before, patched, fixed = project.outputs(result)
    assert before != fixed
    assert patched == fixed
    assert [item.reason for item in result.manifest.targets[0].overrides] == ["the address is only called"]


HOOKS = """
extern int shared;
int printf(const char *, ...);
static int seen;
int midflight_before_apply(void) { seen = shared; return printf("before %d\\n", shared) < 0; }
int midflight_after_apply(void) { shared = seen * 2; return 0; }
"""
HOOKED = """
#include <stdio.h>
int shared = 21;
__attribute__((noinline)) int twofold(void) { return shared * FACTOR; }
int before(void) { return 0; }
int work(int argc, char **argv) { printf("%d\\n", twofold() + argc * 0); return 0; }
"""


def test_hooks_reach_the_variables_of_the_image(tmp_path: Path) -> None:
    texts = [HOOKED.replace("FACTOR", factor) for factor in ("1", "10")]
    project = Project(tmp_path, {"main.c": MAIN, "image.c": texts[0]}, {"image.c": texts[1]})
    hooks = tmp_path / "hooks.c"
    hooks.write_text(HOOKS)
    result = project.forge(hooks=hooks)
    before, patched, _ = project.outputs(result)
    assert before == "21\n"
    assert patched == "before 21\n420\n"


def test_misspelt_hooks_are_refused(tmp_path: Path) -> None:
    texts = [HOOKED.replace("FACTOR", factor) for factor in ("1", "10")]
    project = Project(tmp_path, {"main.c": MAIN, "image.c": texts[0]}, {"image.c": texts[1]})
    hooks = tmp_path / "hooks.c"
    hooks.write_text(HOOKS.replace("after_apply", "after_aply"))
    with pytest.raises(RefusedWithFindings, match=r"MF144.*midflight_after_aply"):
        project.forge(hooks=hooks)
