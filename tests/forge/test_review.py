"""What a reviewer is shown: real pairs of compiled sources for every rule, those that raise and those that must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.model import Finding
from midflight.forge.review.review import review
from midflight.forge.review.touched import Touched, compare

from .object_pairs import compile_pair

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])


def found(folder: Path, before: str, after: str, compiler: str = "gcc", flags: tuple[str, ...] = ()) -> list[Finding]:
    """The review of one source file."""
    pair = compile_pair(folder, before, after, compiler, flags)
    name = "unit.cc" if compiler.endswith("++") else "unit.c"
    return review(pair.diff, Touched({name: compare(name, before.encode(), after.encode())}))


def codes(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(item.code, item.symbol) for item in findings}


def swap(source: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


BUFFER = """
#include <stdlib.h>
#include <string.h>
struct buffer { char *data; size_t size; };
extern void note(const char *);
int fill(struct buffer *b, const char *text, size_t length)
{
    char *data = malloc(length + 1);
    if (data == NULL)
        return -1;
    memcpy(data, text, length);
    free(b->data);
    note("filled");
    b->data = data;
    b->size = length;
    return 0;
}
void drop(struct buffer *b)
{
    note("dropped");
    b->size = 0;
}
"""

# --- nothing to say -------------------------------------------------------------------------------------------------


@BOTH
def test_a_bounds_check_says_nothing(tmp_path: Path, compiler: str) -> None:
    """Though it stands in front of an allocation, moves every line, and lets the compiler lay the blocks anew."""
    check = "{\n    if (length > 4096 || text == NULL)\n        return -2;\n    char *data = malloc(length + 1);"
    after = swap(BUFFER, ("{\n    char *data = malloc(length + 1);", check))
    assert found(tmp_path, BUFFER, after, compiler) == []


@BOTH
def test_another_constant_says_nothing(tmp_path: Path, compiler: str) -> None:
    assert found(tmp_path, BUFFER, swap(BUFFER, ("return -1;", "return -12;")), compiler) == []


@BOTH
def test_lines_that_move_say_nothing(tmp_path: Path, compiler: str) -> None:
    after = swap(BUFFER, ("struct buffer {", "/* a\n * comment\n */\nstruct buffer {"), ("return -1;", "return -12;"))
    assert found(tmp_path, BUFFER, after, compiler) == []


LOOK_SO = ['note("clock")', "clock_tick()", "freeze(b)", "blocked(b)", "renew_ticket(b)", "safe_memcmp(b)"]


@BOTH
@pytest.mark.parametrize("call", LOOK_SO)
def test_names_that_only_look_so_say_nothing(tmp_path: Path, compiler: str, call: str) -> None:
    names = ("clock_tick(void)", "freeze(void *)", "blocked(void *)", "renew_ticket(void *)", "safe_memcmp(void *)")
    declared = f"extern void {', '.join(names)};\nextern void note"
    before = swap(BUFFER, ("extern void note", declared))
    after = swap(before, ('    note("dropped");\n', f'    note("dropped");\n    {call};\n'))
    assert found(tmp_path, before, after, compiler) == []


# --- ownership ------------------------------------------------------------------------------------------------------


@BOTH
def test_a_free_that_is_added(tmp_path: Path, compiler: str) -> None:
    after = swap(BUFFER, ('    note("dropped");\n', '    note("dropped");\n    free(b->data);\n'))
    (item,) = found(tmp_path, BUFFER, after, compiler)
    assert (item.code, item.symbol, item.kind, item.file) == ("MF170", "drop", "sign-off", "unit.c")
    assert "adds a call of free (unit.c:21)" in item.reason


@BOTH
def test_a_free_that_is_taken_out(tmp_path: Path, compiler: str) -> None:
    (item,) = found(tmp_path, BUFFER, swap(BUFFER, ("    free(b->data);\n", "")), compiler)
    assert (item.code, item.symbol) == ("MF170", "fill")
    assert "takes out a call of free (unit.c:12 before)" in item.reason


@BOTH
def test_a_free_that_moves(tmp_path: Path, compiler: str) -> None:
    after = swap(
        BUFFER, ("    free(b->data);\n", ""), ("    b->size = length;\n", "    b->size = length;\n    free(b->data);\n")
    )
    after = swap(after, ("    b->data = data;\n", ""), ("    return 0;", "    b->data = data;\n    return 0;"))
    (item,) = found(tmp_path, BUFFER, after, compiler)
    assert (item.code, item.symbol) == ("MF170", "fill")
    assert "moves the call of free (unit.c:12 before, unit.c:14 now)" in item.reason


@BOTH
def test_an_allocation_of_another_size(tmp_path: Path, compiler: str) -> None:
    """Objects that live have the old size. The argument stands on a line of its own here."""
    before = swap(BUFFER, ("malloc(length + 1)", "malloc(\n        length + 1)"))
    (item,) = found(tmp_path, before, swap(before, ("length + 1)", "length + 9)")), compiler)
    assert (item.code, item.symbol) == ("MF170", "fill")
    assert "changes the call of malloc" in item.reason


@BOTH
def test_a_free_in_a_function_that_is_inlined_is_told_of_that_function_once(tmp_path: Path, compiler: str) -> None:
    helper = "static inline void clear(struct buffer *b)\n{\n    b->size = 0;\n}\nint fill("
    before = swap(BUFFER, ("int fill(", helper), ('note("filled");', "clear(b);"), ('note("dropped");', "clear(b);"))
    after = swap(before, ("{\n    b->size = 0;\n}", "{\n    free(b->data);\n    b->size = 0;\n}"))
    findings = found(tmp_path, before, after, compiler)
    assert codes(findings) == {("MF170", "clear"), ("MF174", "fill"), ("MF174", "drop")}


@BOTH
def test_a_free_in_a_new_function(tmp_path: Path, compiler: str) -> None:
    helper = (
        "__attribute__((noinline)) static void clear(struct buffer *b)\n{\n    free(b->data);\n    b->size = 1;\n}\n"
    )
    after = swap(BUFFER, ("void drop(", helper + "void drop("), ('note("dropped");', "clear(b);"))
    assert codes(found(tmp_path, BUFFER, after, compiler)) == {("MF170", "clear")}


@BOTH
def test_a_call_through_a_variable_that_says_what_it_does(tmp_path: Path, compiler: str) -> None:
    before = swap(BUFFER, ("extern void note", "extern void (*xmlFree)(void *);\nextern void note"))
    after = swap(before, ('    note("dropped");\n', '    note("dropped");\n    xmlFree(b->data);\n'))
    findings = found(tmp_path, before, after, compiler, ("-fPIC",))
    assert codes(findings) == {("MF170", "drop")}
    assert "xmlFree" in findings[0].reason


@BOTH
def test_a_macro_that_frees_now(tmp_path: Path, compiler: str) -> None:
    """The lines that use the macro stay."""
    before = swap(BUFFER, ("struct buffer {", "#define RESET(b) note((b)->data)\nstruct buffer {"))
    before = swap(before, ('    note("dropped");\n', "    RESET(b);\n"))
    after = swap(before, ("note((b)->data)\n", "free((b)->data)\n"))
    assert codes(found(tmp_path, before, after, compiler)) == {("MF170", "drop")}


@BOTH
@pytest.mark.parametrize("call", ["obj_unref(b)", "pool_alloc(b)", "thing_new(b)", "sdsfree(b)", "ngx_pcalloc(b)"])
def test_libraries_of_their_own(tmp_path: Path, compiler: str, call: str) -> None:
    names = (
        "extern void obj_unref(void *), pool_alloc(void *), thing_new(void *), sdsfree(void *), ngx_pcalloc(void *);"
    )
    before = swap(BUFFER, ("extern void note", names + "\nextern void note"))
    after = swap(before, ('    note("dropped");\n', f'    note("dropped");\n    {call};\n'))
    assert codes(found(tmp_path, before, after, compiler)) == {("MF170", "drop")}


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_new_and_delete(tmp_path: Path, compiler: str) -> None:
    source = """
    struct item { int a; };
    extern void note(item *);
    struct list { item *first; void add(int a); void drop(); };
    void list::add(int a) {
        item *made = new item;
        made->a = a;
        first = made;
    }
    void list::drop() {
        note(first);
        first = nullptr;
    }
    """
    after = swap(source, ("        note(first);\n", "        note(first);\n        delete first;\n"))
    assert codes(found(tmp_path, source, after, compiler)) == {("MF170", "_ZN4list4dropEv")}
    assert found(tmp_path, source, swap(source, ("made->a = a;", "made->a = a & 255;")), compiler) == []


# --- hashes and orders ----------------------------------------------------------------------------------------------

TABLE = """
#include <stdlib.h>
extern unsigned seed;
static __attribute__((noinline)) unsigned string_hash(const char *text)
{
    unsigned h = 5381;
    while (*text)
        h = h * 33 + *text++;
    return h;
}
static int by_age(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}
static int by_size(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}
extern void visit(int (*)(const void *, const void *));
int place(const char *text, int *ages, int count)
{
    qsort(ages, count, sizeof *ages, by_age);
    visit(by_size);
    return string_hash(text) % 64;
}
"""


@BOTH
def test_a_changed_hash(tmp_path: Path, compiler: str) -> None:
    (item,) = found(tmp_path, TABLE, swap(TABLE, ("unsigned h = 5381", "unsigned h = seed")), compiler)
    assert (item.code, item.symbol, item.kind) == ("MF171", "string_hash", "sign-off")


@BOTH
def test_a_changed_hash_that_is_inlined(tmp_path: Path, compiler: str) -> None:
    before = swap(TABLE, ("static __attribute__((noinline)) unsigned", "static inline unsigned"))
    after = swap(before, ("unsigned h = 5381", "unsigned h = seed"))
    assert codes(found(tmp_path, before, after, compiler)) == {("MF171", "string_hash"), ("MF174", "place")}


@BOTH
def test_a_comparison_function_that_sorting_uses(tmp_path: Path, compiler: str) -> None:
    body = "by_age(const void *a, const void *b)\n{\n    return "
    findings = found(tmp_path, TABLE, swap(TABLE, (body, body + "3 * ")), compiler)
    assert codes(findings) == {("MF171", "by_age")}
    assert "qsort" in findings[0].reason


@BOTH
def test_a_callback_of_something_else_says_nothing(tmp_path: Path, compiler: str) -> None:
    body = "by_size(const void *a, const void *b)\n{\n    return "
    assert found(tmp_path, TABLE, swap(TABLE, (body, body + "3 * ")), compiler) == []


@BOTH
def test_the_caller_of_a_hash_says_nothing(tmp_path: Path, compiler: str) -> None:
    assert found(tmp_path, TABLE, swap(TABLE, ("    visit(", "    if (count > 3)\n        visit(")), compiler) == []


# --- locks ----------------------------------------------------------------------------------------------------------

LOCKED = """
#include <pthread.h>
extern pthread_mutex_t first, second;
extern int total;
void add(int n)
{
    pthread_mutex_lock(&first);
    pthread_mutex_lock(&second);
    total += n;
    pthread_mutex_unlock(&second);
    pthread_mutex_unlock(&first);
}
"""


@BOTH
def test_another_order_of_locks(tmp_path: Path, compiler: str) -> None:
    after = swap(
        LOCKED, ("lock(&first);\n    pthread_mutex_lock(&second)", "lock(&second);\n    pthread_mutex_lock(&first)")
    )
    (item,) = found(tmp_path, LOCKED, after, compiler)
    assert (item.code, item.symbol, item.kind) == ("MF172", "add", "warning")
    assert not item.blocks


@BOTH
def test_a_lock_that_is_taken_out_and_one_that_is_added(tmp_path: Path, compiler: str) -> None:
    after = swap(LOCKED, ("    pthread_mutex_unlock(&second);\n", ""))
    assert codes(found(tmp_path, LOCKED, after, compiler)) == {("MF172", "add")}
    assert codes(found(tmp_path, after, LOCKED, compiler)) == {("MF172", "add")}


@BOTH
def test_other_code_under_the_same_locks_says_nothing(tmp_path: Path, compiler: str) -> None:
    after = swap(LOCKED, ("    total += n;\n", "    if (n > 0)\n        total += n;\n"))
    assert found(tmp_path, LOCKED, after, compiler) == []


# --- where debug information and the fix name files differently -----------------------------------------------------


def test_a_copy_that_the_build_made_is_known_by_its_content(tmp_path: Path) -> None:
    file = compare("lib/unit.c", b"one\ntwo\n", b"one\nthree\n")
    (tmp_path / "copy" / "src").mkdir(parents=True)
    for text, known in (("one\ntwo\n", True), ("one\nthree\n", True), ("something else\n", False)):
        (tmp_path / "copy" / "src" / "unit.c").write_text(text)
        found = Touched({"lib/unit.c": file}, tmp_path).find("./copy/src/unit.c")
        assert (found is file) is known
    assert Touched({"lib/unit.c": file}, tmp_path).find("/build/pkg-1.0/lib/unit.c") is file
    assert Touched({"lib/unit.c": file}).find("other/unit.c") is None
    assert Touched({"lib/unit.c": file}).find("unit.c") is file
