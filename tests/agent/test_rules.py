"""What is in force, when to look, what counts as a crash: the rules, without any effects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from midflight.agent.health import CHECKS, Watch, blamed, crash, due, next_due
from midflight.agent.looks import LATER, RETRIES, SOON, Look, Looks
from midflight.agent.orders import Orders, key_of, wanted, withdrawn
from midflight.agent.tracked import Processes, suspects
from midflight.patch.hotpatch import Hotpatch
from tests.patch.examples import manifest

A, B, C = "aa" * 20, "bb" * 20, "cc" * 20


def hotpatch(name: str, sequence: int, *images: str, digest: str = "") -> Hotpatch:
    """A hotpatch for some images; only what the rules look at."""
    example = manifest()
    targets = tuple(replace(example.targets[0], build_id=image) for image in images)
    made = replace(example, name=name, sequence=sequence, targets=targets)
    return Hotpatch(made, {}, {}, ("key",), digest or f"{name}{sequence}")


def in_force(*hotpatches: Hotpatch, barred: Any = (), images: tuple[str, ...] = (A, B, C)) -> list[tuple[str, int]]:
    return [key_of(one) for one in wanted(Orders(hotpatches), barred).for_images(images)]


def test_the_latest_sequence_of_each_name_counts() -> None:
    assert in_force(hotpatch("x", 2, A), hotpatch("x", 10, A), hotpatch("y", 1, A)) == [("x", 10), ("y", 1)]


def test_the_latest_sequence_counts_for_each_image_by_itself() -> None:
    one, two = hotpatch("x", 1, A, B), hotpatch("x", 2, A)
    assert in_force(one, two, images=(A,)) == [("x", 2)]
    assert in_force(one, two, images=(B,)) == [("x", 1)]
    assert in_force(one, two, images=(A, B)) == [("x", 1), ("x", 2)], "in the order in which they are applied"
    assert in_force(one, two, images=(C,)) == []


def test_what_is_barred_leaves_the_place_to_the_one_before() -> None:
    one, two = hotpatch("x", 1, A), hotpatch("x", 2, A)
    assert in_force(one, two, barred={("x", 2)}) == [("x", 1)]
    assert in_force(one, two, barred={("x", 1), ("x", 2)}) == []
    assert wanted(Orders((one, two)), {("x", 2)}).keys == {("x", 1)}


def test_two_files_with_one_name_and_sequence_are_a_problem() -> None:
    found = wanted(Orders((hotpatch("x", 1, A, digest="1"), hotpatch("x", 1, A, digest="2"))), ())
    assert [one.digest for one in found.for_images([A])] == ["1"] and "two different files" in found.problems[0][1]


def test_what_is_withdrawn_is_what_nothing_later_replaces() -> None:
    assert withdrawn({("x", 1)}, {("x", 2)}) == []
    assert withdrawn({("x", 2)}, {("x", 1)}) == [("x", 2)]
    assert withdrawn({("x", 1), ("y", 1)}, {("y", 1)}) == [("x", 1)]


def test_a_young_process_is_looked_at_until_enough() -> None:
    looks, at, taken = Looks(), 100.0, []
    looks.begin(7, at)
    while (when := looks.next_due()) is not None:
        assert looks.due(when - 1e-6) is None
        look = looks.due(when)
        assert look is not None and look.pid == 7
        taken.append(when - at)
        if not looks.again(look):
            break
    assert taken == pytest.approx(SOON) and sum(t <= 0.012 for t in taken) >= 4
    assert len(looks) == 0 and looks.next_due() is None


def test_the_newest_look_counts_and_who_ended_is_forgotten() -> None:
    looks = Looks()
    looks.begin(1, 10.0)
    looks.begin(1, 20.0)
    looks.begin(2, 15.0)
    assert looks.waits_for(1) and looks.due(12.0) is None
    looks.forget(2)
    assert looks.due(19.0) is None and looks.due(20.0 + SOON[0]) == Look(1, 0, 20.0)


def test_a_program_of_which_nothing_is_expected_is_looked_at_later() -> None:
    looks, program = Looks(), (1, 2, 3)
    looks.begin(1, 10.0, program, later=True)
    assert looks.next_due() == 10.0 + SOON[LATER] and SOON[LATER] <= 0.02
    look = looks.due(11.0)
    assert look is not None and look.program == program and looks.again(look)
    assert looks.next_due() == 10.0 + SOON[LATER + 1]


def test_retries_become_rarer_and_never_end() -> None:
    looks, now, number = Looks(), 0.0, 0
    for expected in (*RETRIES, RETRIES[-1]):
        looks.retry(3, number, now)
        due_at = looks.next_due()
        assert due_at == now + expected
        now = due_at
        look = looks.due(now)
        assert look is not None and look.retry
        number = look.number + 1


@pytest.mark.parametrize(
    ("signal", "status", "expected"),
    [
        (11, None, "SIGSEGV"), (6, None, "SIGABRT"), (7, None, "SIGBUS"), (4, None, "SIGILL"), (31, None, "SIGSYS"),
        (9, None, None), (15, None, None), (2, None, None), (0, None, None), (0, 1, None),
        (0, 0xC0000005, "0xc0000005"),
        (0, 0xC0000409, "0xc0000409"), (0, 0xC000013A, None), (0, 0x40010004, None),
    ],
)  # fmt: skip
def test_what_counts_as_a_crash(signal: int, status: int | None, expected: str | None) -> None:
    found = crash(signal, status)
    assert (found is None) == (expected is None) and (expected or "") in (found or "")


def test_a_crash_counts_against_what_came_in_shortly_before() -> None:
    applied = [("x", 1, 10.0), ("y", 2, 500.0)]
    assert blamed(applied, 600.0, 900.0) == [("x", 1), ("y", 2)]
    assert blamed(applied, 1000.0, 900.0) == [("y", 2)]
    assert blamed(applied, 5000.0, 900.0) == []


def test_checks_are_due_once_each_and_missed_ones_together() -> None:
    watch = Watch("x", 1, 1000.0, 0)
    assert due(watch, 1059.0) == 0 and next_due(watch) == 1060.0
    assert due(watch, 1060.0) == 1
    assert due(watch, 5000.0) == len(CHECKS), "nobody was there: once is enough"
    assert next_due(replace(watch, passed=1)) == 1300.0 and next_due(replace(watch, passed=3)) is None
    assert due(replace(watch, passed=3), 1060.0) == 3


class _Process:
    pid, start_time = 5, 99


def test_a_child_has_what_was_there_when_it_was_forked() -> None:
    processes = Processes()
    parent = processes.of(_Process(), "server")  # type: ignore[arg-type]
    parent.applied[("x", 1)] = 10.0
    assert processes.forked(5, 6, 12.0)
    assert processes.with_key(("x", 1)) == [5, 6]
    parent.applied[("y", 1)] = 20.0
    assert not processes.forked(5, 7, 15.0), "something came into the parent since"
    child = processes.get(7)
    assert child is not None and set(child.applied) == {("x", 1)}
    assert suspects(child, 16.0, 900.0) == [("x", 1)]
    assert processes.forked(1234, 8, 30.0) and processes.get(8) is None
