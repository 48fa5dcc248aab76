"""Changed types, read from the debug information of both compilers, DWARF 4 and 5."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.errors import ImageError
from midflight.forge.difference import layout
from midflight.image.elf import ElfFile

from .object_pairs import compile_object, compile_pair

MAKERS = pytest.mark.parametrize(
    ("compiler", "flags"),
    [("gcc", ("-gdwarf-5",)), ("gcc", ("-gdwarf-4",)), ("clang", ("-gdwarf-5",)), ("clang", ("-gdwarf-4",))],
)

TYPES = """
enum mode { OFF, ON = 4, AUTO };
typedef struct { int x, y; } point;
typedef int (*handler)(int, const char *);
struct context {
  int id;
  char name[20];
  point where;
  handler call;
  struct { short low; union { int all; char byte[4]; } u; } part;
  unsigned ready : 1, busy : 3;
  enum mode mode;
  struct context *next;
};
extern int act(struct context *, enum mode);
int run(struct context *c) { c->busy = 2; return act(c, c->mode) + c->where.y + c->part.low; }
"""


def changes(directory: Path, compiler: str, flags: tuple[str, ...], *replacements: tuple[str, str]) -> dict[str, str]:
    """Findings as symbol to reason; the code that goes with it stands before the reason."""
    after = TYPES
    for old, new in replacements:
        assert old in after
        after = after.replace(old, new)
    pre = compile_object(directory, TYPES, "pre", compiler, flags)
    post = compile_object(directory, after, "post", compiler, flags)
    findings = layout.compare_layouts(pre, post, directory / "unit.o")
    return {f.symbol: f"{f.code} {f.reason}" for f in findings}


@MAKERS
def test_same_types(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    assert changes(tmp_path, compiler, flags) == {}
    assert changes(tmp_path, compiler, flags, ("c->busy = 2", "\n\nc->busy = 3")) == {}


@MAKERS
def test_struct_grows(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    found = changes(tmp_path, compiler, flags, ("struct context *next;", "struct context *next; long x;"))
    assert found == {"struct context": "MF111 struct context grew 64 -> 72: member `x` at +64 is new"}


@MAKERS
def test_members_swapped_in_the_same_size(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    found = changes(tmp_path, compiler, flags, ("int id;\n  char name[20];", "char name[20];\n  int id;"))
    assert found == {
        "struct context": "MF111 struct context (64 bytes): member `name` moved from +4 to +0, "
        "member `id` moved from +0 to +20"
    }


@MAKERS
@pytest.mark.parametrize(
    ("old", "new", "symbol", "reason"),
    [
        ("int id;", "unsigned id;", "struct context", "member `id` changed from int to unsigned int"),
        ("name[20]", "name[18]", "struct context", "member `name` changed from char[20] to char[18]"),
        ("busy : 3", "busy : 4", "struct context", "member `busy` moved from bit 385 (3 bits) to bit 385 (4 bits)"),
        ("short low;", "char low;", "struct context", "member `part.low` changed from short"),
        ("int x, y;", "long x, y;", "point", "point grew 8 -> 16: member `x` changed from int to long"),
        ("int all;", "float all;", "struct context", "member `part.u.all` changed from int to float"),
        ("(int, const", "(long, const", "handler", "the type handler changed from int (int, char *) * to int (long"),
    ],
)
def test_changed_members(
    tmp_path: Path, compiler: str, flags: tuple[str, ...], old: str, new: str, symbol: str, reason: str
) -> None:
    found = changes(tmp_path, compiler, flags, (old, new))
    assert found[symbol].startswith("MF111 ")
    assert reason in found[symbol]


@MAKERS
def test_enumerators(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    assert changes(tmp_path, compiler, flags, ("AUTO", "AUTO, MANUAL")) == {}
    assert changes(tmp_path, compiler, flags, ("OFF, ON", "OFF, IDLE, ON")) == {}
    assert changes(tmp_path, compiler, flags, ("ON = 4", "ON")) == {
        "enum mode ON": "MF150 ON changed from 4 to 1",
        "enum mode AUTO": "MF150 AUTO changed from 5 to 2",
    }


@MAKERS
def test_new_and_gone_types_and_qualifiers_are_no_change(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    extra = "struct fresh { int a; };\nstruct fresh *keep;\nextern int act"
    assert changes(tmp_path, compiler, flags, ("extern int act", extra)) == {}
    assert changes(tmp_path, compiler, flags, ("struct context *next", "const struct context *next")) == {}


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_cxx_classes(tmp_path: Path, compiler: str) -> None:
    before = """
    namespace shop { class Base { public: virtual ~Base(); int a; static int total; };
    struct Item : Base { Item(); int price; struct Tag { int n; } tag; }; }
    shop::Base::~Base() {}
    shop::Item::Item() : price(3) {}
    int price(shop::Item *i) { return i->price + i->tag.n + i->a; }
    """
    pre = compile_object(tmp_path, before, "pre", compiler)
    post = compile_object(tmp_path, before.replace("int a;", "int a; long b;"), "post", compiler)
    found = {f.symbol: f.reason for f in layout.compare_layouts(pre, post, tmp_path / "unit.o")}
    assert set(found) == {"class shop::Base", "struct shop::Item"}
    assert "member `b` at +16 is new" in found["class shop::Base"]
    post = compile_object(tmp_path, before.replace("int n;", "char n;"), "post", compiler)
    found = {f.symbol: f.reason for f in layout.compare_layouts(pre, post, tmp_path / "unit.o")}
    assert "struct shop::Item::Tag" in found


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_signatures_of_methods_and_constructors(tmp_path: Path, compiler: str) -> None:
    source = """
    struct A { A(int); int get(long) const; int n; };
    A::A(int x) : n(x) {}
    int A::get(long y) const { return n + y; }
    """
    found = layout.signatures(compile_object(tmp_path, source, "one", compiler))
    assert found["_ZNK1A3getEl"] in ("int (struct A *, long int)", "int (struct A *, long)")
    assert found["_ZN1AC2Ei"] == "void (struct A *, int)"


@MAKERS
def test_signatures(tmp_path: Path, compiler: str, flags: tuple[str, ...]) -> None:
    source = """
    struct s; typedef unsigned long size;
    static int inner(const struct s *p, size n) { return p && n; }
    void *outer(struct s *p, const char *format, ...) { return inner(p, 3) ? p : 0; }
    int again(struct s *p) { return inner(p, (size)p); }
    """
    found = layout.signatures(compile_object(tmp_path, source, "one", compiler, flags))
    assert found == {
        "inner": "int (struct s *, size)",
        "outer": "void * (struct s *, char *, ...)",
        "again": "int (struct s *)",
    }


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_changed_signature_of_a_global_function_is_refused(tmp_path: Path, compiler: str) -> None:
    before = "extern int g(int);\nint f(int x) { return g(x); }\n"
    pair = compile_pair(
        tmp_path, before, before.replace("f(int x) { return g(x)", "f(int x, int y) { return g(x + y)"), compiler
    )
    assert pair.codes == {("MF112", "f")}
    assert "from int (int) to int (int, int)" in pair.reason("MF112")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_changed_signature_of_a_static_function(tmp_path: Path, compiler: str) -> None:
    """Allowed when all callers change with it; refused when its address was taken."""
    before = """
    extern int g(int, int);
    __attribute__((noinline)) static int f(int x) { return g(x, 1) + g(x, 2); }
    int a(int x) { return f(x) + 1; }
    int b(int x) { return f(x) + 2; }
    """
    after = before.replace("f(int x) { return g(x, 1)", "f(int x, int y) { return g(x, y)").replace(
        "f(x)", "f(x, x + 7)"
    )
    pair = compile_pair(tmp_path, before, after, compiler)
    assert pair.changed == {"f", "a", "b"}
    assert pair.codes == set()
    held = "extern void keep(void *);\n"
    pair = compile_pair(
        tmp_path, held + before + "void c(void) { keep(f); }", held + after + "void c(void) { keep(f); }", compiler
    )
    assert ("MF112", "f") in pair.codes


def test_damaged_debug_information_is_an_input_error(tmp_path: Path) -> None:
    file = compile_object(tmp_path, TYPES, "pre")
    data = bytearray(file.read_bytes())
    with ElfFile.open(file) as elf:
        section = elf.section(".debug_abbrev")
        assert section is not None
        data[section.offset : section.offset + section.size] = b"\xff" * section.size
    file.write_bytes(data)
    with pytest.raises(ImageError, match="debug information"):
        layout.has_types(file)
