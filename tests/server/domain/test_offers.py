"""What one device gets now: whatever the deployments, memberships and clocks, some things are never offered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.server.domain import memberships, offers
from midflight.server.domain.eligibility import Finding
from midflight.server.domain.model import (
    ContentKind,
    DeviceState,
    Effective,
    Interval,
    Membership,
    Requested,
    Revocation,
)
from midflight.server.domain.offers import ActionKind, Plan, Standing, compile_plan, compile_plans, decide
from midflight.server.domain.reasons import Reason
from tests.server.domain.things import BASELINE, DAY, HOUR, NIGHT, NOW, content, deployment, policy

WINDOWED = policy(windows=(NIGHT,), deadline=5 * DAY, expedite_allowed=True)
OPEN = (Interval(NOW - HOUR, NOW + HOUR),)
LATER = (Interval(NOW + HOUR, NOW + 3 * HOUR),)
MINE = {"dep": Membership(0)}


def plan(**more: object) -> Plan:
    fields: dict[str, object] = {"effective": Effective.OFFERING, "reason": Reason.OFFERING_RING, "ring_since": NOW}
    return compile_plan(deployment(**{**fields, **more}), WINDOWED, content())


def test_inside_its_window_a_device_may_begin_and_outside_it_waits_with_a_reason() -> None:
    inside = decide(Standing(MINE), [plan()], OPEN, NOW)
    assert [(a.kind, a.begin_now) for a in inside.actions] == [(ActionKind.APPLY, True)]
    assert inside.verdicts["dep"].reason is Reason.OFFERED_IN_WINDOW
    outside = decide(Standing(MINE), [plan()], LATER, NOW)
    assert [(a.begin_now, a.deadline) for a in outside.actions] == [(False, NOW + 5 * DAY)]
    assert (
        outside.verdicts["dep"].reason is Reason.AWAITING_WINDOW
        and "2026-03-10 19:00" in outside.verdicts["dep"].detail
    )
    never = decide(Standing(MINE), [plan()], (), NOW)
    assert never.verdicts["dep"].reason is Reason.NO_WINDOW and not never.actions[0].begin_now


def test_what_a_device_refused_is_offered_again_after_a_while_as_another_attempt() -> None:
    offered = Membership(0, DeviceState.OFFERED, Reason.OFFERED_IN_WINDOW, since=NOW, offered=NOW - HOUR)
    refused = memberships.report(offered, memberships.Result.INELIGIBLE, NOW, Reason.MEMORY_LOW, "3 MiB free")
    soon = decide(Standing({"dep": refused}), [plan()], OPEN, NOW + HOUR / 2)
    assert (soon.actions, soon.verdicts) == ((), {})
    later = NOW + offers.REFUSED_FOR
    again = decide(Standing({"dep": refused}), [plan()], OPEN, later)
    assert again.actions and again.verdicts["dep"].state is DeviceState.OFFERED
    after = memberships.follow(refused, again.verdicts["dep"], later)
    assert after is not None and after.offered == later, "the same action again: its answer would count as an old one"


def test_a_deadline_counts_from_the_first_offer_and_expediting_waits_for_nothing() -> None:
    offered = {"dep": Membership(0, DeviceState.OFFERED, Reason.AWAITING_WINDOW, offered=NOW - 5 * DAY)}
    late = decide(Standing(offered), [plan()], LATER, NOW)
    assert late.actions[0].begin_now and late.verdicts["dep"].reason is Reason.OFFERED_PAST_DEADLINE
    fast = decide(Standing(MINE), [plan(expedite=True)], LATER, NOW)
    assert fast.actions[0].begin_now and fast.verdicts["dep"].reason is Reason.OFFERED_EXPEDITED
    strict = replace(WINDOWED, expedite_allowed=False)
    forbidden = compile_plan(deployment(expedite=True, effective=Effective.OFFERING), strict, content())
    assert not decide(Standing(MINE), [forbidden], LATER, NOW).actions[0].begin_now


def test_each_obstacle_is_named() -> None:
    cases = [
        (Standing(MINE, outside={"dep": Reason.EXCLUDED}), DeviceState.EXCLUDED, Reason.EXCLUDED),
        (Standing(MINE, outside={"dep": Reason.POLICY_CONFLICT}), DeviceState.EXCLUDED, Reason.POLICY_CONFLICT),
        (Standing(MINE, disabled=True), DeviceState.INELIGIBLE, Reason.DEVICE_DISABLED),
        (
            Standing(MINE, ineligible={"hotpatch-2": Finding(Reason.KERNEL_TOO_OLD, "5.10, needs 6.1")}),
            DeviceState.INELIGIBLE,
            Reason.KERNEL_TOO_OLD,
        ),
        (Standing(MINE, bars=frozenset({"hotpatch-2"})), DeviceState.BARRED, Reason.BARRED),
        (Standing(MINE, held={"hotpatch-2": "sg-1"}), DeviceState.HELD, Reason.HELD_BY_SAFEGUARD),
        (Standing(MINE, fixed=frozenset({"hotpatch-2"})), DeviceState.SUPERSEDED, Reason.SUPERSEDED),
        (Standing({"dep": Membership(2)}), DeviceState.PENDING, Reason.AWAITING_RING),
        (Standing({"dep": Membership(None)}), DeviceState.PENDING, Reason.AWAITING_RING),
        (Standing(MINE, running=frozenset({"hotpatch-2"})), DeviceState.APPLIED, Reason.APPLIED),
    ]
    for standing, state, reason in cases:
        decision = decide(standing, [plan()], OPEN, NOW)
        assert decision.actions == ()
        assert (decision.verdicts["dep"].state, decision.verdicts["dep"].reason) == (state, reason)
    assert decide(Standing({}), [plan()], OPEN, NOW).actions == ()


def test_a_success_still_counts_when_something_newer_has_replaced_it() -> None:
    applied = {"dep": Membership(0, DeviceState.APPLIED, Reason.APPLIED)}
    verdict = decide(Standing(applied, fixed=frozenset({"hotpatch-2"})), [plan()], OPEN, NOW).verdicts["dep"]
    assert (verdict.state, verdict.reason) == (DeviceState.APPLIED, Reason.SUPERSEDED)


def test_what_failed_here_is_not_offered_again_until_a_person_says_so() -> None:
    failed = {"dep": Membership(0, DeviceState.FAILED, Reason.APPLY_FAILED)}
    assert decide(Standing(failed), [plan()], OPEN, NOW) == offers.Decision((), {})


def test_an_offer_is_withdrawn_when_the_deployment_pauses() -> None:
    offered = {"dep": Membership(0, DeviceState.OFFERED, Reason.AWAITING_WINDOW, offered=NOW)}
    for effective in (Effective.PAUSED, Effective.HALTED, Effective.FAULTED, Effective.SCHEDULED):
        decision = decide(Standing(offered), [plan(effective=effective)], OPEN, NOW)
        assert decision.actions == () and decision.verdicts["dep"].reason is Reason.WITHDRAWN


def test_revocation_stops_offers_before_any_background_work_has_run() -> None:
    gone = compile_plan(deployment(effective=Effective.OFFERING), WINDOWED, content(revoked=Revocation(NOW, "crashes")))
    assert decide(Standing(MINE), [gone], OPEN, NOW).actions == ()


def test_a_revert_goes_to_whoever_runs_it_at_once_and_to_nobody_else() -> None:
    reverting = plan(effective=Effective.REVERTING, reason=Reason.REVERTING_BY_GATE)
    applied = {"dep": Membership(0, DeviceState.APPLIED, Reason.APPLIED)}
    runs = Standing(applied, running=frozenset({"hotpatch-2"}), outside={"dep": Reason.EXCLUDED})
    decision = decide(runs, [reverting], LATER, NOW)
    assert [(a.kind, a.begin_now) for a in decision.actions] == [(ActionKind.REVERT, True)]
    after = decide(Standing(applied), [reverting], LATER, NOW)
    assert after.actions == () and after.verdicts["dep"].state is DeviceState.REVERTED
    assert decide(Standing(MINE), [reverting], OPEN, NOW).actions == ()
    disabled = replace(runs, disabled=True)
    assert decide(disabled, [reverting], OPEN, NOW).actions == ()


def test_of_two_hotpatches_the_newest_that_it_may_have_is_offered_and_the_baseline_beside_it() -> None:
    def of(id: str, sequence: int, kind: ContentKind = ContentKind.HOTPATCH, ring: int = 2) -> Plan:
        it = deployment(id=id, effective=Effective.OFFERING, ring=ring)
        return compile_plan(it, policy(), content(sequence, kind))

    plans = compile_plans([of("old", 2), of("new", 3), of("base", 4, ContentKind.BASELINE)])
    members = {name: Membership(1) for name in ("old", "new", "base")}
    decision = decide(Standing(members), plans, (), NOW)
    assert {(a.deployment, a.kind) for a in decision.actions} == {
        ("new", ActionKind.APPLY),
        ("base", ActionKind.BASELINE),
    }
    assert decision.verdicts["old"].reason is Reason.SUPERSEDED
    early = compile_plans([of("old", 2), of("new", 3, ring=0)])
    assert [a.deployment for a in decide(Standing(members), early, (), NOW).actions] == ["old"]


_moment = st.integers(-72, 72).map(lambda hours: NOW + hours * HOUR)
_plans = st.lists(
    st.builds(
        lambda n, sequence, kind, effective, ring, expedite, windows, revoked: compile_plan(
            deployment(id=f"dep{n}", effective=effective, ring=ring, expedite=expedite, requested=Requested.NONE),
            WINDOWED if windows else replace(WINDOWED, windows=()),
            content(sequence, kind, revoked=Revocation(NOW, "bad") if revoked else None),
        ),
        st.integers(0, 5),
        st.integers(1, 4),
        st.sampled_from(ContentKind),
        st.sampled_from(Effective),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda plan: plan.deployment,
)
_members = st.dictionaries(
    st.integers(0, 5).map(lambda n: f"dep{n}"),
    st.builds(
        Membership,
        st.none() | st.integers(0, 3),
        st.sampled_from(DeviceState),
        st.just(Reason.OFFERED),
        offered=st.none() | _moment,
    ),
)
_contents = st.sets(st.sampled_from([f"{kind}-{n}" for kind in ContentKind for n in range(1, 5)])).map(frozenset)
_standings = st.builds(
    Standing,
    _members,
    _contents,
    _contents,
    _contents.map(lambda ids: dict.fromkeys(ids, Finding(Reason.MEMORY_LOW))),
    _contents.map(lambda ids: dict.fromkeys(ids, "sg")),
    _contents,
    st.dictionaries(st.integers(0, 5).map(lambda n: f"dep{n}"), st.just(Reason.EXCLUDED), max_size=3),
    st.sampled_from([False, False, False, True]),
)
_windows = st.lists(st.tuples(_moment, st.integers(1, 9)), max_size=3).map(
    lambda spans: tuple(Interval(start, start + hours * HOUR) for start, hours in sorted(spans))
)


@settings(max_examples=400)
@given(_standings, _plans, _windows, _moment)
def test_nothing_is_ever_offered_that_must_not_be(
    standing: Standing, plans: list[Plan], windows: tuple[Interval, ...], now: datetime
) -> None:
    ahead = tuple(span for span in windows if span.end > now)
    decision = decide(standing, compile_plans(plans), ahead, now)
    by_id = {plan.deployment: plan for plan in plans}
    if standing.disabled:
        assert decision.actions == ()
    for action in decision.actions:
        plan, membership = by_id[action.deployment], standing.memberships[action.deployment]
        if action.kind is ActionKind.REVERT:
            assert plan.reverts and action.content in standing.running
            continue
        assert plan.offers and plan.content.revoked is None and not plan.reverts
        assert action.deployment not in standing.outside
        assert membership.ring is not None and membership.ring <= plan.open_ring
        for obstacle in (standing.running, standing.fixed, standing.ineligible, standing.held, standing.bars):
            assert action.content not in obstacle
        assert membership.state not in (DeviceState.FAILED, DeviceState.REVERTED)
        inside = any(span.start <= now < span.end for span in ahead[:1])
        if action.begin_now and plan.has_windows and not inside:
            late = membership.offered is not None and now >= membership.offered + timedelta(days=5)
            assert action.reason in (Reason.OFFERED_EXPEDITED, Reason.OFFERED_PAST_DEADLINE)
            assert plan.expedited or late
    most = Counter(by_id[a.deployment].key for a in decision.actions if a.kind is not ActionKind.REVERT)
    assert all(count == 1 for count in most.values())
    assert decision.verdicts.keys() <= standing.memberships.keys()
    # whoever is offered something stands so; nobody else does
    begun = {a.deployment for a in decision.actions if a.kind is not ActionKind.REVERT}
    stated = {d for d, verdict in decision.verdicts.items() if verdict.state is DeviceState.OFFERED}
    assert stated <= begun


def test_a_decision_for_a_device_that_has_all_makes_nothing() -> None:
    plans = compile_plans(
        compile_plan(deployment(id=f"dep{n}", effective=Effective.DONE, ring=3), WINDOWED, content(n))
        for n in range(12)
    )
    standing = Standing(
        {f"dep{n}": Membership(1, DeviceState.APPLIED, Reason.APPLIED) for n in range(12)},
        running=frozenset(f"hotpatch-{n}" for n in range(12)),
    )
    decision = decide(standing, plans, OPEN, NOW)
    assert decision.actions == () and len({id(verdict) for verdict in decision.verdicts.values()}) == 1
    assert BASELINE.kind is ContentKind.BASELINE
