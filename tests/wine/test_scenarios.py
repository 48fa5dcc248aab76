"""Running programs are patched by the commands that a user has, and say themselves what they run."""

from __future__ import annotations

import pytest

from tests.wine import CORE_BASE
from tests.wine.harness import TRUST, Target, applied, clean, hotpatch_file, kept, load, midflight, reverted


@pytest.mark.parametrize("threads", [0, 8, 32, 128])
def test_apply_and_revert_with_the_commands(threads: int) -> None:
    with Target("threads.exe", str(threads)) as target:
        assert target.ask() == "1 10 0"
        scanned = midflight("scan", hotpatch_file("both2"), "--json", status=1).json["processes"]
        assert [(p["pid"], p["command"], p["state"]) for p in scanned] == [(target.pid, "threads.exe", "needs")]
        midflight("apply", hotpatch_file("both2"), "--all", *TRUST)
        assert target.ask() == "2 20 0"
        (shown,) = midflight("status", "--pid", str(target.pid), "--json").json["processes"]
        (row,) = shown["hotpatches"]
        assert row["state"] == "applied" and row["unwind_registered"] and row["stopped_seconds"] > 0
        assert {f["trampoline"] for f in row["functions"]} == {"near"}
        assert midflight("check", "--pid", str(target.pid), "--json").json["processes"][0]["explained"] == 10
        midflight("scan", hotpatch_file("both2"))
        midflight("revert", hotpatch_file("both2"), "--pid", str(target.pid))
        assert target.ask() == "1 10 0"
        midflight("recover", "--pid", str(target.pid))
        clean(target)
        assert kept(target) == 0, "the memory was not given back"


@pytest.mark.parametrize("program", ["threads.exe", "hotprologue.exe"])
def test_hot_functions_are_patched_and_reverted_under_way(program: str) -> None:
    hotpatch = load("both2" if program == "threads.exe" else "hotstrict")
    with Target(program, "4", "hot") as target:
        for _ in range(3):
            applied(target, hotpatch)
            assert target.ask() == "2 20 0"
            reverted(target)
            assert target.ask() == "1 10 0"
        clean(target)


def test_hotpatchable_entries_are_switched_without_a_stop() -> None:
    with Target("hotprologue.exe", "3", "hot") as target:
        done = midflight("apply", hotpatch_file("hotpatch2"), "--pid", str(target.pid), *TRUST, "--json").json
        assert (done["processes"][0]["stopped"], done["processes"][0]["attempts"]) == (0.0, 0)
        assert target.ask() == "2 20 0"
        (shown,) = midflight("status", "--pid", str(target.pid), "--json").json["processes"]
        assert {f["trampoline"] for f in shown["hotpatches"][0]["functions"]} == {"hotpatch"}
        assert "not at all" in midflight("status", "--pid", str(target.pid)).out
        clean(target)
        for _ in range(5):
            reverted(target)
            assert applied(target, load("hotpatch2")).attempts == 0
        assert target.ask() == "2 20 0"


def test_the_default_policy_stops_hotpatchable_entries_too() -> None:
    with Target("hotprologue.exe", "2") as target:
        outcome = applied(target, load("hotstrict"))
        assert outcome.stopped > 0 and outcome.attempts >= 1
        assert target.ask() == "2 20 0"


def test_a_cumulative_hotpatch_replaces_its_predecessor() -> None:
    with Target("threads.exe", "8") as target:
        applied(target, load("both2"))
        applied(target, load("answer3"))
        assert target.ask() == "3 10 0", "what the second one leaves out is as on disk again"
        clean(target)
        reverted(target)
        assert target.ask() == "1 10 0"
        clean(target)


def test_hotpatches_stack_and_leave_in_order() -> None:
    with Target("threads.exe", "8") as target:
        applied(target, load("both2"))
        applied(target, load("stacked"))
        assert target.ask() == "3 20 0"
        pid = str(target.pid)
        assert "revert it first" in midflight("revert", "--name", "answers", "--pid", pid, status=1).out
        midflight("revert", "--name", "stacked", "--pid", pid)
        assert target.ask() == "2 20 0"
        midflight("revert", "--name", "answers", "--pid", pid)
        assert target.ask() == "1 10 0"
        clean(target)


@pytest.mark.parametrize("relocated", [False, True])
def test_exceptions_pass_through_new_code_of_a_dll(relocated: bool) -> None:
    place = (f"{CORE_BASE:x}",) if relocated else ()
    with Target("host.exe", "6", *place) as target:
        assert target.ask() == "1000 -1 0"
        for _ in range(3):
            applied(target, load("core2"))
            for _ in range(50):
                assert target.ask() == "16 -2 0"
            clean(target)
            reverted(target)
            for _ in range(50):
                assert target.ask() == "1000 -1 0"
        clean(target)


def test_a_function_too_short_for_the_long_jump() -> None:
    with Target("odd.exe") as target:
        for _ in range(10):
            applied(target, load("tiny"))
            assert target.ask().startswith("6 ")
            clean(target)
            reverted(target)
            assert target.ask().startswith("5 ")
        assert target.process.poll() is None


CYCLES = 100


@pytest.mark.parametrize(
    ("program", "arguments", "name", "old", "new"),
    [
        ("forged-c/threads.exe", ("8",), "forged-c", "1 10 0", "2 20 0"),
        ("forged-hot/threads.exe", ("4", "hot"), "forged-hot", "1 10 0", "1 20 0"),
        ("forged-cpp/host.exe", ("6",), "forged-cpp", "1000 -1 0", "16 -2 0"),
        ("forged-cpp/host.exe", ("6", f"{CORE_BASE:x}"), "forged-cpp", "1000 -1 0", "16 -2 0"),
    ],
)
def test_what_the_forge_makes(program: str, arguments: tuple[str, ...], name: str, old: str, new: str) -> None:
    with Target(program, *arguments) as target:
        pid = str(target.pid)
        for _ in range(2):
            assert target.ask() == old
            done = midflight("apply", hotpatch_file(name), "--pid", pid, *TRUST, "--json").json["processes"][0]
            assert (done["stopped"] == 0) == (name == "forged-hot")
            for _ in range(30):
                assert target.ask() == new
            clean(target)
            midflight("revert", "--every", "--pid", pid)
        for _ in range(30):
            assert target.ask() == old
        clean(target)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("program", "arguments", "name", "old", "new"),
    [
        ("threads.exe", ("6",), "both2", "1 10 0", "2 20 0"),
        ("hotprologue.exe", ("2",), "hotpatch2", "1 10 0", "2 20 0"),
        ("hotprologue.exe", ("6",), "hotstrict", "1 10 0", "2 20 0"),
        ("host.exe", ("3", f"{CORE_BASE:x}"), "core2", "1000 -1 0", "16 -2 0"),
        ("odd.exe", (), "tiny", "5 0 1", "6 0 1"),
    ],
)
def test_a_hundred_cycles(program: str, arguments: tuple[str, ...], name: str, old: str, new: str) -> None:
    hotpatch = load(name)
    with Target(program, *arguments) as target:
        for _ in range(CYCLES):
            applied(target, hotpatch)
            assert target.ask() == new
            reverted(target)
            assert target.ask() == old
        clean(target)
        assert kept(target) <= 1, "memory piles up"
