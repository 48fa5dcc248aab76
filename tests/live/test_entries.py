"""Where the jump to new code goes: functions of a few bytes, at the end of a page, with padding or without."""

from __future__ import annotations

import pytest

from tests.live.harness import ASK, Lab, Target, check
from tests.live.story import Story, tell, versions

pytestmark = pytest.mark.live

TINY = (
    ASK
    + r"""
/* 1, 3, 4 and 6 bytes of code; what follows each is padding up to the alignment of 16. */
__attribute__((noinline)) void nothing(int *p) { @{@|*p = 7;@} __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) int zero(void) { return @{0@|41@}; }
__attribute__((noinline)) int same(int n) { return n @{@|+ 5@}; }
__attribute__((noinline)) int six(void) { return @{6@|66@}; }
static int (*volatile zero_held)(void), (*volatile same_held)(int), (*volatile six_held)(void);
static void (*volatile nothing_held)(int *);
__attribute__((noinline)) static void answer(const char *line) {
  int p = 1;
  nothing_held = nothing, zero_held = zero, same_held = same, six_held = six;
  nothing_held(&p);
  printf("%d %d %d %d\n", p, zero_held(), same_held(1), six_held());
}
"""
)


@pytest.mark.parametrize("compiler", ["cc -O2", "clang -O2", "cc -O2 -fcf-protection", "cc -O2 -no-pie"])
def test_functions_of_a_few_bytes(lab: Lab, compiler: str) -> None:
    before, after = versions(TINY)
    name = "tiny-" + "".join(c for c in compiler if c.isalnum())
    fix = lab.fix(name, {"target.c": before}, {"target.c": after}, make=f"{compiler} -o target target.c")
    assert tell(fix, ["x"]).says("x") == ("1 0 1 6", "7 41 6 66")


def test_six_byte_functions_side_by_side(lab: Lab) -> None:
    """Without padding a six-byte function has room for the jump, and its neighbour must stay as it is."""
    before, after = versions(
        ASK
        + r"""
__attribute__((noinline)) int one(void) { return @{1@|11@}; }
__attribute__((noinline)) int two(void) { return 2; }
__attribute__((noinline)) int three(void) { return @{3@|33@}; }
static int (*const volatile all[])(void) = {one, two, three};
__attribute__((noinline)) static void answer(const char *line) { printf("%d %d %d\n", all[0](), all[1](), all[2]()); }
"""
    )
    make = "cc -O2 -falign-functions=1 -o target target.c"
    fix = lab.fix("six", {"target.c": before}, {"target.c": after}, make=make)
    assert tell(fix, ["x"]).says("x") == ("1 2 3", "11 2 33")


PAGES = r"""
/* An entry that begins so many bytes before the end of a page. */
__asm__(".pushsection .text.at_%(name)s, \"ax\", @progbits\n .balign 4096\n"
        "before_%(name)s: ret\n .type before_%(name)s, @function\n .size before_%(name)s, 1\n"
        " .skip 4096 - %(before)d - 33, 0x90\n .skip 32, 0xcc\n .popsection");
__attribute__((noinline, section(".text.at_%(name)s"), aligned(1))) int %(name)s(int n) {
  __asm__ volatile("nopw 0(%%%%rax,%%%%rax,1)" : "+r"(n));
  return n + @{1@|10@};
}
"""


def crossing(lab: Lab, before: int, status: int = 0) -> Story | None:
    """A function that begins ``before`` bytes ahead of a page's end."""
    page = (PAGES % {"name": "edge", "before": before}).replace("%%%%", "%%")
    old, new = versions(page)
    main = ASK + 'int edge(int n);\nstatic void answer(const char *line) { printf("%d\\n", edge(atoi(line))); }\n'
    fix = lab.fix(
        f"page-{before}",
        {"target.c": main, "edge.c": old},
        {"edge.c": new},
        make="cc -Os -fno-toplevel-reorder -falign-functions=1 -c edge.c && cc -O2 -o target target.c edge.o",
        status=status,
    )
    return tell(fix, ["5"]) if status == 0 else None


@pytest.mark.parametrize("before", [5, 8])
def test_entry_that_ends_with_its_page(lab: Lab, before: int) -> None:
    story = crossing(lab, before)
    assert story is not None
    assert story.says("5") == ("6", "15")


@pytest.mark.parametrize("before", [2, 3, 4])
def test_entry_that_crosses_a_page_goes_through_padding(lab: Lab, before: int) -> None:
    story = crossing(lab, before)
    assert story is not None
    assert story.says("5") == ("6", "15")


IFUNC = (
    ASK
    + r"""
__attribute__((noinline)) static int one(int n) { __asm__ volatile("" : "+r"(n)); return n * 10 + @{1@|3@}; }
__attribute__((noinline)) static int two(int n) { return n + 2; }
static int wanted;
static int (*choose(void))(int) { return wanted ? two : one; }
int pick(int n) __attribute__((ifunc("choose")));
__attribute__((noinline)) static int through(int n) { return pick(n) @{@|+ 1000@}; }
static int (*volatile held)(int);
__attribute__((noinline)) static void answer(const char *line) {
  if (!held) held = pick;
  printf("%d %d\n", through(atoi(line)), held(1));
}
"""
)


@pytest.mark.parametrize("make", ["cc -O2", "cc -O2 -no-pie -fno-pie", "cc -O2 -static"])
def test_indirect_function_of_the_program_itself(lab: Lab, make: str) -> None:
    before, after = versions(IFUNC)
    name = "ifunc-" + "".join(c for c in make if c.isalnum())
    fix = lab.fix(name, {"target.c": before}, {"target.c": after}, make=f"{make} -o target target.c")
    assert tell(fix, ["5"]).says("5") == ("51 11", "1053 13")


def test_function_that_start_up_code_calls_too(lab: Lab) -> None:
    """Called by a constructor and at run time: what start-up did stays done."""
    before, after = versions(
        ASK
        + r"""
static int level;
__attribute__((noinline)) int scale(int n) { __asm__ volatile("" : "+r"(n)); return n * @{2@|3@}; }
__attribute__((constructor)) static void prepare(void) { level = scale(10); }
__attribute__((noinline)) static void answer(const char *line) { printf("%d %d\n", level, scale(atoi(line))); }
"""
    )
    fix = lab.fix("init-array", {"target.c": before}, {"target.c": after})
    assert tell(fix, ["5"]).says("5") == ("20 10", "20 15")


def test_breakpoint_of_somebody_else_at_an_entry(lab: Lab) -> None:
    """Bytes at an entry that are not those of the file: nothing is written."""
    before, after = versions(TINY)
    fix = lab.fix("tiny-breakpoint", {"target.c": before}, {"target.c": after})
    with Target.start(fix.image) as target:
        assert target.ask() == "1 0 1 6"
        entry = next(f for f in fix.built.json["report"]["functions"] if f["name"] == "six")["vaddr"]
        with open(f"/proc/{target.pid}/maps") as maps:
            base = int(next(line for line in maps if "running/target" in line).split("-")[0], 16)
        with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(base + entry)
            was = memory.read(1)
            memory.seek(base + entry)
            memory.write(b"\xcc")
            (process,) = fix.apply(target.pid, status=1)["processes"]
            assert process["outcome"] == "failed", process
            assert not check(target.pid, status=1)["processes"][0]["clean"]
            memory.seek(base + entry)
            memory.write(was)
        assert target.ask() == "1 0 1 6"
        fix.apply(target.pid)
        assert target.ask() == "7 41 6 66"
