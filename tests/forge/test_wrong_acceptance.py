"""Traps that the forge once walked into, or might: each works, proven by running it, or is refused with its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forge.selfpatching import Kit
from tests.forge.traps import MAIN, MAIN_CC, Trap

N = "__attribute__((noinline))"
C = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
NOTHING = "int before(void) { return 0; }\n"
K = f"{N} int k(int x) {{ return x + 4; }}\n"


def spring(folder: Path, before: dict[str, str], after: dict[str, str], expected: str, **options: object) -> None:
    main = {"main.cc": MAIN_CC} if any(name.endswith(".cc") for name in before) else {"main.c": MAIN}
    outcome = Trap(folder / "trap", {**main, **before}, after, **options).spring()  # type: ignore[arg-type]
    told = f"{outcome.refusals}\n{outcome.before}\n{outcome.patched}\n{outcome.fixed}"
    assert outcome.verdict == expected, told


def one(folder: Path, text: str, old: str, new: str, expected: str, **options: object) -> None:
    assert old in text
    spring(folder, {"a.c": C + text}, {"a.c": C + text.replace(old, new)}, expected, **options)


def test_a_pointer_to_a_string_stays_equal_to_the_string(tmp_path: Path) -> None:
    text = f"""
static char *def = "default"; static char *kept;
{N} int release(char *p, int n) {{ if (p != def) puts("freed!"); return n + 1; }}
int before(void) {{ kept = def; return 0; }}
int work(void) {{ printf("%d\\n", release(kept, 1)); return 0; }}"""
    one(tmp_path, text, "n + 1", "n + 2", "works")


@pytest.mark.parametrize(
    ("old", "new"), [("int limit[2];", "float limit[2];"), ("int limit[2];", "short limit[4];")], ids=["float", "short"]
)
@pytest.mark.parametrize("static", ["", "static "], ids=["global", "static"])
def test_a_variable_with_another_type_of_the_same_size(tmp_path: Path, static: str, old: str, new: str) -> None:
    text = f"""
{static}int limit[2];
{N} void set(int x) {{ limit[1] = x; }}
{N} int get(void) {{ return (int)limit[1]; }}
int before(void) {{ set(21); return 0; }}
int work(void) {{ printf("%d\\n", get()); return 0; }}"""
    one(tmp_path, text, old, new, "MF111")


INLINED = f"""
static int g(int x) {{ int s = 0; for (int i = 0; i < x; i++) {{ s += i * x; if (s > 1000) s -= 77; }} return s + 1; }}
{N} int h(int x) {{ return g(x) * 2; }}
{N} int h2(int x) {{ return g(x + 1) * 3; }}
{N} int k(int x) {{ return x + 4; }}
POINTER
int before(void) {{ return 0; }}
int work(void) {{ printf("%d %d %d\\n", h(5), h2(6), k(3)); return 0; }}"""


@pytest.mark.parametrize("pointer", ["", "int (*pointer)(int) = g;"], ids=["gone", "kept"])
@pytest.mark.parametrize("running", [Kit(), Kit(flags=("-O3",)), Kit("clang")], ids=str)
def test_a_running_binary_that_inlined_the_old_code_elsewhere(tmp_path: Path, running: Kit, pointer: str) -> None:
    text = C + INLINED.replace("POINTER", pointer)
    fixed = text.replace("s + 1", "s + 2").replace("x + 4", "x + 5")
    never = Kit(flags=("-O2", "-fno-inline"))
    spring(tmp_path, {"a.c": text}, {"a.c": fixed}, "MF130", kit=never, run_kit=running)


def test_a_dropped_static_function_and_its_twin_in_another_file(tmp_path: Path) -> None:
    helper = f"static {N} int helper(int x) {{ return x * 5 + 1; }}\n"
    a = f"{helper} int unused(int x) {{ return helper(x) + helper(x + 1); }}\n{K}"
    b = (
        f"{C}{helper}{NOTHING}int k(int);\n"
        'int work(void) { printf("%d %d\\n", helper(3) + helper(4), k(1)); return 0; }\n'
    )
    fixed = a.replace("5 + 1", "5 + 2").replace("+ 4", "+ 5")
    kit = Kit(flags=("-O2", "-ffunction-sections"), link=("-Wl,--gc-sections",))
    spring(tmp_path, {"a.c": a, "b.c": b}, {"a.c": fixed}, "works", kit=kit)


def test_the_first_copy_of_an_inline_function_is_new(tmp_path: Path) -> None:
    header = f"inline {N} int h(int x) {{ return x * 3 + VALUE; }}\n"
    late = (
        f'#include <cstdio>\n{header}extern "C" int b(int);\nextern "C" {NOTHING}'
        'extern "C" int work(void) { std::printf("%d %d\\n", h(2), b(3)); return 0; }\n'
    )
    early = f'extern "C" {N} int b(int x) {{ return x + 1; }}\n'
    fixed = header.replace("VALUE", "2") + early.replace("x + 1", "h(x) + 2")
    before = {"early.cc": early, "late.cc": late.replace("VALUE", "1")}
    spring(tmp_path, before, {"early.cc": fixed, "late.cc": late.replace("VALUE", "2")}, "works")


LIBRARY = f"""
int hook(int x) {{ return x + 1; }}
int other(int x) {{ return x; }}
{N} int f(int x) {{ return hook(x) * 10; }}
{N} int g(int x) {{ return x; }}
int before(void) {{ return 0; }}
int work(void) {{ printf("%d %d\\n", f(1), g(2)); return 0; }}"""


@pytest.mark.parametrize("link", ["-Wl,-z,lazy", "-Wl,-z,now", "-Wl,-Bsymbolic", "-Wl,-Bsymbolic-functions"])
@pytest.mark.parametrize("flag", ["-fplt", "-fno-plt", "-fno-semantic-interposition"])
def test_another_module_takes_functions_over_as_before(tmp_path: Path, link: str, flag: str) -> None:
    main = f"{MAIN}int other(int x) {{ return x + 500; }} int hook(int x) {{ return x + 700; }}\n"
    fixed = LIBRARY.replace("hook(x) * 10", "hook(x) * 10 + other(x)")
    fixed = fixed.replace("g(int x) { return x;", "g(int x) { int (*volatile p)(int) = other; return p(x) + 1;")
    kit = Kit(flags=("-O2", flag), link=(link,), library=True)
    spring(tmp_path, {"main.c": main, "a.c": C + LIBRARY}, {"a.c": C + fixed}, "works", kit=kit)


USER = C + NOTHING + 'int f(int);\nint k(int);\nint work(void) { printf("%d %d\\n", f(1), k(1)); return 0; }\n'
F = f"{N} int f(int x) {{ return x + 1; }}\n"


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ({"old.c": F, "new.c": K}, {"old.c": "", "new.c": K + F.replace("+ 1", "+ 2")}, "MF119"),
        ({"old.c": f"__attribute__((weak)) {F}", "new.c": K}, {"new.c": K.replace("+ 4", "+ 5") + F}, "MF119"),
        (
            {"old.c": f'{F}int f2(int) __attribute__((alias("f")));', "new.c": K},
            {"old.c": F.replace("+ 1", "+ 2") + F.replace("f(", "f2(")},
            "MF119",
        ),
    ],
    ids=["moved", "weak becomes strong", "alias becomes another function"],
)
def test_a_function_that_the_fix_defines_elsewhere(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], code: str
) -> None:
    spring(tmp_path, {"user.c": USER, **before}, after, code)


def test_a_variable_that_moves_and_grows(tmp_path: Path) -> None:
    user = C + NOTHING + f"{N} void fill(void) {{ memset(buf, 65, 16); }}\nint work(void) {{ fill(); return 0; }}\n"
    before = {"a.c": "char buf[16]; char guard[16];\n", "b.c": f"extern char buf[];\n{user}"}
    after = {"a.c": "char guard[16];\n", "b.c": f"char buf[64];\n{user.replace('16', '40')}"}
    spring(tmp_path, before, after, "MF116")


def test_an_entry_that_inline_assembler_makes_for_the_new_code(tmp_path: Path) -> None:
    text = f"""
extern const int __start_table[], __stop_table[];
{N} int f(int x) {{
  __asm__ volatile("1: nop\\n .pushsection table,\\"a\\"\\n .long 1b - .\\n .popsection"); return x + 1; }}
int before(void) {{ return 0; }}
int work(void) {{ printf("%d %d\\n", f(1), (int)(__stop_table - __start_table)); return 0; }}"""
    one(tmp_path, text, "x + 1", "x + 2", "MF151")


def test_code_that_the_linker_folded(tmp_path: Path) -> None:
    f = F.replace("x + 1", "x * 7 + (x > 100 ? 9 : x / 3)")
    twin = USER + f.replace("f(", "k(")
    kit = Kit(flags=("-O2", "-ffunction-sections"), link=("-fuse-ld=lld", "-Wl,--icf=all"))
    spring(tmp_path, {"a.c": f, "b.c": twin}, {"a.c": f.replace("* 7", "* 8")}, "MF134", kit=kit)


SWITCH = """switch (x) { case 0: return "zero"; case 1: return "one"; case 2: return "two"; case 3: return "three";
  case 4: return "four and more"; case 5: return "five5"; }"""


@pytest.mark.parametrize("before", ["", SWITCH], ids=["new", "changed"])
@pytest.mark.parametrize(
    "kit", [Kit("clang"), Kit("clang", flags=("-O1",), library=True), Kit(flags=("-O2", "-fPIC"))], ids=str
)
def test_a_table_of_offsets_to_strings(tmp_path: Path, kit: Kit, before: str) -> None:
    text = f"""
{N} const char *f(int x) {{ BODY return "none"; }}
int before(void) {{ return 0; }}
int work(void) {{ for (int i = 0; i < 8; i++) puts(f(i)); return 0; }}"""
    fixed = text.replace("BODY", SWITCH.replace("two", "TWO"))
    spring(tmp_path, {"a.c": C + text.replace("BODY", before)}, {"a.c": C + fixed}, "works", kit=kit)


@pytest.mark.parametrize("kit", [Kit(), Kit("clang"), Kit(flags=("-O0",)), Kit(flags=("-O2", "-no-pie"))], ids=str)
@pytest.mark.parametrize(
    "use",
    ["o->l = &lim;", "struct o t = {&lim, 1}; *o = t;", "keep(o, &lim, 1);", "o->l = same(1);"],
    ids=["stored", "copied", "passed", "returned"],
)
def test_a_constant_whose_address_live_objects_hold(tmp_path: Path, kit: Kit, use: str) -> None:
    text = f"""
struct lim {{ int n; }}; struct o {{ const struct lim *l; long x; }}; static struct o *kept;
static const struct lim lim = {{10}};
{N} void keep(struct o *o, const struct lim *l, int x) {{ o->l = l; o->x = x; }}
{N} const struct lim *same(int x) {{ return x ? &lim : 0; }}
int before(void) {{ struct o *o = malloc(sizeof *o); {use} kept = o; return 0; }}
int work(void) {{ printf("%d\\n", kept->l->n); return 0; }}"""
    one(tmp_path, text, "{10}", "{5}", "MF115", kit=kit)


@pytest.mark.parametrize("kit", [Kit(), Kit("clang"), Kit(flags=("-O0",)), Kit(flags=("-O2", "-fPIC"))], ids=str)
def test_a_constant_whose_address_stays_in_its_function(tmp_path: Path, kit: Kit) -> None:
    text = f"""
static const int table[9] = {{3, 1, 4, 1, 5, 9, 2, 6, 5}};
{N} int f(int x) {{ return table[x & 7] + 1; }}
{N} int g(int n) {{ int s = 0; for (int i = 0; i < n; i++) s = s * 3 + table[i % 9]; return s; }}
int before(void) {{ return 0; }}
int work(void) {{ printf("%d %d\\n", f(2), g(9)); return 0; }}"""
    one(tmp_path, text, "1, 4, 1", "1, 7, 1", "works", kit=kit)


@pytest.mark.parametrize("kit", [Kit(), Kit("clang"), Kit(flags=("-O2", "-gdwarf-4"))], ids=str)
@pytest.mark.parametrize("storage", ["static", "static __thread"])
@pytest.mark.parametrize("name", ["a.c", "a.cc"])
def test_a_static_variable_in_a_function_with_another_type(tmp_path: Path, kit: Kit, storage: str, name: str) -> None:
    api = 'extern "C" ' if name.endswith(".cc") else ""
    text = f"""{C}
{N} static int f(int x) {{ {{ {storage} int m; m += x; if (m > 1000) return m; }} {storage} int n; n += x; return n; }}
{api}int before(void) {{ f(21); return 0; }}
{api}int work(void) {{ printf("%d\\n", f(1)); return 0; }}"""
    spring(tmp_path, {name: text}, {name: text.replace("int n;", "float n;")}, "MF111", kit=kit)


@pytest.mark.parametrize("strip", [(), ("strip",), ("strip", "-x")], ids=["named", "stripped", "without statics"])
@pytest.mark.parametrize("names", [("f", "k"), ("s", "s"), ("f", "s")], ids=["global", "namesakes", "static"])
def test_folded_code_in_a_stripped_binary(tmp_path: Path, strip: tuple[str, ...], names: tuple[str, str]) -> None:
    def source(name: str, entry: str, factor: int) -> str:
        body = f"{{ return x * {factor} + (x > 100 ? 9 : x / 3); }}\n"
        if name == entry:
            return f"{N} int {entry}(int x) {body}"
        return f"static {N} int {name}(int x) {body}int {entry}(int x) {{ return {name}(x + {ord(entry)}) + 1; }}\n"

    before = {"a.c": source(names[0], "f", 7), "b.c": USER + source(names[1], "k", 7)}
    kit = Kit(flags=("-O2", "-ffunction-sections"), link=("-fuse-ld=lld", "-Wl,--icf=all"))
    # The loader of the tests is found by its symbol, but a refusal comes first.
    spring(tmp_path, before, {"a.c": source(names[0], "f", 8)}, "MF134", kit=kit, after_link=strip)


@pytest.mark.parametrize("link", [(), ("-fuse-ld=lld",), ("-Wl,--version-script=map",)], ids=["ld", "lld", "hidden"])
def test_a_weak_function_in_whose_place_an_equal_strong_one_runs(tmp_path: Path, link: tuple[str, ...]) -> None:
    (tmp_path / "map").write_text("{ global: work; before; local: f; };")
    link = tuple(item.replace("=map", f"={tmp_path}/map") for item in link)
    weak = f"__attribute__((weak)) {F}"
    before = {"a.c": weak + K, "b.c": F, "user.c": USER}
    spring(tmp_path, before, {"a.c": weak.replace("+ 1", "+ 2") + K}, "MF119", kit=Kit(link=link, library=bool(link)))


def test_a_weak_function_that_runs(tmp_path: Path) -> None:
    weak = f"__attribute__((weak)) {F}"
    before = {"a.c": weak + K, "b.c": F.replace("f(", "other("), "user.c": USER}
    spring(tmp_path, before, {"a.c": weak.replace("+ 1", "+ 2") + K.replace("+ 4", "+ 5")}, "works")


@pytest.mark.parametrize(("flag", "expected"), [("-funroll-all-loops", "MF130"), ("-O2", "works")])
def test_a_static_function_with_other_code_where_statics_have_no_names(
    tmp_path: Path, flag: str, expected: str
) -> None:
    text = f"""
static int g(int x) {{ int s = 0; for (int i = 0; i < x; i++) {{ s += i * x; if (s > 1000) s -= 77; }} return s + 1; }}
int (*volatile pointer)(int) = g;
{K}
int before(void) {{ return 0; }}
int work(void) {{ printf("%d %d\\n", pointer(5), k(3)); return 0; }}"""
    fixed = text.replace("s + 1", "s + 2").replace("x + 4", "x + 5")
    options = {"run_kit": Kit(flags=("-O2", flag)), "after_link": ("strip", "-x")}
    spring(tmp_path, {"a.c": C + text}, {"a.c": C + fixed}, expected, **options)
