"""Deployments: what people ask, what gates say, what they do. A machine of random events, judged by its own count."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midflight.server.domain import gates, rollout
from midflight.server.domain.model import (
    Approval,
    ApprovalMode,
    ApprovalRule,
    Deployment,
    DeviceState,
    Effective,
    Gate,
    Pause,
    Policy,
    Requested,
    Revocation,
    Ring,
    RingKind,
    RingTally,
)
from midflight.server.domain.reasons import Reason
from midflight.server.domain.rollout import RequestRefused, Situation, advance
from tests.server.domain.things import DAY, HOUR, NOW, REST, content, deployment, policy

AUTO = (ApprovalRule(ApprovalMode.AUTOMATIC),)
GATE = Gate(min_sample=2, max_failures=1, soak=HOUR)
THREE = (
    Ring("one", RingKind.FIRST, 1, gate=Gate(min_sample=1, soak=HOUR)),
    Ring("some", RingKind.COUNT, 4, gate=GATE),
    replace(REST, gate=Gate(min_sample=3, max_failures=None, max_failure_percent=50, soak=HOUR)),
)


def tallies(*rings: dict[DeviceState, int], last: datetime | None = None) -> list[RingTally]:
    return [RingTally(states, last) for states in rings]


def situation(*rings: dict[DeviceState, int], last: datetime | None = None, **more: object) -> Situation:
    fields: dict[str, object] = {
        "content": content(),
        "policy": policy(rings=THREE, approvals=AUTO),
        "tallies": tallies(*rings, last=last),
        "running": sum(ring.get(DeviceState.APPLIED, 0) for ring in rings),
    }
    return Situation(**{**fields, **more})  # type: ignore[arg-type]


P, A, F, S = DeviceState.PENDING, DeviceState.APPLIED, DeviceState.FAILED, DeviceState.SILENT
FRESH = ({P: 1}, {P: 4}, {P: 9})


def test_a_rollout_from_its_start_to_its_end() -> None:
    it, changes = advance(deployment(starts=NOW + HOUR), situation(*FRESH), NOW)
    assert (it.effective, it.reason) == (Effective.SCHEDULED, Reason.SCHEDULED_FOR_START)
    assert not rollout.offers(it)
    it, changes = advance(it, situation(*FRESH), NOW + HOUR)
    assert [(c.after, c.reason, c.ring) for c in changes][:1] == [(Effective.OFFERING, Reason.OFFERING_RING, 0)]
    assert it.reason is Reason.AWAITING_SAMPLE and it.detail == "one: 0 of 1 answered" and rollout.offers(it)
    done = NOW + 2 * HOUR
    it, _ = advance(it, situation({A: 1}, *FRESH[1:], last=done), done + HOUR / 2)
    assert (it.ring, it.reason) == (0, Reason.SOAKING)
    it, _ = advance(it, situation({A: 1}, *FRESH[1:], last=done), done + HOUR)
    assert (it.ring, it.reason) == (1, Reason.AWAITING_SAMPLE)
    it, _ = advance(it, situation({A: 1}, {A: 3, F: 1}, {P: 9}, last=done), done + 2 * HOUR)
    assert it.ring == 2
    it, changes = advance(it, situation({A: 1}, {A: 3, F: 1}, {A: 3, P: 6}, last=done), done + 4 * HOUR)
    assert (it.effective, it.reason, it.ring) == (Effective.DONE, Reason.DONE_OFFERED, 3) and rollout.offers(it)
    assert changes[-1].before is Effective.OFFERING
    assert advance(it, situation({A: 1}, {A: 3, F: 1}, {A: 3, P: 6}, last=done), done + 9 * HOUR) == (it, [])


def running(ring: int = 1, **more: object) -> Deployment:
    fields: dict[str, object] = {
        "effective": Effective.OFFERING, "reason": Reason.OFFERING_RING, "ring": ring, "ring_since": NOW, "since": NOW,
    }  # fmt: skip
    return deployment(**{**fields, **more})


def test_failures_halt_and_only_a_person_resumes() -> None:
    bad = situation({A: 1}, {A: 1, F: 2}, {P: 9}, last=NOW)
    it, _ = advance(running(), bad, NOW + HOUR)
    assert (it.effective, it.reason) == (Effective.HALTED, Reason.HALTED_BY_FAILURES)
    assert it.detail == "some: 2 failed and 0 silent of 3 that answered or should have"
    for days in (1, 30, 300):
        assert advance(it, bad, NOW + days * DAY) == (it, [])
    # devices that recover do not undo it either
    assert advance(it, situation({A: 1}, {A: 4}, {P: 9}), NOW + DAY)[0].effective is Effective.HALTED
    resumed = rollout.resume(it, bad, NOW + DAY)
    assert resumed.accepted == (0, 2, 0)
    it, _ = advance(resumed, bad, NOW + DAY + HOUR / 2)
    assert (it.effective, it.ring, it.reason) == (Effective.OFFERING, 1, Reason.SOAKING)
    worse, _ = advance(it, situation({A: 1}, {F: 4}, {P: 9}, last=NOW), NOW + DAY + HOUR)
    assert worse.effective is Effective.HALTED


def test_an_accepted_silence_that_ends_well_leaves_no_room_for_another_failure() -> None:
    silent = situation({A: 1}, {A: 2, S: 2}, {P: 9}, last=NOW)
    it, _ = advance(running(), silent, NOW)
    assert it.reason is Reason.HALTED_BY_SILENCE
    it = rollout.resume(it, silent, NOW)
    it, _ = advance(it, situation({A: 1}, {A: 4}, {P: 9}, last=NOW), NOW)
    assert it.accepted == (0, 0, 0)
    it, _ = advance(it, situation({A: 1}, {A: 2, F: 2}, {P: 9}, last=NOW), NOW)
    assert it.effective is Effective.HALTED


def test_a_late_failure_in_a_ring_that_passed_halts_too_even_when_done() -> None:
    late = situation({F: 1}, {A: 4}, {A: 9}, last=NOW)
    for ring, effective in ((1, Effective.OFFERING), (3, Effective.DONE)):
        it, _ = advance(running(ring, effective=effective), late, NOW)
        assert (it.effective, it.detail[:4]) == (Effective.HALTED, "one:")


def test_a_gate_orders_the_revert_where_the_policy_says_so() -> None:
    eager = policy(rings=THREE, approvals=AUTO, revert_on_halt=True)
    it, _ = advance(running(), situation({A: 1}, {A: 1, F: 2}, {P: 9}, policy=eager), NOW)
    assert (it.effective, it.reason) == (Effective.REVERTING, Reason.REVERTING_BY_GATE)
    assert not rollout.offers(it)
    with pytest.raises(RequestRefused, match="is being reverted"):
        rollout.resume(it, situation(*FRESH), NOW)
    it, _ = advance(it, situation({DeviceState.REVERTED: 1}, {F: 2}, {P: 9}, policy=eager, running=0), NOW + HOUR)
    assert (it.effective, it.reason) == (Effective.DONE, Reason.DONE_REVERTED) and rollout.final(it)
    # one that was away comes back with it
    it, _ = advance(it, situation({A: 1}, {F: 2}, {P: 9}, policy=eager), NOW + DAY)
    assert it.effective is Effective.REVERTING


def test_pauses_by_request_until_a_time_and_by_policy() -> None:
    state = situation({A: 1}, {P: 4}, {P: 9}, last=NOW)
    it, _ = advance(rollout.pause(running(), NOW), state, NOW + 100 * DAY)
    assert (it.effective, it.reason) == (Effective.PAUSED, Reason.PAUSED_BY_REQUEST) and not rollout.offers(it)
    it, _ = advance(rollout.resume(it, state, NOW), state, NOW)
    assert it.effective is Effective.OFFERING
    it, _ = advance(rollout.pause(it, NOW, NOW + DAY), state, NOW + HOUR)
    assert (it.effective, it.reason) == (Effective.PAUSED, Reason.PAUSED_UNTIL)
    it, _ = advance(it, state, NOW + DAY)
    assert (it.effective, it.requested) == (Effective.OFFERING, Requested.NONE)
    still = replace(state, policy=replace(state.policy, pause=Pause(NOW, NOW + 3 * DAY)))
    it, _ = advance(it, still, NOW + 2 * DAY)
    assert it.reason is Reason.PAUSED_BY_POLICY
    assert advance(it, still, NOW + 3 * DAY)[0].effective is Effective.OFFERING
    with pytest.raises(RequestRefused, match="is past"):
        rollout.pause(it, NOW, NOW)


def test_a_pause_that_ends_does_not_resume_what_a_gate_halted_meanwhile() -> None:
    it, _ = advance(rollout.pause(running(), NOW, NOW + DAY), situation({A: 1}, {F: 2}, {P: 9}), NOW + HOUR)
    assert it.effective is Effective.HALTED
    it, _ = advance(it, situation({A: 1}, {F: 2}, {P: 9}), NOW + 2 * DAY)
    assert it.effective is Effective.HALTED and it.requested is Requested.NONE


def test_ends_are_final() -> None:
    state = situation({A: 1}, {P: 4}, {P: 9})
    revoked = replace(state, content=content(revoked=Revocation(NOW, "crashes nginx")))
    ends = [
        (advance(rollout.stop(running()), state, NOW)[0], Effective.HALTED, Reason.STOPPED_BY_REQUEST),
        (advance(running(), revoked, NOW)[0], Effective.FAULTED, Reason.FAULTED_REVOKED),
        (advance(running(), replace(state, superseded=True), NOW)[0], Effective.FAULTED, Reason.FAULTED_SUPERSEDED),
        (
            advance(running(), replace(state, content=content(deployable_until=NOW)), NOW)[0],
            Effective.FAULTED,
            Reason.FAULTED_OUTDATED,
        ),
    ]
    for it, effective, reason in ends:
        assert (it.effective, it.reason) == (effective, reason) and rollout.final(it) and not rollout.offers(it)
        assert advance(it, state, NOW + 99 * DAY) == (it, [])
        for request in (rollout.stop, lambda d: rollout.pause(d, NOW), lambda d: rollout.resume(d, state, NOW)):
            with pytest.raises(RequestRefused, match="make a new one"):
                request(it)
        # taking out what runs remains possible: it is another order
        reverting, _ = advance(rollout.revert(it), state, NOW)
        assert reverting.effective is Effective.REVERTING
        with pytest.raises(RequestRefused, match="already"):
            rollout.revert(reverting)


def test_approvals_hold_back_the_start_and_a_ring() -> None:
    rings = (THREE[0], replace(THREE[1], mode=ApprovalMode.TWO_PERSON), THREE[2])
    manual = policy(rings=rings, approvals=(ApprovalRule(ApprovalMode.MANUAL),))
    state = situation({A: 1}, {P: 4}, {P: 9}, last=NOW, policy=manual)
    it, _ = advance(deployment(), state, NOW)
    assert it.reason is Reason.AWAITING_APPROVAL and it.effective is Effective.SCHEDULED
    it, _ = advance(rollout.approve(it, Approval("ann", NOW)), state, NOW)
    assert it.effective is Effective.OFFERING
    it, _ = advance(it, state, NOW + 2 * HOUR)
    assert (it.ring, it.reason) == (0, Reason.AWAITING_APPROVAL)
    it, _ = advance(rollout.approve(it, Approval("ann", NOW, ring=1)), state, NOW + 2 * HOUR)
    it, _ = advance(rollout.approve(it, Approval("ann", NOW, ring=1)), state, NOW + 2 * HOUR)
    assert (it.ring, it.reason) == (0, Reason.AWAITING_SECOND_APPROVAL)
    it, _ = advance(rollout.approve(it, Approval("bob", NOW, ring=1)), state, NOW + 2 * HOUR)
    assert it.ring == 1
    rejected, _ = advance(rollout.approve(it, Approval("bob", NOW + HOUR, approved=False)), state, NOW + 3 * HOUR)
    assert rejected.reason is Reason.APPROVAL_REJECTED and not rollout.offers(rejected)


def test_a_ring_whose_devices_have_all_dropped_out_proves_nothing_until_a_person_says_go_on() -> None:
    out = situation({DeviceState.HELD: 1}, {P: 4}, {P: 9})
    it, _ = advance(running(0), out, NOW + 9 * DAY)
    assert it.ring == 0 and "approve the next ring" in it.detail
    it, _ = advance(rollout.approve(it, Approval("ann", NOW, ring=1)), out, NOW + 9 * DAY)
    assert it.ring == 1


def test_an_audience_without_devices_waits_and_says_so() -> None:
    it, _ = advance(deployment(), situation({}, {}, {}), NOW)
    assert (it.effective, it.reason) == (Effective.SCHEDULED, Reason.AUDIENCE_EMPTY)
    assert advance(it, situation({P: 1}, {}, {}), NOW)[0].effective is Effective.OFFERING


def test_the_soak_is_not_prolonged_by_those_who_come_late() -> None:
    members = [(1, A, NOW + n * HOUR) for n in range(4)] + [(0, A, NOW), (2, P, NOW)]
    counted = rollout.tally(members, THREE)
    # the sample of two was complete after an hour, and an hour of soak later the gate passes
    it, _ = advance(running(), replace(situation(), tallies=counted), NOW + 1.9 * HOUR)
    assert (it.ring, it.reason) == (1, Reason.SOAKING)
    it, _ = advance(it, replace(situation(), tallies=counted), NOW + 2 * HOUR)
    assert it.ring == 2


def test_a_soak_is_over_when_the_sample_was_heard_of_after_it() -> None:
    over = NOW + HOUR
    before = RingTally({A: 3}, sampled=NOW, heard=over - HOUR / 60)
    waits = gates.judge(GATE, before, NOW, over + 5 * HOUR)
    assert (waits.outcome, waits.reason) == (gates.Outcome.WAIT, Reason.SOAKING)
    assert gates.judge(GATE, replace(before, heard=over), NOW, over).outcome is gates.Outcome.PASS


STATES = st.sampled_from([A, A, A, F, S, P, DeviceState.OFFERED, DeviceState.INELIGIBLE])


class Rollout(RuleBasedStateMachine):
    """Random devices, people and clocks; what must hold is recounted here, from the devices alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.devices: list[tuple[int, DeviceState, datetime]] = [(0, P, NOW), *[(1, P, NOW)] * 4, *[(2, P, NOW)] * 6]
        self.content = content()
        self.policy: Policy = policy(rings=THREE, approvals=AUTO)
        self.it = deployment()
        self.by_person = False
        self.ended = False

    def _situation(self) -> Situation:
        counted = rollout.tally(self.devices, THREE)
        running = sum(state is A for _, state, _ in self.devices)
        return Situation(self.content, self.policy, counted, running=running)

    @rule(device=st.integers(0, 10), state=STATES)
    def report(self, device: int, state: DeviceState) -> None:
        if self.devices[device][0] <= self.it.ring:
            self.devices[device] = (self.devices[device][0], state, self.now)

    @rule()
    def all_of_the_ring_answer_well(self) -> None:
        self.devices = [(r, A, self.now) if r == self.it.ring else (r, s, t) for r, s, t in self.devices]

    @rule(minutes=st.sampled_from([10, 70, 24 * 60]))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        before = self.it
        self.it, changes = advance(before, self._situation(), self.now)
        if before.effective is Effective.HALTED:
            assert self.it.effective in (Effective.HALTED, Effective.FAULTED, Effective.REVERTING)
        for ring in range(before.ring, self.it.ring):
            self._passed(ring)
        assert self.it.ring >= before.ring
        assert all(change.reason.text and change.reason.owner for change in changes)
        assert advance(self.it, self._situation(), self.now) == (self.it, [])

    def _passed(self, ring: int) -> None:
        """A ring was passed: recount whether that was right."""
        mine = [(state, since) for r, state, since in self.devices if r == ring]
        bad = sum(state in (F, S) for state, _ in mine)
        good = [since for state, since in mine if state is A]
        accepted = self.it.accepted[ring] if self.it.accepted else 0
        able = [state for state, _ in mine if state is not DeviceState.INELIGIBLE]
        assert len(good) + bad >= min(THREE[ring].gate.min_sample, len(able))
        assert good or accepted
        assert all(self.now - since >= HOUR for since in sorted(good)[: THREE[ring].gate.min_sample])
        if ring < 2:
            assert bad - accepted <= (0, 1)[ring]
        else:
            assert (bad - accepted) * 100 <= 50 * (len(good) + bad)

    @precondition(lambda self: not self.ended and self.it.effective in (Effective.HALTED, Effective.PAUSED))
    @rule()
    def resume(self) -> None:
        if not rollout.final(self.it) and self.it.requested not in (Requested.STOPPED, Requested.REVERT):
            self.it, _ = advance(rollout.resume(self.it, self._situation(), self.now), self._situation(), self.now)

    @precondition(lambda self: not rollout.final(self.it) and self.it.requested in (Requested.NONE, Requested.PAUSED))
    @rule(hours=st.none() | st.integers(1, 30))
    def pause(self, hours: int | None) -> None:
        if self.it.effective is not Effective.REVERTING:
            until = None if hours is None else self.now + hours * HOUR
            self.it = rollout.pause(self.it, self.now, until)
            assert not rollout.offers(self.it)
            self.it, _ = advance(self.it, self._situation(), self.now)
            assert not rollout.offers(self.it)

    @precondition(lambda self: self.it.ring_since is not None)
    @rule()
    def revoke(self) -> None:
        self.content = content(revoked=Revocation(self.now, "bad"))
        self.it, _ = advance(self.it, self._situation(), self.now)
        self.ended = True

    @invariant()
    def nothing_is_offered_that_must_not_be(self) -> None:
        if self.it.effective in (Effective.PAUSED, Effective.HALTED, Effective.FAULTED, Effective.REVERTING):
            assert not rollout.offers(self.it)
        if self.ended:
            assert not rollout.offers(self.it)


Rollout.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRollout = Rollout.TestCase
