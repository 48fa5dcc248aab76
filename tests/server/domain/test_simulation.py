"""The simulation in small: a year without a violation, and a checker that notices each rule that is broken."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulation import checker
from bench.simulation.fleet import OUTAGES, build, policies
from bench.simulation.world import World
from midflight.server.domain import (
    approvals,
    audience,
    compliance,
    deadlines,
    gates,
    memberships,
    offers,
    rollout,
    safeguards,
    standing,
)
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.model import DeviceState, Effective, Interval
from midflight.server.domain.reasons import Reason

Patch = Callable[[pytest.MonkeyPatch], None]
FLEET = build(2001, 1, 365 * 24 * 60)


def test_a_year_of_a_thousand_devices_breaks_no_promise() -> None:
    world = World(1000, 365)
    world.run()
    assert world.checker.violations == {}, world.checker.examples
    # and it was a year in which something happened
    checks = world.checker.checks
    assert checks["apply"] > 8000 and checks["gate"] > 120 and checks["compliance"] > 40_000
    halted = {content for content, published in world.published.items() if published.halts}
    assert {"h-20", "h-30", "h-80", "h-90"} <= halted
    for bad in ("h-20", "h-80", "h-90"):
        assert world.published[bad].reached < 100
    assert all(world.published[good].reached > 500 for good in ("base-10", "h-25", "base-40", "h-85", "h-95", "h-120"))
    revoked, outdated, last = (world.published[f"nginx-{n}"].reached for n in (1, 2, 3))
    assert "nginx-1" in world.checker.revoked and 0 < revoked < last and 0 < outdated < last
    assert any("5.10.0-30-amd64" in note for note in world.scenario.notes)
    assert any(note.endswith("devices off the hotpatch track until 2026-07-14") for note in world.scenario.notes)
    shares = [overview.share for _, overview in world.compliance]
    assert max(shares) > 0.95 and world.exposure > 0
    stuck = [
        (live.deployment.id, live.deployment.reason)
        for live in world.live.values()
        if live.deployment.effective in (Effective.HALTED, Effective.REVERTING)
    ]
    assert stuck == []


def test_the_same_seed_is_the_same_year() -> None:
    def year(seed: int) -> object:
        world = World(200, 60, seed)
        world.run()
        fixed = {id: list(published.fixed) for id, published in world.published.items()}
        return fixed, world.checkins, world.decisions, world.checker.checks, [o.states for _, o in world.compliance]

    assert year(1) == year(1) != year(2)


@given(st.integers(0, 2000), st.integers(0, 364 * 24 * 60))
@settings(max_examples=300)
def test_who_was_heard_of_was_there(index: int, minute: int) -> None:
    """When a device was heard of last is the last minute in which it was on and the server there, by trying each."""
    device = FLEET[index]
    device.seen = 0
    heard = device.heard(minute)

    def there(at: int) -> bool:
        return device.online(at) == at and not any(begin <= at < end for begin, end in OUTAGES)

    assert heard == 0 or there(heard)
    assert not any(there(at) for at in range(heard + 1, minute + 1))


def _swap(module: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, name, make(getattr(module, name)))

    return patch


def _exclusion_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(chosen: Any, groups: frozenset[str]) -> Reason | None:
        return Reason.NOT_IN_AUDIENCE if chosen.groups.isdisjoint(groups) else None

    monkeypatch.setattr(audience, "outside", outside)
    monkeypatch.setattr(standing, "not_for", lambda *_: None)


def _bars_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    true = offers._barrier
    monkeypatch.setattr(offers, "_STAYS", ())
    monkeypatch.setattr(offers, "_barrier", lambda p, m, s, *rest: true(p, m, replace(s, bars=frozenset()), *rest))


def _fixes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "runs", lambda *_: False)
    monkeypatch.setattr(Catalogue, "fixed_by", lambda *_: None)


def _revocation_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, advance = offers.compile_plan, rollout.advance
    monkeypatch.setattr(offers, "compile_plan", lambda d, p, c: plan(d, p, replace(c, revoked=None)))

    def deaf(deployment: Any, situation: Any, now: datetime) -> Any:
        return advance(deployment, replace(situation, content=replace(situation.content, revoked=None)), now)

    monkeypatch.setattr(rollout, "advance", deaf)


def _resumes_by_itself(true: Any) -> Any:
    def advance(deployment: Any, situation: Any, now: datetime) -> Any:
        after, changes = true(deployment, situation, now)
        if deployment.effective is Effective.HALTED:
            after = rollout.resume(deployment, situation, now)
            changes = [rollout.Transition(now, Effective.HALTED, after.effective, after.reason)]
        return after, changes

    return advance


def _any_time(true: Any) -> Any:
    always = timedelta(hours=1)
    return lambda plan, member, spans, now: true(plan, member, (Interval(now - always, now + always),), now)


def _any_ring(true: Any) -> Any:
    return lambda p, m, *rest: true(p, replace(m, ring=0), *rest)


def _no_soak(true: Any) -> Any:
    return lambda gate, *more: true(replace(gate, soak=timedelta(0)), *more)


def _fresh(true: Any) -> Any:
    return lambda device, g, needs, c, now: true(replace(device, last_seen=now), g, needs, c, now)


def _at_once(true: Any) -> Any:
    return lambda policy, staged, *_: deadlines.Restart(staged + timedelta(hours=6))


def _reverting(true: Any) -> Any:
    return lambda d, p, c: replace(true(d, p, c), reverts=d.effective is Effective.DONE)


def _nothing(true: Any) -> Any:
    return lambda *_: None


def _nobody(true: Any) -> Any:
    return lambda *_: ([], False)


def _outdated_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    true = rollout.advance

    def advance(deployment: Any, situation: Any, now: datetime) -> Any:
        return true(deployment, replace(situation, content=replace(situation.content, deployable_until=None)), now)

    monkeypatch.setattr(rollout, "advance", advance)


def _no_listening(true: Any) -> Any:
    return lambda gate, tally, *more: true(gate, replace(tally, heard=None), *more)


def _moved_ahead(true: Any) -> Any:
    def follow(membership: Any, verdict: Any, now: datetime) -> Any:
        after = true(membership, verdict, now)
        return after and replace(after, ring=0)

    return follow


def _disabled_is_served(true: Any) -> Any:
    return lambda standing, *more: true(replace(standing, disabled=False), *more)


def _anybodys_policy(true: Any) -> Any:
    def evaluate(device: Any, governance: Any, needs: Any, catalogue: Any, now: datetime) -> Any:
        found = governance if governance.policy else audience.Governance(policies()["servers"])
        return true(replace(device, disabled=False), found, needs, catalogue, now)

    return evaluate


def _deadline_at_once(true: Any) -> Any:
    return lambda d, p, c: replace(true(d, p, c), deadline=timedelta(0))


def _never_restarts(true: Any) -> Any:
    return lambda *_: deadlines.Restart(None)


def _never_stopped(true: Any) -> Any:
    return lambda deployment: deployment.effective is not Effective.SCHEDULED


PASS = gates.Judgement(gates.Outcome.PASS)
STOPPED = "what is paused, halted or stopped offers nothing"
ORDERED = "reverts are ordered, and only where it runs"
BEYOND = "beyond its limit it halts by itself"
MUTANTS: list[tuple[str, str, int, Patch]] = [
    ("exclusion loses", "exclusion wins", 60, _exclusion_loses),
    ("windows are always open", "nothing begins outside the window", 20, _swap(offers, "_offer", _any_time)),
    ("gates pass at once", "a gate has its sample", 20, _swap(gates, "judge", lambda _: lambda *_: PASS)),
    ("gates do not soak", "a gate soaks", 20, _swap(gates, "judge", _no_soak)),
    ("gates never halt", BEYOND, 60, _swap(gates, "beyond", _nothing)),
    ("silence is not noticed", BEYOND, 60, _swap(memberships, "silence", _nothing)),
    ("halted offers", STOPPED, 80, _swap(rollout, "offers", _never_stopped)),
    ("pauses end at once", STOPPED, 80, _swap(deadlines, "paused", lambda _: lambda *_: False)),
    ("a gate resumes", "only a person resumes what a gate halted", 60, _swap(rollout, "advance", _resumes_by_itself)),
    ("revocation is not heard", "what is revoked offers nothing", 40, _revocation_is_not_heard),
    ("rings do not wait", "no ring before the gate of the ring before it", 20, _swap(offers, "_barrier", _any_ring)),
    ("nothing needs approval", "approvals and their delays", 20,
     _swap(approvals, "content_approved", lambda _: lambda *_: approvals.APPROVED)),
    ("one person is enough", "two persons approve the fourth ring", 40,
     _swap(approvals, "ring_approved", lambda _: lambda *_: approvals.APPROVED)),
    ("bars are forgotten", "what failed on a device is barred there", 90, _bars_are_forgotten),
    ("holds are forgotten", "held combinations are not offered", 90,
     _swap(safeguards, "holding", _nothing)),
    ("everything fits", "only the baselines it was made for", 60, _swap(standing, "ineligible", _nothing)),
    ("fixes are not seen", "nothing is applied twice or downgraded", 60,
     _fixes_are_not_seen),
    ("reverts nobody ordered", ORDERED, 80, _swap(offers, "compile_plan", _reverting)),
    ("restarts at once", "restarts keep to the window", 20, _swap(deadlines, "restart", _at_once)),
    ("gates pass at once (nothing good)", "a gate has a success", 20, _swap(gates, "judge", lambda _: lambda *_: PASS)),
    ("limits are no limits", "a gate beyond its limit does not pass", 260, _swap(gates, "beyond", _nothing)),
    ("gates do not listen", "a gate hears of its sample after the soak", 60, _swap(gates, "judge", _no_listening)),
    ("who vanishes is not missed", BEYOND, 270, _swap(memberships, "_vanished", _nothing)),
    ("devices move to the first ring", "ring membership is stable", 20, _swap(memberships, "follow", _moved_ahead)),
    ("out of date is offered", "what is out of date offers nothing", 40, _outdated_is_offered),
    ("the disabled are served", "only governed devices", 260, _swap(offers, "decide", _disabled_is_served)),
    ("deadlines are over at once", "nothing begins outside the window", 20,
     _swap(offers, "compile_plan", _deadline_at_once)),
    ("restarts without grace", "restarts keep deadline and grace", 30, _swap(deadlines, "restart", _at_once)),
    ("restarts never come", "restarts come by their deadline", 50, _swap(deadlines, "restart", _never_restarts)),
    ("no fix is missed", "a missing fix is not compliant", 40, _swap(compliance, "_missing", _nobody)),
    ("any policy will do", "unassigned, in conflict or disabled is not compliant", 30,
     _swap(compliance, "evaluate", _anybodys_policy)),
    ("stale is compliant", "stale is not compliant", 60, _swap(compliance, "evaluate", _fresh)),
]  # fmt: skip


def test_each_promise_has_a_mutant_that_breaks_it() -> None:
    judged = re.findall(r'(?:violation|_blame|yield)[(\s]+"([^"]+)"', inspect.getsource(checker))
    assert set(judged) == {promise for _, promise, _, _ in MUTANTS}


@pytest.mark.parametrize(("name", "promise", "days", "patch"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_the_checker_notices_a_broken_rule(
    name: str, promise: str, days: int, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    world = World(300, days)
    world.run(until=promise)
    assert promise in world.checker.violations, (name, world.checker.violations)


def test_without_a_mutant_the_same_small_fleet_breaks_nothing() -> None:
    world = World(300, 90)
    world.run()
    assert world.checker.violations == {}, world.checker.examples
    assert DeviceState.APPLIED in {s for live in world.live.values() for tally in live.tallies for s in tally}
