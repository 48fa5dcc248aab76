"""Changes that must not be made in a running program: each is refused by its code, and nothing is written.

Where a reviewer may say otherwise, the override is tested on a running program too.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.commands import Ran
from tests.live.harness import ASK, Lab
from tests.live.story import tell, versions

pytestmark = pytest.mark.live

OUTLINE = "__attribute__((noinline)) static void answer"
"""Or it would become a part of main, which is refused for that alone."""
MAKE = "cc -O2 -pthread -o target target.c"


def blocking(built: Ran) -> list[dict[str, Any]]:
    """The findings of a build without what is only noted."""
    return [item for item in built.json["report"]["findings"] if item["kind"] in ("refusal", "sign-off")]


def refused(lab: Lab, name: str, text: str, make: str = MAKE, ask: str = ASK) -> dict[tuple[str, str], str]:
    """Build a fix that must be refused; {(code, symbol): reason}."""
    before, after = versions(ask + text.replace("static void answer", OUTLINE))
    fix = lab.fix(name, {"target.c": before}, {"target.c": after}, make=make, status=3)
    assert not fix.hotpatch.exists()
    findings = blocking(fix.built)
    assert all(item["remedy"] for item in findings)
    return {(item["code"], item["symbol"]): item["reason"] for item in findings}


def test_changed_initial_value(lab: Lab) -> None:
    found = refused(
        lab,
        "initial-value",
        r"""
static int limit = @{10@|20@};
static int table[] = {1, 2, @{3@|4@}};
static void answer(const char *line) { limit++; table[1]++; printf("%d %d\n", limit, table[atoi(line) % 3]); }
""",
    )
    assert set(found) == {("MF110", "limit"), ("MF110", "table")}


def test_changed_layout_of_a_structure(lab: Lab) -> None:
    found = refused(
        lab,
        "layout",
        r"""
struct session { int id; @{@|char *owner; @}long uses; };
static struct session *session;
static void answer(const char *line) {
  if (!session) session = calloc(1, sizeof *session);
  printf("%ld\n", ++session->uses);
}
""",
    )
    assert ("MF111", "struct session") in found
    assert "owner" in found["MF111", "struct session"]


def test_grown_array(lab: Lab) -> None:
    found = refused(
        lab,
        "grown",
        r"""
static char buffer[@{16@|64@}];
static void answer(const char *line) { strncpy(buffer, line, sizeof buffer - 1); puts(buffer); }
""",
    )
    assert ("MF116", "buffer") in found


def test_new_thread_local_variable(lab: Lab) -> None:
    found = refused(
        lab,
        "new-tls",
        r"""
@{@|static __thread int uses;@}
static void answer(const char *line) { printf("%d\n", (int)strlen(line) @{@|+ ++uses@}); }
""",
    )
    assert ("MF113", "uses") in found


def test_code_that_runs_only_at_start_up(lab: Lab) -> None:
    found = refused(
        lab,
        "start-up",
        r"""
static int level;
__attribute__((constructor)) static void prepare(void) { level = (int)strlen(getenv("HOME")) @{+ 1@|+ 2@}; }
static void answer(const char *line) { printf("%d\n", level); }
""",
    )
    assert [code for code, _ in found] == ["MF114"]


def test_new_constructor(lab: Lab) -> None:
    found = refused(
        lab,
        "constructor",
        r"""
static int level;
@{@|__attribute__((constructor)) static void prepare(void) { level = (int)strlen(getenv("HOME")); }@}
static void answer(const char *line) { printf("%d\n", level); }
""",
    )
    assert ("MF114", "prepare") in found


def test_changed_main(lab: Lab) -> None:
    found = refused(lab, "main", "static void answer(const char *line) { puts(line); }", ask=ASK.replace(
        'puts("ready");', 'puts("ready");@{@| setvbuf(stderr, NULL, _IOLBF, 0);@}'))  # fmt: skip
    assert ("MF117", "main") in found


def test_entry_with_no_room(lab: Lab) -> None:
    found = refused(
        lab,
        "no-room",
        r"""
__attribute__((noinline)) int tiny(int n) { return n @{@|+ 1@}; }
__attribute__((noinline)) int other(int n) { return n * 3; }
static void answer(const char *line) { printf("%d\n", tiny(atoi(line)) + other(1)); }
""",
        make="cc -Os -pthread -o target target.c",
    )
    assert set(found) == {("MF120", "tiny")}


def test_signature_with_unchanged_callers(lab: Lab) -> None:
    before, after = versions(
        ASK
        + r"""
int measure(@{int n@|long a, int n@});
__attribute__((noinline)) int measure(@{int n@|long a, int n@}) { return n + @{1@|(int)a@}; }
static void answer(const char *line) { printf("%d\n", measure(@{1@|2, 1@})); }
"""
    )
    other = "#include <stdio.h>\nint measure(int n);\nint elsewhere(void) { return measure(5); }\n"
    fix = lab.fix(
        "signature",
        {"target.c": before, "other.c": other},
        {"target.c": after},
        make="cc -O2 -o target target.c other.c",
        status=3,
    )
    assert ("MF112", "measure") in {(f["code"], f["symbol"]) for f in fix.built.json["report"]["findings"]}


def test_link_time_optimisation(lab: Lab) -> None:
    before, after = versions(ASK + OUTLINE + '(const char *line) { printf("%s@{@|!@}\\n", line); }')
    fix = lab.fix(
        "lto", {"target.c": before}, {"target.c": after}, make="cc -O2 -flto -o target target.c", status=3
    )  # fmt: skip
    assert "MF101" in fix.built.err and "-flto" in fix.built.err
    assert not fix.hotpatch.exists()


def test_running_binary_of_another_build(lab: Lab) -> None:
    """Made from the same source with other flags: the refusal names the instruction that differs."""
    before, after = versions(
        ASK
        + r"""
__attribute__((noinline)) int work(int n) { int s = 0; for (int i = 0; i < n; i++) s += i * @{3@|5@}; return s; }
static void answer(const char *line) { printf("%d\n", work(atoi(line))); }
"""
    )
    lab.fix("flags", {"target.c": before}, {"target.c": after}, make="cc -O1 -o target target.c")
    fix = lab.fix(
        "flags", {"target.c": before}, {"target.c": after}, make="cc -O3 -o target target.c", sequence=2, status=3
    )
    findings = {(f["code"], f["symbol"]): f["reason"] for f in fix.built.json["report"]["findings"]}
    assert ("MF130", "work") in findings
    assert "+0x" in findings["MF130", "work"]


def test_library_variable_that_the_program_has_no_copy_of(lab: Lab) -> None:
    found = refused(
        lab,
        "copy",
        r"""
extern char *program_invocation_short_name;
static void answer(const char *line) { printf("%s %s\n", line, @{line@|program_invocation_short_name@}); }
""",
    )
    assert {code for code, _ in found} == {"MF141"}


def test_new_library_function_in_a_static_program(lab: Lab) -> None:
    found = refused(
        lab,
        "static-new",
        r"""
#include <sys/socket.h>
static void answer(const char *line) { printf("%d\n", @{0@|socketpair(0, 0, 0, NULL)@}); }
""",
        make="cc -O2 -static -o target target.c",
    )
    assert {code for code, _ in found} == {"MF141"}


def test_resolver_of_an_indirect_function(lab: Lab) -> None:
    found = refused(
        lab,
        "resolver",
        r"""
__attribute__((used)) static int one(int n) { return n + 1; }
__attribute__((used)) static int two(int n) { return n + 2; }
static int (*choose(void))(int) { return @{one@|two@}; }
int pick(int n) __attribute__((ifunc("choose")));
static void answer(const char *line) { printf("%d\n", pick(atoi(line))); }
""",
    )
    assert {code for code, _ in found} <= {"MF114", "MF121"} and found


def test_override_with_a_written_reason_is_carried_out_and_kept(lab: Lab) -> None:
    before, after = versions(
        ASK
        + r"""
static int limit = @{10@|20@};
__attribute__((noinline)) int work(int n) { return n * @{2@|3@} + limit; }
static void answer(const char *line) { if (*line == '+') limit++; printf("%d\n", work(atoi(line))); }
"""
    )
    reason = "read anew on every reload"
    fix = lab.fix(
        "override",
        {"target.c": before},
        {"target.c": after},
        options=("--override", f"MF110:limit={reason}"),
    )
    assert blocking(fix.built)[0]["overridden"] == reason
    story = tell(fix, ["5"])
    # The fix is there, and the variable is what it was.
    assert story.says("5") == ("20", "25")


def test_override_of_nothing_is_refused(lab: Lab) -> None:
    before, after = versions(ASK + OUTLINE + '(const char *line) { printf("%s@{@|!@}\\n", line); }')
    fix = lab.fix(
        "override-nothing", {"target.c": before}, {"target.c": after},
        options=("--override", "MF110:limit=whatever"), status=3,
    )  # fmt: skip
    assert {f["code"] for f in blocking(fix.built)} == {"MF162"}


def test_nothing_to_patch(lab: Lab) -> None:
    text = 'static void answer(const char *line) { printf("%d\\n", @{1 + atoi(line)@|atoi(line) + 1@}); }'
    assert {code for code, _ in refused(lab, "nothing", text, make=MAKE + " -g")} == {"MF160"}


def test_fix_that_changes_a_comment_alone(lab: Lab) -> None:
    before, after = versions(ASK + "static void answer(const char *line) { puts(line); } /* @{a@|b@} */")
    fix = lab.fix("comment", {"target.c": before}, {"target.c": after}, status=2)
    assert "changes no compiled file" in fix.built.err
