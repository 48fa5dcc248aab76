"""Transactions on real processes, with hotpatches made by hand. What the target prints is the assertion."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.engine import integrity, ledger
from midflight.engine.apply import apply
from midflight.engine.ledger import State
from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits, Outcome
from midflight.process.linux import LinuxProcess
from tests.engine.handmade import Handmade, compile_c, make, returns
from tests.engine.targets import ANSWER
from tests.live.harness import Target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("programs"), "answer", ANSWER)


@pytest.fixture
def target(program: Path) -> Iterator[Target]:
    with Target.start(program, "3") as running:
        yield running


@pytest.fixture
def quiet(program: Path) -> Iterator[Target]:
    """A target that calls its functions only when it is asked."""
    with Target.start(program) as running:
        yield running


def put(target: Target, hotpatch: Handmade, dry_run: bool = False, **limits: float) -> Outcome:
    with LinuxProcess(target.pid) as process, Files() as files:
        return apply(process, hotpatch, files, Limits(**limits), dry_run)


def take(target: Target, name: str = "", **limits: float) -> Outcome:
    with LinuxProcess(target.pid) as process, Files() as files:
        return revert(process, files, Limits(**limits), lambda one: name in one.record.name)


def ledgers(target: Target) -> list[ledger.Ledger]:
    with LinuxProcess(target.pid) as process:
        return ledger.find(process)


def verdict(target: Target) -> integrity.Report:
    with LinuxProcess(target.pid) as process:
        return integrity.check(process)


def poke(target: Target, address: int, data: bytes) -> bytes:
    """Change code as a debugger would; returns what was there."""
    with LinuxProcess(target.pid) as process:
        before = process.read(address, len(data))
        process.write(address, data)
        return before


def test_apply_changes_what_the_program_does_and_revert_changes_it_back(target: Target, program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2), "other": returns(20)})
    assert target.ask() == "1 10"
    for _ in range(3):
        assert put(target, hotpatch).outcome == "applied"
        assert target.ask() == "2 20"
        assert verdict(target).clean
        assert take(target).outcome == "reverted"
        assert target.ask() == "1 10"
        assert verdict(target).clean
    assert ledgers(target) == []


def test_applying_twice_changes_nothing(target: Target, program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2)})
    assert put(target, hotpatch).outcome == "applied"
    assert put(target, hotpatch).outcome == "already"
    assert len(ledgers(target)) == 1


def test_a_dry_run_touches_nothing(target: Target, program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2)})
    assert put(target, hotpatch, dry_run=True).outcome == "would-apply"
    assert target.ask() == "1 10"
    assert ledgers(target) == []


def test_memory_that_the_program_may_refer_to_stays_and_is_used_again(target: Target, program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2)}, escapes=True)
    for _ in range(4):
        assert put(target, hotpatch).outcome == "applied"
        assert target.ask() == "2 10"
        assert take(target).outcome == "reverted"
        assert target.ask() == "1 10"
        assert [one.state for one in ledgers(target)] == [State.RETIRED]


def test_a_later_hotpatch_of_a_series_replaces_the_earlier_in_one_step(target: Target, program: Path) -> None:
    first = make(program, {"answer": returns(2), "other": returns(20)}, sequence=1)
    second = make(program, {"answer": returns(3)}, sequence=2)
    assert put(target, first).outcome == "applied"
    assert put(target, second).outcome == "applied"
    assert target.ask() == "3 10"
    assert verdict(target).clean
    assert put(target, first).outcome == "skipped"
    assert take(target).outcome == "reverted"
    assert target.ask() == "1 10"
    assert verdict(target).clean


def test_independent_hotpatches_go_in_any_order(target: Target, program: Path) -> None:
    assert put(target, make(program, {"answer": returns(2)}, "one")).outcome == "applied"
    assert put(target, make(program, {"other": returns(20)}, "two")).outcome == "applied"
    assert target.ask() == "2 20"
    assert take(target, "one").outcome == "reverted"
    assert target.ask() == "1 20"
    assert take(target, "two").outcome == "reverted"
    assert target.ask() == "1 10"


def test_what_a_later_hotpatch_stands_on_cannot_be_taken_away(target: Target, program: Path) -> None:
    assert put(target, make(program, {"answer": returns(2)}, "low")).outcome == "applied"
    assert put(target, make(program, {"answer": returns(3)}, "top")).outcome == "applied"
    assert target.ask() == "3 10"
    refused = take(target, "low")
    assert refused.outcome == "failed" and "top 1 was applied over low 1" in refused.reason
    assert target.ask() == "3 10"
    assert take(target, "top").outcome == "reverted"
    assert target.ask() == "2 10"
    assert take(target, "low").outcome == "reverted"
    assert target.ask() == "1 10"


def test_both_of_a_stack_can_be_taken_out_at_once(target: Target, program: Path) -> None:
    assert put(target, make(program, {"answer": returns(2)}, "low")).outcome == "applied"
    assert put(target, make(program, {"answer": returns(3)}, "top")).outcome == "applied"
    assert take(target).outcome == "reverted"
    assert target.ask() == "1 10"
    assert verdict(target).clean


def test_another_build_is_not_touched(target: Target, tmp_path: Path) -> None:
    other = compile_c(tmp_path, "other", ANSWER + "int more;\n")
    outcome = put(target, make(other, {"answer": returns(2)}))
    assert outcome.outcome == "skipped" and "does not run this baseline" in outcome.reason
    assert ledgers(target) == []


@pytest.mark.parametrize("offset", [0, 3, 5])
def test_a_breakpoint_in_the_old_code_is_a_refusal_and_stays(quiet: Target, program: Path, offset: int) -> None:
    hotpatch = make(program, {"answer": returns(2)})
    put(quiet, hotpatch)
    entry = ledgers(quiet)[0].record.functions[0].old[0][0]
    take(quiet)
    before = poke(quiet, entry + offset, b"\xcc")
    outcome = put(quiet, hotpatch)
    assert outcome.outcome == "failed"
    assert "midflight check" in outcome.reason or "remove it" in outcome.reason
    report = verdict(quiet)
    assert [(d.start, d.size, d.guess) for d in report.differences] == [(entry + offset, 1, "a breakpoint (int3)")]
    poke(quiet, entry + offset, before)
    assert quiet.ask() == "1 10"
    assert ledgers(quiet) == []


def test_an_inline_hook_and_injected_code_are_named(quiet: Target, program: Path) -> None:
    put(quiet, make(program, {"answer": returns(2)}))
    entry = ledgers(quiet)[0].record.functions[0].old[0][0]
    poke(quiet, entry, b"\xe9\x10\x20\x30\x00")
    report = verdict(quiet)
    assert len(report.differences) == 1 and "inline hook" in report.differences[0].guess
    refused = take(quiet)
    assert refused.outcome == "failed" and "midflight check" in refused.reason


def test_altered_payload_is_noticed(target: Target, program: Path) -> None:
    put(target, make(program, {"answer": returns(2)}))
    new = ledgers(target)[0].record.functions[0].new[0]
    poke(target, new + 1, b"\x07")
    assert target.ask() == "7 10"
    assert [d.guess for d in verdict(target).differences] == ["altered payload"]


def test_a_function_that_never_returns_fails_with_thread_and_function(program: Path) -> None:
    with Target.start(program) as target:
        outcome = put(target, make(program, {"main": returns(0)}), busy=0.2)
        assert outcome.outcome == "failed" and f"thread {target.pid}" in outcome.reason and "main" in outcome.reason
        assert target.ask() == "1 10"
        assert ledgers(target) == []


def test_functions_that_are_always_busy_are_patched_and_reverted_hot(program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2), "other": returns(20)})
    with Target.start(program, "8", "spin") as target:
        for _ in range(5):
            assert put(target, hotpatch).outcome == "applied"
            assert target.ask() == "2 20"
            assert take(target).outcome == "reverted"
            assert target.ask() == "1 10"
        with LinuxProcess(target.pid) as process, Files() as files:
            recover(process, files, Limits())
        assert len(ledgers(target)) <= 1


def test_no_memory_near_the_image_means_islands(tmp_path: Path) -> None:
    hog = ANSWER.replace(
        'puts("ready");',
        """{ /* leave nothing free within 2 GiB but a few pages */
          extern char etext; char *here = (char *)((unsigned long)&etext & ~4095ul);
          for (long step = 1ul << 30; step >= 4096; step >>= 1)
            for (long at = -(3l << 30); at < (3l << 30); at += step)
              mmap(here + at, step, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
              0);
          munmap(here - (64l << 20), 3 * 4096);
        }
        puts("ready");""",
    ).replace("#include <pthread.h>", "#define _GNU_SOURCE\n#include <pthread.h>\n#include <sys/mman.h>")
    program = compile_c(tmp_path, "hog", hog)
    with Target.start(program) as target:
        assert put(target, make(program, {"answer": returns(2)}, escapes=True)).outcome == "applied"
        assert target.ask() == "2 10"
        assert verdict(target).clean
        kinds = {s.kind for s in ledgers(target)[0].record.segments}
        assert "island" in kinds
        assert take(target).outcome == "reverted"
        assert target.ask() == "1 10"
        assert verdict(target).clean


def test_a_forked_child_inherits_code_and_ledger(tmp_path: Path) -> None:
    forking = ANSWER.replace(
        'printf("%d %d\\n", answer(1), other(1));',
        'if (line[0] == \'f\') { pid_t p = fork(); if (p) { printf("%d\\n", p); pause(); } else printf("child\\n"); } '
        'else printf("%d %d\\n", answer(1), other(1));',
    ).replace("#include <pthread.h>", "#include <pthread.h>\n#include <unistd.h>")
    program = compile_c(tmp_path, "forking", forking)
    hotpatch = make(program, {"answer": returns(2)})
    with Target.start(program) as target:
        assert put(target, hotpatch).outcome == "applied"
        lines = sorted([target.ask("f"), target.line()])
        child = int(next(line for line in lines if line.isdigit()))
        try:
            assert target.ask() == "2 10"
            with LinuxProcess(child) as process, Files() as files:
                assert [one.state for one in ledger.find(process)] == [State.APPLIED]
                assert revert(process, files, Limits(), lambda one: True).outcome == "reverted"
            assert target.ask() == "1 10"
            # The parent keeps its own copy.
            assert [one.state for one in ledgers(target)] == [State.APPLIED]
        finally:
            os.kill(child, 9)


def test_a_damaged_ledger_stops_everything(target: Target, program: Path) -> None:
    hotpatch = make(program, {"answer": returns(2)})
    put(target, hotpatch)
    base = ledgers(target)[0].base
    poke(target, base + 300, b"\xff\xff\xff\xff")
    for outcome in (put(target, hotpatch), take(target)):
        assert outcome.outcome == "failed" and "ledger" in outcome.reason
    assert target.ask() == "2 10"


def test_a_library_that_was_unloaded_takes_its_hotpatch_along(tmp_path: Path) -> None:
    library = compile_c(
        tmp_path,
        "libanswer.so",
        'int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }',
        "-shared",
        "-fPIC",
    )
    loads = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
  char line[64];
  setvbuf(stdout, NULL, _IOLBF, 0);
  void *library = dlopen(argv[1], RTLD_NOW);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'u') { dlclose(library); library = dlopen(argv[1], RTLD_NOW); }
    printf("%d\n", ((int (*)(int))dlsym(library, "answer"))(1));
  }
  return 0;
}
"""
    program = compile_c(tmp_path, "loads", loads, "-ldl")
    hotpatch = make(library, {"answer": returns(2)})
    with Target.start(program, str(library)) as target:
        assert target.ask() == "1"
        assert put(target, hotpatch).outcome == "applied"
        assert target.ask() == "2"
        assert target.ask("u") == "1"
        again = put(target, hotpatch)
        assert again.outcome == "applied" and "unloaded" in again.notes[0]
        assert target.ask() == "2"
        assert verdict(target).clean
        assert take(target).outcome == "reverted"
        assert target.ask() == "1"
