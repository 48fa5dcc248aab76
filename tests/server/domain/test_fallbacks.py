"""Whoever cannot have a hotpatch gets the baseline: in the rings of the same deployment, and where that is allowed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from midflight.server.domain import fallbacks
from midflight.server.domain.audience import Governance
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.eligibility import Finding
from midflight.server.domain.model import (
    Approval,
    ApprovalMode,
    ApprovalRule,
    ContentKind,
    Device,
    DeviceState,
    Effective,
    Membership,
    Policy,
    Requested,
    Revocation,
)
from midflight.server.domain.offers import Action, ActionKind, Plan, Standing, compile_plan, compile_plans, decide
from midflight.server.domain.reasons import Reason
from midflight.server.domain.safeguards import Safeguard
from midflight.server.domain.standing import standing
from tests.server.domain.things import BASELINE, DAY, NOW, content, deployment, device, policy

FIX = content(2)
BASE4 = content(4, ContentKind.BASELINE)
CATALOGUE = Catalogue([BASELINE, FIX, BASE4])
AUTO = ApprovalRule(ApprovalMode.AUTOMATIC)
ALLOWED = policy(approvals=(AUTO,), deadline=5 * DAY)


def instead(
    mine: Device, allowed: Policy = ALLOWED, catalogue: Catalogue = CATALOGUE, holds: Collection[Safeguard] = (),
    deployed: Collection[tuple[str, str]] = (), **more: Any,
) -> dict[str, str]:  # fmt: skip
    live = [(deployment(**more), allowed)]
    held = list(holds)
    stands = standing(mine, frozenset({"all"}), Governance(allowed), {"dep": Membership(0)}, live, catalogue, held)
    return fallbacks.instead(mine, stands, live, deployed, catalogue, held, NOW)


def test_the_newest_baseline_stands_in_for_a_hotpatch_that_is_missing() -> None:
    assert instead(device()) == instead(device(build_id="bx")) == {"dep": BASE4.id}
    assert instead(device(), replace(ALLOWED, hotpatch=False)) == {"dep": BASE4.id}


@pytest.mark.parametrize(
    "asked",
    [
        {"mine": device(patches=(FIX.id,))},
        {"mine": device(build_id="b4")},
        {"mine": device(bars=frozenset({BASE4.id}))},
        {"allowed": replace(ALLOWED, fallback=False)},
        {"catalogue": Catalogue([BASELINE, FIX])},
        {"catalogue": Catalogue([BASELINE, FIX, replace(BASE4, revoked=Revocation(NOW, "it loops"))])},
        {"catalogue": Catalogue([BASELINE, FIX, replace(BASE4, deployable_until=NOW)])},
        {"catalogue": Catalogue([BASELINE, FIX, replace(BASE4, platforms=frozenset({"windows-x86_64"}))])},
        {"catalogue": Catalogue([BASELINE, content(5), FIX, BASE4]), "mine": device(patches=("hotpatch-5",))},
        {"holds": [Safeguard("sg", "it loops", NOW, content=BASE4.id)]},
        {"deployed": {("p1", BASE4.id)}},
        {"content": BASE4.id},
    ],
)
def test_nobody_gets_one_that_is_not_needed_or_not_allowed(asked: dict[str, Any]) -> None:
    assert instead(**{"mine": device(), **asked}) == {}


def test_a_baseline_needs_its_own_rule_or_a_person_who_approved_the_deployment() -> None:
    said = (Approval("ada", NOW),)
    hotpatches = replace(ALLOWED, approvals=(replace(AUTO, kinds=frozenset({ContentKind.HOTPATCH})),))
    assert instead(device(), hotpatches) == {}
    assert instead(device(), hotpatches, approvals=said) == {"dep": BASE4.id}
    assert instead(device(), replace(ALLOWED, approvals=(replace(AUTO, delay=timedelta(days=1)),))) == {}
    two = replace(ALLOWED, approvals=(ApprovalRule(ApprovalMode.TWO_PERSON),))
    assert instead(device(), two, approvals=said) == {}
    assert instead(device(), two, approvals=(*said, Approval("bob", NOW))) == {"dep": BASE4.id}


def plan(**more: Any) -> Plan:
    fields = {"effective": Effective.OFFERING, "reason": Reason.OFFERING_RING, "ring_since": NOW, **more}
    return compile_plan(deployment(**fields), ALLOWED, FIX)


def given(membership: Membership, *plans: Plan, **stands: Any) -> list[Action]:
    fields: dict[str, Any] = {"instead": {"dep": BASE4.id, "dep2": BASE4.id}, **stands}
    members = {"dep": membership, "dep2": membership}
    return list(decide(Standing(members, **fields), compile_plans(plans or [plan()]), (), NOW).actions)


OFFERED = Membership(0, DeviceState.OFFERED, Reason.OFFERED, offered=NOW)
CANNOT = [
    (replace(OFFERED, state=DeviceState.FAILED, reason=Reason.APPLY_FAILED), {}),
    (replace(OFFERED, state=DeviceState.FAILED, reason=Reason.CRASHED), {}),
    (replace(OFFERED, state=DeviceState.INELIGIBLE, reason=Reason.BASELINE_NOT_CURRENT, since=NOW), {}),
    (OFFERED, {"bars": frozenset({FIX.id})}),
    (OFFERED, {"ineligible": {FIX.id: Finding(Reason.KERNEL_TOO_OLD)}}),
]


@pytest.mark.parametrize(("membership", "stands"), CANNOT)
def test_it_is_offered_where_the_ring_is_open_and_its_deadline_counts_on_the_device(
    membership: Membership, stands: dict[str, Any]
) -> None:
    (action,) = given(membership, **stands)
    assert (action.kind, action.content, action.reason) == (ActionKind.BASELINE, BASE4.id, Reason.FALLBACK)
    assert action.deadline is None and action.restart_within == 5 * DAY and not action.begin_now
    later = replace(membership, ring=1)
    assert given(later, **stands) == [] and given(later, plan(ring=1), **stands) != []
    assert len(given(membership, plan(), plan(id="dep2"), **stands)) == 1, "the same baseline once"
    for stopped in ({"requested": Requested.PAUSED}, {"effective": Effective.HALTED}):
        assert given(membership, plan(**stopped), **stands) == []


def test_who_has_no_ring_since_the_server_knew_before_is_with_the_last_one() -> None:
    membership = Membership(None, DeviceState.INELIGIBLE, Reason.KERNEL_TOO_OLD)
    known = {"ineligible": {FIX.id: Finding(Reason.KERNEL_TOO_OLD)}}
    assert given(membership, plan(ring=1), **known) == []
    assert given(membership, plan(ring=2), **known) != [] and given(membership, plan(ring=3), **known) != []


@pytest.mark.parametrize(
    ("membership", "stands"),
    [
        (replace(OFFERED, state=DeviceState.APPLIED, reason=Reason.APPLIED), {"running": frozenset({FIX.id})}),
        (OFFERED, {}),
        (OFFERED, {"held": {FIX.id: "sg"}}),
        (OFFERED, {"ineligible": {FIX.id: Finding(Reason.NOT_AFFECTED)}}),
        (CANNOT[0][0], {"outside": {"dep": Reason.EXCLUDED}}),
        (CANNOT[0][0], {"disabled": True}),
    ],
)
def test_who_can_have_the_hotpatch_or_nothing_at_all_gets_no_baseline(
    membership: Membership, stands: dict[str, Any]
) -> None:
    assert not [action for action in given(membership, **stands) if action.kind is ActionKind.BASELINE]
