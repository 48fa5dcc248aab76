"""The agent on real processes: what they answer says what they run."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from midflight.process.live import holding_tells
from tests.agent.harness import RunningAgent, fill
from tests.commands import midflight, until
from tests.live.harness import ASK, Fix, Lab, Target

pytestmark = pytest.mark.live

PROGRAM = (
    ASK
    + r"""
#include <dlfcn.h>
#include <unistd.h>
#include <sys/wait.h>
__attribute__((noinline)) int value(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
static int (*other)(int);
static void answer(const char *line) {
  if (!strcmp(line, "crash")) *(volatile int *)8 = 0;
  if (!strcmp(line, "load")) other = (int (*)(int))dlsym(dlopen(getenv("LIBRARY"), RTLD_NOW), "other");
  if (!strcmp(line, "fork")) {
    pid_t child = fork();
    if (!child) { printf("%d\n", value(1)); *(volatile int *)8 = 0; }
    waitpid(child, NULL, 0);
    return;
  }
  printf("%d %d\n", value(1), other ? other(1) : 0);
}
"""
)
MAKE = "cc -O2 -o target target.c -ldl"
LIBRARY = '__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 10; }\n'
USER = ASK + '\nint other(int x);\nstatic void answer(const char *line) { printf("%d\\n", other(1)); }\n'
LIBRARY_MAKE = (
    "cc -O2 -fPIC -shared -Wl,-soname,libother.so -o libother.so other.c && "
    "cc -O2 -o user user.c -L. -lother -Wl,-rpath,'$ORIGIN'"
)


@dataclass(frozen=True)
class Fixes:
    """Three hotpatches: two sequences for a program, one for a library."""

    first: Fix
    second: Fix
    library: Fix

    @property
    def program(self) -> Path:
        """The program that the first two are for."""
        return self.first.image


@pytest.fixture(scope="module")
def fixes(tmp_path_factory: pytest.TempPathFactory) -> Fixes:
    """Built once."""
    lab = Lab.create(tmp_path_factory.mktemp("agent"))

    def fixed(value: int) -> dict[str, str]:
        return {"target.c": PROGRAM.replace("x * 0 + 1;", f"x * 0 + {value};")}

    before = {"target.c": PROGRAM}
    sources = {"other.c": LIBRARY, "user.c": USER}
    return Fixes(
        lab.fix("answers", before, fixed(2), MAKE),
        lab.fix("answers", before, fixed(3), MAKE, sequence=2),
        lab.fix("library", sources, {"other.c": LIBRARY.replace("+ 10", "+ 20")}, LIBRARY_MAKE, image="libother.so"),
    )


def agent(fixes: Fixes, home: Path, settings: str = "", before: tuple[str, ...] = ()) -> RunningAgent:
    return RunningAgent(home, fixes.first.lab.trust, settings, before)


def becomes(target: Target, answer: str, question: str = "") -> None:
    until(lambda: target.ask(question) == answer, f"answering {answer}")


def test_what_runs_what_starts_and_what_loads_later_is_patched(fixes: Fixes, tmp_path: Path) -> None:
    library = {"LIBRARY": str(fixes.library.image)}
    user = fixes.library.image.parent / "user"
    with Target.start(fixes.program, env=library) as early, agent(fixes, tmp_path, "rescan = 0.3") as running:
        assert early.ask() == "1 0"
        running.order(fixes.first.hotpatch)
        running.order(fixes.library.hotpatch, "library.hotpatch")
        becomes(early, "2 0")
        with Target.start(fixes.program) as late, Target.start(user) as linked:
            becomes(late, "2 0")
            becomes(linked, "20")
            until(lambda: [h["processes"] for h in running.ask("status")["hotpatches"]] == [2, 1], "all counted")
        assert early.ask("load") in ("2 10", "2 20")
        becomes(early, "2 20")
        midflight("check", "--pid", str(early.pid))
        assert running.says("answers 1 in process") and running.says("library 1 in process")


def test_the_latest_sequence_counts_and_what_disappears_stays(fixes: Fixes, tmp_path: Path) -> None:
    with Target.start(fixes.program) as target, agent(fixes, tmp_path) as running:
        second = running.order(fixes.second.hotpatch)
        becomes(target, "3 0")
        running.order(fixes.first.hotpatch)
        until(lambda: len(running.ask("status")["hotpatches"]) == 1, "decided")
        second.unlink()
        until(lambda: running.says("answers 2: not ordered any more, stays where it is"), "noticed")
        assert target.ask() == "3 0"
        with Target.start(fixes.program) as late:
            becomes(late, "2 0")
        assert running.stop() == 0
        assert target.ask() == "3 0", "what is in force stays in force"
        assert not running.ask("status", status=1)["running"]


def test_what_disappears_is_taken_out_where_that_is_wanted(fixes: Fixes, tmp_path: Path) -> None:
    with Target.start(fixes.program) as target, agent(fixes, tmp_path, 'removed = "revert"') as running:
        first, second = running.order(fixes.first.hotpatch), running.order(fixes.second.hotpatch)
        becomes(target, "3 0")
        second.unlink()
        becomes(target, "2 0")
        running.stop(signal.SIGKILL)
        first.unlink()
        running.start()
        becomes(target, "1 0")


def test_files_that_nobody_trusted_signed_are_told_and_not_applied(fixes: Fixes, tmp_path: Path) -> None:
    stranger = Lab.create(tmp_path / "stranger")
    with agent(fixes, tmp_path / "home") as running, Target.start(fixes.program) as target:
        data = bytearray(fixes.second.hotpatch.read_bytes())
        data[-700] ^= 1
        (running.folder / "altered.hotpatch").write_bytes(data)
        (running.folder / "empty.hotpatch").touch()
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        problems = {p["what"] for p in running.ask("status", status=1)["problems"]}
        assert problems == {"altered.hotpatch", "empty.hotpatch"}
    with RunningAgent(tmp_path / "other", stranger.trust) as running, Target.start(fixes.program) as target:
        running.order(fixes.first.hotpatch)
        until(lambda: running.says("1.hotpatch"), "told")
        assert target.ask() == "1 0"


def test_a_crash_takes_it_out_everywhere_and_bars_it(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path) as running, Target.start(fixes.program) as target:
        running.order(fixes.first.hotpatch)
        running.order(fixes.second.hotpatch)
        becomes(target, "3 0")
        crash(fixes.program, "3 0")
        becomes(target, "2 0")  # the one before it, which nothing is known against
        (bar,) = running.ask("bars")["bars"]
        assert (bar["name"], bar["sequence"]) == ("answers", 2) and "SIGSEGV" in bar["reason"]
        running.stop(signal.SIGKILL)
        running.start()
        with Target.start(fixes.program) as late:
            becomes(late, "2 0")
        running.ask("unbar", "answers")
        becomes(target, "3 0")


def test_a_child_that_was_forked_counts_as_well(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path) as running, Target.start(fixes.program) as target:
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        target.ask("fork")
        becomes(target, "1 0")
        assert running.ask("bars")["bars"]


def test_a_crash_is_noticed_by_an_agent_that_did_not_apply_it(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path) as running, Target.start(fixes.program) as target:
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        until(lambda: running.ask("status")["hotpatches"][0]["processes"] == 1, "on record")
        running.stop(signal.SIGKILL)
        running.start()
        target.stop(signal.SIGABRT)
        until(lambda: running.ask("bars")["bars"], "barred")


def test_who_is_ended_by_somebody_did_not_crash(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path) as running:
        running.order(fixes.first.hotpatch)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with Target.start(fixes.program) as target:
                becomes(target, "2 0")
                target.stop(number)
        with Target.start(fixes.program) as target:
            becomes(target, "2 0")
            assert not running.ask("bars")["bars"]


def test_a_probe_that_fails_takes_it_out_and_bars_it(fixes: Fixes, tmp_path: Path) -> None:
    verdict = tmp_path / "well"
    verdict.touch()
    settings = f"[health]\nchecks = [0.3, 0.6, 2.0]\nprobes = ['test -e {verdict} && kill -0 $MIDFLIGHT_PIDS']"
    with Target.start(fixes.program) as target, agent(fixes, tmp_path / "home", settings) as running:
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        time.sleep(0.8)
        assert target.ask() == "2 0" and not running.ask("bars")["bars"]
        verdict.unlink()
        becomes(target, "1 0")
        (bar,) = running.ask("bars")["bars"]
        assert "probe failed" in bar["reason"] and "status 1" in bar["reason"]


def test_barred_by_hand(fixes: Fixes, tmp_path: Path) -> None:
    with Target.start(fixes.program) as target, agent(fixes, tmp_path) as running:
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        running.ask("bar", "answers", "--reason", "it is slow")
        becomes(target, "1 0")
        assert running.ask("bars")["bars"][0]["reason"] == "it is slow"
        assert "not barred" in midflight("agent", "unbar", "no-such", env=running.environment, status=2).err


def crash(program: Path, answer: str) -> None:
    """A process that is patched, by its answer, crashes."""
    with Target.start(program) as doomed:
        becomes(doomed, answer)
        assert doomed.process.stdin is not None
        doomed.process.stdin.write(b"crash\n")
        doomed.process.stdin.flush()
        assert doomed.process.wait(30) == -signal.SIGSEGV


def test_in_a_network_namespace_the_kernel_tells_of_starts_and_crashes(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path, before=("unshare", "--net")) as running, Target.start(fixes.program) as target:
        assert running.says("noticed by the kernel's process events")
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        crash(fixes.program, "2 0")
        becomes(target, "1 0")
        (bar,) = running.ask("bars")["bars"]
        assert "SIGSEGV" in bar["reason"]


def test_where_the_kernel_tells_nothing_processes_are_looked_for_and_held(fixes: Fixes, tmp_path: Path) -> None:
    nothing = ("unshare", "--net", "setpriv", "--bounding-set", "-sys_admin")
    with agent(fixes, tmp_path, before=nothing) as running, Target.start(fixes.program) as target:
        assert running.says("looking at /proc") and running.says("to enter the first network namespace")
        running.order(fixes.first.hotpatch)
        becomes(target, "2 0")
        if not holding_tells():  # before Linux 6.15
            assert running.says("crashes are not noticed")
            assert "crashes are not noticed" in running.ask("status")["events"]
            return
        with Target.start(fixes.program) as late:
            becomes(late, "2 0")
            late.stop(signal.SIGTERM)
        running.stop(signal.SIGKILL)
        running.start()
        assert not running.ask("bars")["bars"], "who is ended by somebody did not crash"
        crash(fixes.program, "2 0")
        becomes(target, "1 0")
        (bar,) = running.ask("bars")["bars"]
        assert "SIGSEGV" in bar["reason"]


def test_an_agent_that_is_killed_leaves_nothing_half_done(fixes: Fixes, tmp_path: Path) -> None:
    for step in (2, 5, 8, 11):
        with Target.start(fixes.program) as target:
            running = agent(fixes, tmp_path / str(step))
            running.start(MIDFLIGHT_KILL_AT=str(step))
            running.order(fixes.first.hotpatch)
            until(running.ended, "killed")
            assert running.process is not None and running.process.returncode == -signal.SIGKILL
            assert target.ask() in ("1 0", "2 0")
            running.start()
            becomes(target, "2 0")
            midflight("check", "--pid", str(target.pid))
            running.stop()


def test_one_agent_a_machine(fixes: Fixes, tmp_path: Path) -> None:
    with agent(fixes, tmp_path) as running:
        words = ("agent", "run", "--folder", running.folder)
        assert "another agent runs already" in midflight(*words, env=running.environment, status=1).err


def test_what_happened_while_the_agent_stood_still_is_caught_up_on(fixes: Fixes, tmp_path: Path) -> None:
    """As on a machine that was suspended, or whose administrator stopped it for a while."""
    with agent(fixes, tmp_path) as running, Target.start(fixes.program) as target:
        running.order(fixes.first.hotpatch)
        running.order(fixes.second.hotpatch)
        becomes(target, "3 0")
        assert running.process is not None
        with Target.start(fixes.program) as doomed:
            becomes(doomed, "3 0")
            running.process.send_signal(signal.SIGSTOP)
            with Target.start(fixes.program) as late:
                assert late.ask() == "1 0"
                doomed.stop(signal.SIGABRT)
                for _ in range(200):
                    subprocess.run(["true"], check=True)
                running.process.send_signal(signal.SIGCONT)
                becomes(late, "2 0")
                becomes(target, "2 0")
        (bar,) = running.ask("bars")["bars"]
        assert (bar["name"], bar["sequence"]) == ("answers", 2) and "SIGABRT" in bar["reason"]


def test_a_crash_is_acted_on_although_the_disk_is_full(fixes: Fixes, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", state], check=True)
    try:
        with agent(fixes, tmp_path) as running, Target.start(fixes.program) as target:
            filler = state / "filler"
            fill(filler)
            running.order(fixes.first.hotpatch)
            becomes(target, "2 0")
            until(lambda: running.says("the state cannot be written"), "told")
            crash(fixes.program, "2 0")
            becomes(target, "1 0")
            with Target.start(fixes.program) as late:
                time.sleep(1)
                assert late.ask() == "1 0", "barred, although nothing of it is on the disk"
            filler.unlink()
            until(lambda: running.ask("bars")["bars"], "on the disk")
            running.stop(signal.SIGKILL)
            running.start()
            with Target.start(fixes.program) as last:
                until(lambda: running.says("in force: nothing"), "ordered")
                assert last.ask() == "1 0"
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)
