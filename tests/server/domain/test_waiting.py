"""Approvals, gates, deadlines, pauses, restarts and silence: everything that waits, and how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.server.domain import approvals, deadlines, gates, memberships, rollout
from midflight.server.domain.gates import Outcome, judge
from midflight.server.domain.memberships import Result, Verdict
from midflight.server.domain.model import (
    Approval,
    ApprovalMode,
    ApprovalRule,
    Classification,
    ContentKind,
    DeviceState,
    Gate,
    Interval,
    Membership,
    Pause,
    RestartBehaviour,
    Ring,
    RingKind,
    RingTally,
    Severity,
)
from midflight.server.domain.reasons import Reason
from tests.server.domain.things import DAY, HOUR, NOW, content, deployment, policy

A, F, S, P = DeviceState.APPLIED, DeviceState.FAILED, DeviceState.SILENT, DeviceState.PENDING


@given(st.integers(0, 240), st.integers(-240, 480))
def test_a_delay_is_kept_to_the_hour(delay: int, later: int) -> None:
    rules = (ApprovalRule(ApprovalMode.AUTOMATIC, delay=delay * HOUR),)
    verdict = approvals.content_approved(rules, content(), (), NOW + later * HOUR)
    assert verdict.approved is (later >= delay)
    if not verdict.approved:
        assert verdict.reason is Reason.SCHEDULED_FOR_DELAY and verdict.at == NOW + delay * HOUR


def test_the_first_rule_that_matches_decides() -> None:
    rules = (
        ApprovalRule(ApprovalMode.TWO_PERSON, kinds=frozenset({ContentKind.BASELINE})),
        ApprovalRule(ApprovalMode.AUTOMATIC, min_severity=Severity.CRITICAL),
        ApprovalRule(ApprovalMode.AUTOMATIC, max_severity=Severity.HIGH, delay=3 * DAY),
        ApprovalRule(ApprovalMode.MANUAL, classifications=frozenset({Classification.SECURITY})),
    )
    assert approvals.rule_for(rules, content()) is rules[2]
    assert approvals.rule_for(rules, content(kind=ContentKind.BASELINE)) is rules[0]
    assert approvals.rule_for(rules[3:], content(classification=Classification.OTHER)) is None
    assert approvals.content_approved((), content(), (), NOW).reason is Reason.NO_APPROVAL_RULE


def test_two_persons_are_two_and_a_rejection_stands_until_taken_back() -> None:
    rules = (ApprovalRule(ApprovalMode.TWO_PERSON),)

    def verdict(*words: tuple[str, bool]) -> approvals.Verdict:
        said = [Approval(person, NOW + n * HOUR, word) for n, (person, word) in enumerate(words)]
        return approvals.content_approved(rules, content(), said, NOW + DAY)

    assert verdict().reason is Reason.AWAITING_APPROVAL
    assert verdict(("ann", True), ("ann", True)).reason is Reason.AWAITING_SECOND_APPROVAL
    assert verdict(("ann", True), ("bob", True)).approved
    assert verdict(("ann", True), ("bob", True), ("eve", False)).reason is Reason.APPROVAL_REJECTED
    assert verdict(("eve", False), ("ann", True), ("eve", True)).approved


_words = st.lists(
    st.builds(
        Approval, st.sampled_from(["ann", "bob", "eve"]), st.integers(0, 9).map(lambda n: NOW + n * HOUR),
        st.booleans(), st.sampled_from([None, None, 0, 1]),
    ),
    max_size=8, unique_by=lambda word: word.at,
)  # fmt: skip


@given(_words, st.sampled_from([None, 0, 1]), st.randoms())
def test_two_persons_approve_when_two_say_yes_and_nobody_no(
    words: list[Approval], ring: int | None, order: Any
) -> None:
    last: dict[str, bool] = {}
    for word in sorted(words, key=lambda word: word.at):
        if word.ring == ring:
            last[word.person] = word.approved
    order.shuffle(words)
    if ring is None:
        found = approvals.content_approved((ApprovalRule(ApprovalMode.TWO_PERSON),), content(), words, NOW + DAY)
    else:
        two = Ring("two", RingKind.REST, mode=ApprovalMode.TWO_PERSON)
        found = approvals.ring_approved(two, ring, words)
    assert found.approved is (all(last.values()) and len(last) >= 2)


def test_a_person_can_shorten_a_delay_and_stop_an_automatic_approval() -> None:
    rules = (ApprovalRule(ApprovalMode.AUTOMATIC, delay=3 * DAY),)
    assert approvals.content_approved(rules, content(), [Approval("ann", NOW)], NOW).approved
    assert not approvals.content_approved(rules, content(), [Approval("ann", NOW, False)], NOW + 9 * DAY).approved
    ring = Ring("all", RingKind.REST)
    assert approvals.ring_approved(ring, 1, ()).approved
    assert not approvals.ring_approved(ring, 1, [Approval("ann", NOW, False, ring=1)]).approved


@pytest.mark.parametrize(
    ("gate", "states", "hours", "outcome"),
    [
        (Gate(min_sample=3), {A: 2, P: 5}, 99, Outcome.WAIT),
        (Gate(min_sample=3), {A: 3, P: 5}, 0.5, Outcome.WAIT),
        (Gate(min_sample=3), {A: 3, P: 5}, 1, Outcome.PASS),
        (Gate(min_sample=3), {A: 2}, 1, Outcome.PASS),
        (Gate(min_sample=3), {A: 1, DeviceState.INELIGIBLE: 4, DeviceState.HELD: 1}, 1, Outcome.PASS),
        (Gate(min_sample=3), {A: 90, F: 1}, 1, Outcome.HALT),
        (Gate(min_sample=3), {A: 90, S: 1}, 1, Outcome.HALT),
        (Gate(min_sample=3, silence_is_failure=False), {A: 90, S: 1}, 1, Outcome.PASS),
        (Gate(min_sample=3, silence_is_failure=False), {S: 3}, 99, Outcome.WAIT),
        (Gate(min_sample=5, max_failures=None, max_failure_percent=20), {F: 1, P: 9}, 1, Outcome.WAIT),
        (Gate(min_sample=5, max_failures=None, max_failure_percent=20), {A: 4, F: 1}, 1, Outcome.PASS),
        (Gate(min_sample=5, max_failures=None, max_failure_percent=20), {A: 3, F: 2}, 1, Outcome.HALT),
        (Gate(min_sample=5, max_failures=2, max_failure_percent=20), {F: 3, P: 9}, 0, Outcome.HALT),
        (Gate(min_sample=1, max_failures=None), {A: 9, F: 1}, 1, Outcome.HALT),
        (Gate(min_sample=1, max_failures=9), {F: 1}, 99, Outcome.WAIT),
        (Gate(), {}, 0, Outcome.PASS),
    ],
)
def test_what_a_gate_says(gate: Gate, states: dict[DeviceState, int], hours: float, outcome: Outcome) -> None:
    tally = RingTally(states, NOW if states.get(A) else None)
    assert judge(gate, tally, NOW - DAY, NOW + timedelta(hours=hours)).outcome is outcome


@given(st.dictionaries(st.sampled_from(DeviceState), st.integers(0, 20)), st.integers(1, 10), st.integers(0, 5))
def test_a_gate_never_passes_on_silence_or_on_too_few(states: dict[DeviceState, int], sample: int, limit: int) -> None:
    gate = Gate(min_sample=sample, max_failures=limit, soak=HOUR)
    word = judge(gate, RingTally(states, NOW), NOW, NOW + 100 * DAY)
    bad, good = states.get(F, 0) + states.get(S, 0), states.get(A, 0)
    if word.outcome is Outcome.PASS and any(states.values()):
        assert good >= 1 and bad <= limit
        rest = sum(states.get(s, 0) for s in (P, DeviceState.OFFERED, DeviceState.DOWNLOADING))
        assert good + bad >= sample or rest == 0
    assert (word.outcome is Outcome.HALT) is (bad > limit)


def test_pauses_end_and_deadlines_count() -> None:
    assert deadlines.paused(Pause(NOW), NOW + 999 * DAY)
    assert deadlines.paused(Pause(NOW, NOW + DAY), NOW + DAY - HOUR)
    assert not deadlines.paused(Pause(NOW, NOW + DAY), NOW + DAY)
    assert not deadlines.paused(Pause(NOW + HOUR), NOW) and not deadlines.paused(None, NOW)
    quick = deployment(expedite=True)
    assert deadlines.apply_deadline(deployment(), policy(), NOW) is None
    assert deadlines.apply_deadline(deployment(), policy(deadline=2 * DAY), NOW) == NOW + 2 * DAY
    assert deadlines.apply_deadline(quick, policy(deadline=2 * DAY, expedite_allowed=True), NOW) == NOW
    assert deadlines.apply_deadline(quick, policy(deadline=2 * DAY), NOW) == NOW + 2 * DAY


def test_a_restart_is_announced_forced_after_the_grace_and_never_on_the_minute_of_return() -> None:
    strict = policy(deadline=2 * DAY, grace=DAY)
    plan = deadlines.restart(strict, NOW, NOW - DAY, (), NOW)
    assert plan.forced == NOW + 3 * DAY
    assert [plan.forced - at for at in plan.warnings] == [DAY, 4 * HOUR, HOUR, HOUR / 4]
    back = NOW + 10 * DAY
    assert deadlines.restart(strict, NOW, back, (), back).forced == back + DAY
    assert deadlines.restart(strict, NOW, back, (), back + DAY - 2 * HOUR).warnings == (
        back + DAY - HOUR,
        back + DAY - HOUR / 4,
    )
    assert deadlines.restart(strict, NOW, NOW, (), NOW, expedite=True).forced == NOW + DAY
    night = (Interval(NOW + 8 * HOUR, NOW + 10 * HOUR), Interval(NOW + 80 * HOUR, NOW + 82 * HOUR))
    in_window = replace(strict, restart=RestartBehaviour.IN_WINDOW)
    assert deadlines.restart(in_window, NOW, NOW, night, NOW).forced == NOW + 80 * HOUR
    assert deadlines.restart(in_window, NOW, NOW, (), NOW).forced is None
    for never in (RestartBehaviour.NEVER, RestartBehaviour.SERVICES):
        assert deadlines.restart(replace(strict, restart=never), NOW, NOW, night, NOW) == deadlines.Restart(None)
    assert deadlines.restart(policy(), NOW, NOW, night, NOW).in_window == night[0]


_spans = st.lists(st.tuples(st.integers(-6, 400), st.integers(1, 30)), max_size=4).map(
    lambda spans: tuple(Interval(NOW + begin * HOUR, NOW + (begin + length) * HOUR) for begin, length in sorted(spans))
)


@given(
    st.none() | st.integers(0, 240), st.integers(0, 120), st.sampled_from(RestartBehaviour), st.integers(-400, 400),
    st.integers(0, 500), st.booleans(), _spans,
)  # fmt: skip
def test_a_restart_is_forced_after_deadline_and_grace_and_never_outside_a_window_that_it_is_bound_to(
    deadline: int | None, grace: int, behaviour: RestartBehaviour, back: int, now: int, expedite: bool,
    spans: tuple[Interval, ...],
) -> None:  # fmt: skip
    rules = policy(deadline=None if deadline is None else deadline * HOUR, grace=grace * HOUR, restart=behaviour)
    returned, moment = NOW + back * HOUR, NOW + now * HOUR
    ahead = tuple(span for span in spans if span.end > moment)
    plan = deadlines.restart(rules, NOW, returned, ahead, moment, expedite)
    if behaviour in (RestartBehaviour.NEVER, RestartBehaviour.SERVICES):
        assert plan == deadlines.Restart(None)
        return
    if plan.forced is None:
        assert (deadline is None and not expedite) or behaviour is RestartBehaviour.IN_WINDOW
        return
    due = NOW if expedite else NOW + (deadline or 0) * HOUR
    assert plan.forced >= due + grace * HOUR
    if returned > due:
        # who was away past the deadline gets the whole grace anew
        assert plan.forced >= returned + grace * HOUR
    if behaviour is RestartBehaviour.IN_WINDOW:
        assert any(plan.forced in span for span in ahead)
    assert all(moment < at < plan.forced for at in plan.warnings)


OFFERED = Membership(0, DeviceState.OFFERED, Reason.OFFERED_IN_WINDOW, since=NOW, offered=NOW)


def test_silence_is_noticed_in_time_and_waiting_for_a_window_is_no_silence() -> None:
    gate = Gate(silence_after=DAY)
    assert memberships.silence(OFFERED, NOW, gate, NOW + DAY) is None
    gone = memberships.silence(OFFERED, NOW, gate, NOW + DAY + HOUR)
    assert gone is not None and gone.state is DeviceState.SILENT
    # it checks in, but never answers what it was told to begin
    assert memberships.silence(OFFERED, NOW + 2 * DAY, gate, NOW + 2 * DAY) is not None
    waiting = replace(OFFERED, reason=Reason.AWAITING_WINDOW)
    assert memberships.silence(waiting, NOW + 6 * DAY, gate, NOW + 6 * DAY) is None
    assert memberships.silence(waiting, NOW + 6 * DAY, gate, NOW + 8 * DAY) is not None


SUCCESS = Membership(0, A, Reason.APPLIED, since=NOW, offered=NOW - HOUR)


def test_who_applied_it_and_is_not_heard_of_after_the_soak_is_silent() -> None:
    gate, limit = Gate(silence_after=DAY, soak=2 * HOUR), NOW + 2 * HOUR + DAY
    assert memberships.silence(SUCCESS, NOW, gate, limit) is None
    gone = memberships.silence(SUCCESS, NOW, gate, limit + HOUR)
    assert gone is not None and (gone.state, gone.reason) == (S, Reason.SILENT)
    assert gone.detail == "applied it, last seen 2026-03-10 18:00 UTC"
    # heard of during the soak is not enough, after it is, for good
    assert memberships.silence(SUCCESS, NOW + HOUR, gate, limit + HOUR) is not None
    assert memberships.silence(SUCCESS, NOW + 2 * HOUR, gate, limit + 90 * DAY) is None
    # the gate in progress waits for it after its own soak
    soaked = NOW + 3 * DAY
    assert memberships.silence(SUCCESS, NOW + DAY, gate, soaked + DAY, NOW, soaked) is None
    assert memberships.silence(SUCCESS, NOW + DAY, gate, soaked + DAY + HOUR, NOW, soaked) is not None
    assert memberships.silence(SUCCESS, soaked, gate, soaked + 90 * DAY, NOW, soaked) is None
    # without a soak nobody is waited for, nor for a success that something newer replaced
    assert memberships.silence(SUCCESS, NOW, replace(gate, soak=timedelta(0)), NOW + 90 * DAY) is None
    assert memberships.silence(replace(SUCCESS, reason=Reason.SUPERSEDED), NOW, gate, NOW + 90 * DAY) is None


@given(
    st.lists(st.tuples(st.integers(-48, 120), st.integers(0, 240)), min_size=1, max_size=12),
    st.integers(1, 8), st.integers(0, 3), st.integers(1, 72), st.integers(1, 48),
)  # fmt: skip
def test_a_gate_never_waits_for_ever_to_hear_of_a_success(
    devices: list[tuple[int, int]], sample: int, limit: int, silence: int, soak: int
) -> None:
    """All of a ring applied it, each was seen for a while and then never again: in the end its gate passes or halts."""
    gate = Gate(min_sample=sample, max_failures=limit, silence_after=silence * HOUR, soak=soak * HOUR)
    ring = Ring("all", RingKind.REST, gate=gate)
    members = [replace(SUCCESS, since=NOW + success * HOUR) for success, _ in devices]
    seen = [NOW + (success + more) * HOUR for success, more in devices]
    end = NOW + 365 * DAY
    for _ in range(len(members) + 1):
        (tally,) = rollout.tally([(0, each.state, each.since) for each in members], [ring])
        heard = sorted((at for m, at in zip(members, seen, strict=True) if m.state is A), reverse=True)
        if heard:
            tally = replace(tally, heard=heard[min(len(heard), sample) - 1])
        # who falls silent may leave the sample to a later success, with a soak that ends later
        soaked, before = gates.soaked(gate, tally, NOW), members
        members = [memberships.silence(m, at, gate, end, NOW, soaked) or m for m, at in zip(before, seen, strict=True)]
        if members == before:
            break
    assert soaked is not None and tally.count(A, S) == len(devices)
    assert all(at >= soaked for m, at in zip(members, seen, strict=True) if m.state is A)
    word = judge(gate, tally, NOW, end)
    assert (word.outcome is Outcome.HALT) is (tally.count(S) > limit)
    assert word.outcome is not Outcome.WAIT or not heard


def test_who_was_not_there_when_its_ring_began_is_not_waited_for_and_no_failure() -> None:
    gate = Gate(silence_after=DAY)
    waiting = Membership(1)
    assert memberships.silence(waiting, NOW - HOUR, gate, NOW + 9 * DAY) is None
    assert memberships.silence(waiting, NOW - HOUR, gate, NOW + DAY, opened=NOW) is None
    assert memberships.silence(waiting, NOW + HOUR, gate, NOW + 9 * DAY, opened=NOW) is None
    absent = memberships.silence(waiting, NOW - HOUR, gate, NOW + DAY + HOUR, opened=NOW)
    assert absent is not None and absent.reason is Reason.ABSENT
    assert judge(gate, RingTally({absent.state: 1, A: 1}, NOW), NOW, NOW + DAY).outcome is Outcome.PASS


def test_a_membership_follows_its_verdicts_and_says_when_nothing_changed() -> None:
    fresh = Membership(0)
    offered = memberships.follow(fresh, Verdict(DeviceState.OFFERED, Reason.AWAITING_WINDOW, "later"), NOW)
    assert offered is not None and offered.offered == NOW and offered.since == NOW
    assert (
        memberships.follow(offered, Verdict(DeviceState.OFFERED, Reason.AWAITING_WINDOW, "later"), NOW + HOUR) is None
    )
    begun = memberships.follow(offered, Verdict(DeviceState.OFFERED, Reason.OFFERED_IN_WINDOW), NOW + HOUR)
    assert begun is not None and begun.offered == NOW and begun.since == NOW + HOUR
    failed = memberships.report(begun, Result.CRASHED, NOW + 2 * HOUR)
    assert failed.state is F and failed.since == NOW + 2 * HOUR and Result.CRASHED in memberships.BARS
    again = memberships.retry(failed, NOW + DAY)
    assert again is not None and again.state is P and again.offered is None
    assert memberships.retry(again, NOW) is None


def test_every_reason_has_a_text_and_an_owner() -> None:
    for reason in Reason:
        assert reason.text and reason.owner and reason == reason.value and len(reason) < 40
    assert len({reason.text for reason in Reason}) >= len(Reason) - 1
    assert gates.GOOD is A
