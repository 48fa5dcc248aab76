"""What one device gets now: the actions for its instructions, and for every deployment the state and the reason.

Called at each check-in, so everything that takes time was done before: deployments are compiled to :class:`Plan` when
they change, the device's :class:`Standing` (groups, eligibility, holds) when its facts change. A decision is then a
few dictionary look-ups for each live deployment of the device's policy.

What may be offered is decided here and nowhere else:

- A disabled device gets nothing at all. Exclusion wins over everything but an order to take something out.
- Only a deployment that offers (not scheduled, paused, halted, stopped, faulted) gives anything, to devices of open
  rings.
- Nothing begins outside the device's maintenance window, unless expedited or past its deadline; the reason says which.
- Of several contents of one kind for one package the newest counts: hotpatches are cumulative.
- Who cannot have a hotpatch is offered a baseline instead, once its ring is open (:mod:`fallbacks`). How it stands in
  the deployment says why it cannot; gates see no success in a baseline.
- A revert is ordered at once, whatever the window: it needs no restart and no idle moment, and there is a reason for
  it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from midflight.server.domain import deadlines, rollout
from midflight.server.domain.eligibility import Finding
from midflight.server.domain.memberships import Verdict
from midflight.server.domain.model import (
    Content,
    ContentKind,
    Deployment,
    DeviceState,
    Effective,
    Interval,
    Membership,
    Policy,
    Requested,
)
from midflight.server.domain.reasons import Reason


class ActionKind(StrEnum):
    """As in :mod:`midflight.trust.instructions`."""

    APPLY = "apply"
    REVERT = "revert"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Plan:
    """A live deployment, compiled when it changes."""

    deployment: str
    content: Content
    offers: bool
    reverts: bool
    reason: Reason
    """Of the deployment, where it offers nothing."""
    open_ring: int
    """Rings up to this one are open."""
    last_ring: int
    expedited: bool
    deadline: timedelta | None
    has_windows: bool
    key: tuple[str, ContentKind]
    """Of several with the same key the newest counts."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a device, prepared for decisions; renewed when its facts, holds or groups change."""

    memberships: Mapping[str, Membership]
    """By deployment."""
    running: frozenset[str] = frozenset()
    """Contents that run: hotpatches in memory, baselines from disk."""
    fixed: frozenset[str] = frozenset()
    """Contents that something newer, which runs, contains."""
    ineligible: Mapping[str, Finding] = field(default_factory=dict)
    """By content."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Content to the safeguard that holds it."""
    bars: frozenset[str] = frozenset()
    outside: Mapping[str, Reason] = field(default_factory=dict)
    """Deployments that are not for this device (any more), and why: excluded, or not in the audience."""
    disabled: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)
    """By deployment of a hotpatch: the baseline that the device gets if it cannot have that."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do, for the signed instructions."""

    kind: ActionKind
    deployment: str
    content: str
    begin_now: bool
    """Inside the window (or none is needed): it may begin at once."""
    deadline: datetime | None = None
    """From then on no window need be waited for."""
    reason: Reason = Reason.OFFERED
    restart_within: timedelta | None = None
    """Of a fallback: its deadline counts from when it lies ready on the device. Nobody waits for its answer here, and
    so nobody remembers when it was offered first."""


@dataclass(frozen=True, slots=True)
class Decision:
    """All that a device gets, and how it stands in each deployment."""

    actions: tuple[Action, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By deployment. Where nothing is said, the membership stays as it is."""


NOTHING = Decision()
_APPLIED = Verdict(DeviceState.APPLIED, Reason.APPLIED)
_AWAITING_RING = Verdict(DeviceState.PENDING, Reason.AWAITING_RING)
_SUPERSEDED = Verdict(DeviceState.SUPERSEDED, Reason.SUPERSEDED)
# it was a success here, and still counts as one for the gates: otherwise a few old failures become a large share
_APPLIED_BEFORE = Verdict(DeviceState.APPLIED, Reason.SUPERSEDED)
_OUTSIDE = {
    reason: Verdict(DeviceState.EXCLUDED, reason)
    for reason in (Reason.EXCLUDED, Reason.NOT_IN_AUDIENCE, Reason.UNASSIGNED, Reason.POLICY_CONFLICT)
}
_DISABLED = Verdict(DeviceState.INELIGIBLE, Reason.DEVICE_DISABLED)
_BARRED = Verdict(DeviceState.BARRED, Reason.BARRED)
_ORDERED = Verdict(DeviceState.APPLIED, Reason.REVERT_ORDERED)
_REVERTED = Verdict(DeviceState.REVERTED, Reason.REVERTED)
_WITHDRAWN = Verdict(DeviceState.PENDING, Reason.WITHDRAWN)
_OFFERED = {
    reason: Verdict(DeviceState.OFFERED, reason)
    for reason in (Reason.OFFERED, Reason.OFFERED_IN_WINDOW, Reason.OFFERED_EXPEDITED, Reason.OFFERED_PAST_DEADLINE)
}
_STAYS = (DeviceState.FAILED, DeviceState.REVERTED)
"""Until a person lets it try again."""
REFUSED_FOR = timedelta(hours=1)
"""What a device refused by what it knows itself (no memory, no room on its disk) is offered again after so long."""
_CANNOT = frozenset(
    {
        Reason.KERNEL_TOO_OLD, Reason.AGENT_TOO_OLD, Reason.MEMORY_LOW, Reason.BASELINE_NOT_CURRENT,
        Reason.BASELINE_OFF_TRACK, Reason.HOTPATCH_DISABLED, Reason.APPLY_FAILED, Reason.HEALTH_FAILED, Reason.CRASHED,
        Reason.BARRED,
    }
)  # fmt: skip
"""Why a device that needs a fix cannot have it as a hotpatch."""
_UNDECIDED = (DeviceState.OFFERED, DeviceState.DOWNLOADING, DeviceState.SILENT)


def compile_plan(deployment: Deployment, policy: Policy, content: Content) -> Plan:
    """A deployment as decisions need it."""
    return Plan(
        deployment.id,
        content,
        # revocation stops offers at once, before any background work has noticed it
        offers=rollout.offers(deployment) and content.revoked is None,
        reverts=deployment.requested is Requested.REVERT
        or deployment.effective is Effective.REVERTING
        or deployment.reason is Reason.DONE_REVERTED,
        reason=Reason.FAULTED_REVOKED if content.revoked else deployment.reason,
        open_ring=deployment.ring,
        last_ring=len(policy.rings) - 1,
        expedited=deadlines.expedited(deployment, policy),
        deadline=policy.deadline,
        has_windows=bool(policy.windows),
        key=(content.package, content.kind),
    )


def compile_plans(plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """In the order that :func:`decide` wants them: newest content first."""
    return tuple(sorted(plans, key=lambda plan: (-plan.content.sequence, plan.deployment)))


def decide(standing: Standing, plans: Sequence[Plan], windows: Sequence[Interval], now: datetime) -> Decision:
    """What a device gets now.

    Args:
        standing: of the device.
        plans: the live deployments of the policy that governs it, and those it is still a member of
            (:func:`compile_plans`).
        windows: the open and coming maintenance windows of its policy, in its time zone (:func:`windows.schedule`).
        now: the time.
    """
    if not plans:
        return NOTHING
    if standing.disabled:
        return Decision((), {plan.deployment: _DISABLED for plan in plans if plan.deployment in standing.memberships})
    actions: list[Action] = []
    verdicts: dict[str, Verdict] = {}
    newest: set[tuple[str, ContentKind]] = set()
    instead: set[str] = set()
    for plan in plans:
        membership = standing.memberships.get(plan.deployment)
        runs = plan.content.id in standing.running
        if plan.reverts:
            if membership is not None and runs:
                actions.append(Action(ActionKind.REVERT, plan.deployment, plan.content.id, True, None, plan.reason))
                verdicts[plan.deployment] = _ORDERED
            elif membership is not None and membership.state is DeviceState.APPLIED:
                verdicts[plan.deployment] = _REVERTED
            continue
        if membership is None:
            continue
        if runs:
            newest.add(plan.key)
            verdicts[plan.deployment] = _APPLIED
            continue
        verdict = _barrier(plan, membership, standing, plan.key in newest, now)
        if verdict is not None:
            baseline = standing.instead.get(plan.deployment)
            if baseline is not None and plan.key not in newest and _falls_back(plan, membership, verdict):
                if baseline not in instead:
                    actions.append(_fallback(plan, baseline))
                instead.add(baseline)
            if verdict is not _UNCHANGED:
                verdicts[plan.deployment] = verdict
            continue
        newest.add(plan.key)
        if membership.state is DeviceState.OFFERED and membership.reason is Reason.RESTART_NEEDED:
            continue
        action, verdict = _offer(plan, membership, windows, now)
        actions.append(action)
        if membership.state is not DeviceState.DOWNLOADING:
            verdicts[plan.deployment] = verdict
    return Decision(tuple(actions), verdicts)


_UNCHANGED = Verdict(DeviceState.PENDING, Reason.AWAITING_START, "unchanged")


def _barrier(plan: Plan, membership: Membership, standing: Standing, superseded: bool, now: datetime) -> Verdict | None:
    """Why a device does not get a content now; None: it does."""
    if plan.deployment in standing.outside:
        return _OUTSIDE[standing.outside[plan.deployment]]
    if not plan.offers:
        if membership.state in _UNDECIDED:
            return _WITHDRAWN
        return _UNCHANGED
    content = plan.content
    if membership.state in _STAYS:
        return _UNCHANGED
    if content.id in standing.fixed:
        return _APPLIED_BEFORE if membership.state is DeviceState.APPLIED else _SUPERSEDED
    finding = standing.ineligible.get(content.id)
    if finding is not None:
        return Verdict(DeviceState.INELIGIBLE, finding.reason, finding.detail)
    if content.id in standing.bars:
        return _BARRED
    holding = standing.held.get(content.id)
    if holding is not None:
        return Verdict(DeviceState.HELD, Reason.HELD_BY_SAFEGUARD, holding)
    if superseded:
        return _SUPERSEDED
    if membership.ring is None or membership.ring > plan.open_ring:
        return _AWAITING_RING
    again = offered_again(membership)
    return _UNCHANGED if again and now < again else None


def _falls_back(plan: Plan, membership: Membership, verdict: Verdict) -> bool:
    """Whether a device gets a baseline instead: it cannot have the hotpatch, and its ring is open. Who never had a
    ring, because that was known before, is with the last one."""
    reason = membership.reason if verdict is _UNCHANGED else verdict.reason
    ring = plan.last_ring if membership.ring is None else membership.ring
    return plan.offers and reason in _CANNOT and ring <= plan.open_ring


def _fallback(plan: Plan, baseline: str) -> Action:
    within = timedelta(0) if plan.expedited else plan.deadline
    return Action(ActionKind.BASELINE, plan.deployment, baseline, False, None, Reason.FALLBACK, within)


def offered_again(membership: Membership) -> datetime | None:
    """When a device that was offered a content, and refused it, is offered it again; None: it did not refuse."""
    refused = membership.state is DeviceState.INELIGIBLE and membership.reason not in (
        Reason.DEVICE_DISABLED,
        Reason.ABSENT,
    )
    if not refused or membership.offered is None or membership.since is None:
        return None
    return membership.since + REFUSED_FOR


def _offer(plan: Plan, membership: Membership, windows: Sequence[Interval], now: datetime) -> tuple[Action, Verdict]:
    offered = now if membership.state is DeviceState.INELIGIBLE else membership.offered or now
    deadline = None if plan.deadline is None else offered + plan.deadline
    kind = ActionKind.APPLY if plan.content.kind is ContentKind.HOTPATCH else ActionKind.BASELINE
    detail = ""
    if plan.expedited:
        reason, deadline = Reason.OFFERED_EXPEDITED, offered
    elif not plan.has_windows:
        reason = Reason.OFFERED
    elif windows and windows[0].start <= now < windows[0].end:
        reason = Reason.OFFERED_IN_WINDOW
    elif deadline is not None and now >= deadline:
        reason = Reason.OFFERED_PAST_DEADLINE
    elif windows:
        reason, detail = Reason.AWAITING_WINDOW, f"{windows[0].start:%Y-%m-%d %H:%M} UTC"
    else:
        reason = Reason.NO_WINDOW
    begin = reason in _OFFERED
    action = Action(kind, plan.deployment, plan.content.id, begin, deadline, reason)
    return action, _OFFERED[reason] if begin else Verdict(DeviceState.OFFERED, reason, detail)
