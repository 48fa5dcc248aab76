"""Hooks of the author, probes, policies, and hotpatches that replace each other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands import midflight
from tests.live.harness import ASK, Fix, Lab, Target, check
from tests.live.story import finish, versions

pytestmark = pytest.mark.live

PROGRAM = (
    ASK
    + r"""
static int limit = 10, applied, fail;
struct entry { int value; struct entry *next; };
static struct entry *entries;
__attribute__((noinline)) int work(int n) { return n * @{2@|3@} + limit; }
__attribute__((noinline)) static void answer(const char *line) {
  if (*line == 'f') fail = atoi(line + 1);
  struct entry *e = malloc(sizeof *e);
  *e = (struct entry){atoi(line), entries};
  entries = e;
  printf("%d %d %d %d\n", work(atoi(line)), limit, applied, entries->next ? entries->next->value : 0);
}
"""
)
HOOKS = r"""
/* Global variables of the program are reached by their names. */
extern int limit, applied, fail;
struct entry { int value; struct entry *next; };
extern struct entry *entries;
int midflight_before_apply(void) { return fail & 1; }
int midflight_after_apply(void) {
  limit += 100, applied++;
  for (struct entry *e = entries; e; e = e->next) e->value += 1000;
  return fail & 2;
}
int midflight_before_revert(void) { return fail & 4; }
int midflight_after_revert(void) { limit -= 100; return 0; }
"""


def outcome(result: object) -> tuple[str, str]:
    """(outcome, reason) of the one process in the JSON of a command."""
    assert isinstance(result, dict)
    (process,) = result["processes"]
    return process["outcome"], process["reason"]


@pytest.fixture(scope="module")
def hooked(lab: Lab) -> Fix:
    """A fix with hooks that count, change data, and fail when told so."""
    text = PROGRAM.replace("static int limit", "int limit").replace("static struct entry *", "struct entry *")
    before, after = versions(text)
    hooks = lab.folder / "hooks.c"
    hooks.write_text(HOOKS)
    return lab.fix("hooks", {"target.c": before}, {"target.c": after}, options=("--hooks", str(hooks)))


def test_hooks_change_data_with_the_code(hooked: Fix) -> None:
    with Target.start(hooked.image) as target:
        assert target.ask("5") == "20 10 0 0"
        hooked.apply(target.pid)
        assert target.ask("6") == "128 110 1 1005"
        assert check(target.pid)["processes"][0]["clean"]
        hooked.revert(target.pid)
        assert target.ask("7") == "24 10 1 6"
        assert check(target.pid)["processes"][0]["clean"]
        assert finish(target) == 0


def test_hook_before_apply_that_says_no(hooked: Fix) -> None:
    with Target.start(hooked.image) as target:
        target.ask("f1")
        what, why = outcome(hooked.apply(target.pid, status=1))
        assert what == "failed" and "before_apply" in why
        assert target.ask("5") == "20 10 0 0"
        assert check(target.pid)["processes"][0]["clean"]
        target.ask("f0")
        hooked.apply(target.pid)
        assert target.ask("5").startswith("125 110")


def test_hook_after_apply_that_says_no(hooked: Fix) -> None:
    with Target.start(hooked.image) as target:
        target.ask("f2")
        what, why = outcome(hooked.apply(target.pid, status=1))
        assert what == "failed" and "after_apply" in why
        assert target.ask("5").split()[0] in ("20", "120")
        assert check(target.pid)["processes"][0]["clean"]


def test_hook_before_revert_that_says_no(hooked: Fix) -> None:
    with Target.start(hooked.image) as target:
        hooked.apply(target.pid)
        target.ask("f4")
        what, why = outcome(hooked.revert(target.pid, status=1))
        assert what == "failed" and "before_revert" in why
        assert target.ask("5").startswith("125 110")
        target.ask("f0")
        hooked.revert(target.pid)
        assert target.ask("5").startswith("20 10")
        assert check(target.pid)["processes"][0]["clean"]


@pytest.fixture(scope="module")
def three(lab: Lab) -> tuple[Fix, Fix, Fix]:
    """Three fixes of one program, each cumulative since the baseline."""

    def text(factor: int, extra: str = "") -> dict[str, str]:
        return {
            "target.c": ASK
            + f"""
static int state = 1;
{"static int fresh = 100;" if extra else ""}
__attribute__((noinline)) int first(int n) {{ return n * {factor} + state++; }}
__attribute__((noinline)) int second(int n) {{ return n + 1 {extra}; }}
__attribute__((noinline)) static void answer(const char *line) {{
  printf("%d %d\\n", first(atoi(line)), second(atoi(line)));
}}
"""
        }

    base = text(1)
    return (
        lab.fix("three", base, text(2), sequence=1),
        lab.fix("three", base, text(3, "+ fresh++"), sequence=2),
        lab.fix("three", base, text(4, "+ 2 * fresh++"), sequence=3),
    )


def test_cumulative_hotpatches_replace_each_other(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        assert target.ask("10") == "11 11"
        said = []
        for fix in three:
            fix.apply(target.pid)
            said.append(target.ask("10"))
            assert check(target.pid)["processes"][0]["clean"]
            (process,) = midflight("status", "--pid", str(target.pid), "--json").json["processes"]
            in_force = [item["sequence"] for item in process["hotpatches"] if item["state"] == "applied"]
            assert in_force == [len(said)]
        assert said == ["22 11", "33 111", "44 211"]
        three[2].revert(target.pid)
        assert target.ask("10") == "15 11"
        assert check(target.pid)["processes"][0]["clean"]


def test_older_hotpatch_does_not_replace_a_newer_one(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        three[2].apply(target.pid)
        result = three[0].apply(target.pid, status=None)
        assert outcome(result)[0] in ("failed", "already", "skipped"), result
        assert target.ask("10") == "41 211"
        assert check(target.pid)["processes"][0]["clean"]


def test_the_same_hotpatch_twice(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        three[0].apply(target.pid)
        assert outcome(three[0].apply(target.pid))[0] == "already"
        assert target.ask("10") == "21 11"


def test_apply_and_revert_again_and_again(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        for _ in range(3):
            three[1].apply(target.pid)
            assert target.ask("0").endswith("101")
            three[1].revert(target.pid)
            assert target.ask("0").endswith(" 1")
        assert check(target.pid)["processes"][0]["clean"]


def test_dry_run_changes_nothing(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        maps = Path(f"/proc/{target.pid}/maps").read_text()
        assert outcome(three[0].apply(target.pid, options=["--dry-run"]))[0] == "would-apply"
        assert Path(f"/proc/{target.pid}/maps").read_text() == maps
        assert target.ask("10") == "11 11"


def test_probe_that_succeeds_sees_the_process(three: tuple[Fix, Fix, Fix], tmp_path: Path) -> None:
    with Target.start(three[0].image) as target:
        seen = tmp_path / "seen"
        result = three[0].apply(target.pid, options=["--probe", f"echo $MIDFLIGHT_PIDS > {seen}", "--probe", "true"])
        assert result["probe_failed"] is None
        assert seen.read_text().split() == [str(target.pid)]
        assert target.ask("10") == "21 11"


@pytest.mark.parametrize(
    ("probe", "said"),
    [("exit 7", "ended with status 7"), ("sleep 60", "did not end within"), ("kill -9 $$", "ended with status")],
)
def test_probe_that_fails_takes_the_hotpatch_out(three: tuple[Fix, Fix, Fix], probe: str, said: str) -> None:
    with Target.start(three[0].image) as target:
        result = three[0].apply(
            target.pid, options=["--probe", "true", "--probe", probe, "--probe-timeout", "1"], status=1
        )
        assert said in result["probe_failed"]
        assert target.ask("10") == "11 11"
        assert check(target.pid)["processes"][0]["clean"]


def test_probe_that_fails_after_a_replacement_returns_to_the_bytes_on_disk(three: tuple[Fix, Fix, Fix]) -> None:
    with Target.start(three[0].image) as target:
        three[0].apply(target.pid)
        three[1].apply(target.pid, options=["--probe", "false"], status=1)
        assert target.ask("10") == "11 11"
        assert check(target.pid)["processes"][0]["clean"]


BUSY = r"""
#include <stdio.h>
#include <unistd.h>
#include <pthread.h>
#include <string.h>
static int pipes[2];
__attribute__((noinline)) int wait_for_work(int n) {
  char c;
  if (read(pipes[0], &c, 1) != 1) return -1;
  return n + c @{@|+ 1000@};
}
static void *waiting(void *p) { for (int n; (n = wait_for_work(0)) >= 0;) { printf("%d\n", n); } return p; }
int main(void) {
  char line[64];
  pthread_t t;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (pipe(pipes)) return 1;
  pthread_create(&t, NULL, waiting, NULL);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) if (write(pipes[1], "\1", 1) != 1) return 1;
  return 0;
}
"""


def test_thread_that_sleeps_in_the_function_needs_the_entry_policy(lab: Lab) -> None:
    before, after = versions(BUSY)
    strict = lab.fix("policy", {"target.c": before}, {"target.c": after})
    why = "the old and the new function may run side by side: they share no data"
    entry = lab.fix(
        "policy", {"target.c": before}, {"target.c": after}, sequence=2,
        options=("--policy", "entry", "--policy-reason", why),
    )  # fmt: skip
    with Target.start(strict.image) as target:
        assert target.ask() == "1"
        what, reason = outcome(strict.apply(target.pid, options=["--timeout", "1"], status=1))
        assert what == "failed" and "wait_for_work" in reason
        entry.apply(target.pid)
        # The call that waits is an old one; the next is new.
        assert [target.ask(), target.ask(), target.ask()] == ["1", "1001", "1001"]
        assert check(target.pid)["processes"][0]["clean"]
        # A thread sleeps in new code; entries are restored at once, memory stays until it has left.
        entry.revert(target.pid)
        assert [target.ask(), target.ask(), target.ask()] == ["1001", "1", "1"]
        assert check(target.pid)["processes"][0]["clean"]


def test_entry_policy_without_a_reason_is_refused(lab: Lab) -> None:
    before, after = versions(BUSY)
    ran = lab.fix(
        "policy", {"target.c": before}, {"target.c": after}, sequence=3, options=("--policy", "entry"), status=2
    ).built
    assert "reason" in ran.err
    assert json.loads(ran.out)["error"]["exit_status"] == 2


def test_children_of_fork_inherit_code_and_ledger(lab: Lab) -> None:
    before, after = versions(
        ASK.replace("#include <stdio.h>", "#include <stdio.h>\n#include <unistd.h>\n#include <sys/wait.h>")
        + r"""
__attribute__((noinline)) int work(int n) { return n * @{2@|3@}; }
__attribute__((noinline)) static void answer(const char *line) {
  int pid = fork();
  if (!pid) { printf("%d %d\n", (int)getpid(), work(atoi(line))); sleep(60); _exit(0); }
}
"""
    )
    fix = lab.fix("fork", {"target.c": before}, {"target.c": after})
    with Target.start(fix.image) as target:
        fix.apply(target.pid)
        child, value = target.ask("5").split()
        try:
            assert value == "15"
            assert check(int(child))["processes"][0]["clean"]
            fix.revert(target.pid)
            fix.revert(int(child))
            assert check(int(child), target.pid)["processes"][0]["clean"]
        finally:
            os.kill(int(child), 9)
