"""How a deployment goes on: from what was asked of it, its approvals, its gates and the clock, to what it does.

:func:`advance` is called by background work as often as it likes; it says what changed and why. The commands of people
(:func:`pause`, :func:`resume`, :func:`stop`, :func:`revert`, :func:`approve`) change what is *requested*; the effective
state follows at the next :func:`advance`. Only :func:`resume` takes back what a gate halted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from midflight.errors import InputError
from midflight.server.domain import approvals, deadlines, gates
from midflight.server.domain.model import (
    Approval,
    Content,
    Deployment,
    DeviceState,
    Effective,
    Pause,
    Policy,
    Requested,
    Ring,
    RingTally,
)
from midflight.server.domain.reasons import Reason


class RequestRefused(InputError):
    """What a person asked of a deployment is not possible; the message says why."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a deployment, for its history and for webhooks."""

    at: datetime
    before: Effective
    after: Effective
    reason: Reason
    detail: str = ""
    ring: int = 0


@dataclass(frozen=True, slots=True)
class Situation:
    """What a deployment is judged by, besides itself."""

    content: Content
    policy: Policy
    tallies: Sequence[RingTally]
    """One per ring of the policy."""
    superseded: bool = False
    """Newer content has gone through all rings of the same policy."""
    running: int = 0
    """Devices that still run what it applied (whatever ring they are in)."""

    def tally(self, ring: int) -> RingTally:
        return self.tallies[ring] if ring < len(self.tallies) else RingTally()


def advance(deployment: Deployment, situation: Situation, now: datetime) -> tuple[Deployment, list[Transition]]:
    """What a deployment does from now on, and each change on the way there. Without any change: the same, and
    nothing."""
    transitions: list[Transition] = []
    deployment = _remembering(deployment, situation)
    # each turn passes at most one ring, so this ends
    for _ in range(len(situation.policy.rings) + 3):
        after = _step(deployment, situation, now)
        if after == deployment:
            break
        if (after.effective, after.reason, after.ring) != (deployment.effective, deployment.reason, deployment.ring):
            transitions.append(
                Transition(now, deployment.effective, after.effective, after.reason, after.detail, after.ring)
            )
        deployment = after
    return deployment, transitions


def final(deployment: Deployment) -> bool:
    """Can nothing but an order to revert change it any more?"""
    if deployment.effective is Effective.FAULTED:
        return deployment.reason in (Reason.FAULTED_REVOKED, Reason.FAULTED_OUTDATED, Reason.FAULTED_SUPERSEDED)
    return deployment.reason in (Reason.STOPPED_BY_REQUEST, Reason.DONE_REVERTED)


def _step(deployment: Deployment, situation: Situation, now: datetime) -> Deployment:
    policy, content = situation.policy, situation.content
    if deployment.requested is Requested.REVERT or deployment.effective is Effective.REVERTING:
        return _reverting(deployment, situation, now)
    if content.revoked is not None:
        return _to(deployment, now, Effective.FAULTED, Reason.FAULTED_REVOKED, content.revoked.reason)
    if final(deployment):
        return deployment
    if deployment.requested is Requested.STOPPED:
        return _to(deployment, now, Effective.HALTED, Reason.STOPPED_BY_REQUEST)
    if situation.superseded:
        return _to(deployment, now, Effective.FAULTED, Reason.FAULTED_SUPERSEDED)
    if content.deployable_until is not None and now >= content.deployable_until:
        return _to(
            deployment, now, Effective.FAULTED, Reason.FAULTED_OUTDATED, f"since {content.deployable_until:%Y-%m-%d}"
        )
    if deployment.requested is Requested.PAUSED and not deadlines.paused(deployment.pause, now):
        # the pause is over by itself; what a gate halted meanwhile stays halted
        return replace(deployment, requested=Requested.NONE, pause=None)
    if deployment.effective is Effective.HALTED:
        return deployment
    halt = _halted(deployment, situation, now)
    if halt:
        return halt
    if deployment.requested is Requested.PAUSED and deployment.pause is not None:
        until = deployment.pause.until
        if until is None:
            return _to(deployment, now, Effective.PAUSED, Reason.PAUSED_BY_REQUEST)
        return _to(deployment, now, Effective.PAUSED, Reason.PAUSED_UNTIL, f"{until:%Y-%m-%d %H:%M %Z}")
    if deadlines.paused(policy.pause, now):
        return _to(deployment, now, Effective.PAUSED, Reason.PAUSED_BY_POLICY)
    return _running(deployment, situation, now)


def _running(deployment: Deployment, situation: Situation, now: datetime) -> Deployment:
    """Neither stopped nor paused nor halted: approval, start, rings."""
    policy = situation.policy
    approved = approvals.content_approved(policy.approvals, situation.content, deployment.approvals, now)
    # a rejection holds back what runs already, but a rule that changed afterwards does not
    started = deployment.ring_since is not None
    if approved.reason and (not started or approved.reason is Reason.APPROVAL_REJECTED):
        return _to(deployment, now, Effective.SCHEDULED, approved.reason, approved.detail)
    if now < deployment.starts:
        detail = f"{deployment.starts:%Y-%m-%d %H:%M %Z}"
        return _to(deployment, now, Effective.SCHEDULED, Reason.SCHEDULED_FOR_START, detail)
    if not started:
        first = approvals.ring_approved(policy.rings[0], 0, deployment.approvals)
        if first.reason:
            return _to(deployment, now, Effective.SCHEDULED, first.reason, first.detail or policy.rings[0].name)
        if not any(tally.members for tally in situation.tallies):
            return _to(deployment, now, Effective.SCHEDULED, Reason.AUDIENCE_EMPTY)
        opened = replace(deployment, ring=0, ring_since=now)
        return _to(opened, now, Effective.OFFERING, Reason.OFFERING_RING, policy.rings[0].name)
    return _ring(deployment, situation, now)


def _ring(deployment: Deployment, situation: Situation, now: datetime) -> Deployment:
    """The gate of the ring in progress, and the approval of the next ring."""
    rings, index = situation.policy.rings, deployment.ring
    if index >= len(rings):
        return _to(deployment, now, Effective.DONE, Reason.DONE_OFFERED)
    ring, tally = rings[index], situation.tally(index)
    judgement = gates.judge(ring.gate, tally, deployment.ring_since or now, now, _accepted(deployment, index))
    following = rings[index + 1] if index + 1 < len(rings) else None
    if judgement.outcome is not gates.Outcome.PASS and not (
        judgement.helpless and _waved(deployment, index + 1, following)
    ):
        reason = judgement.reason or Reason.OFFERING_RING
        return _to(deployment, now, Effective.OFFERING, reason, _about(ring, judgement.detail))
    if following is not None:
        approved = approvals.ring_approved(following, index + 1, deployment.approvals)
        if approved.reason:
            return _to(deployment, now, Effective.OFFERING, approved.reason, _about(following, approved.detail))
    opened = replace(deployment, ring=index + 1, ring_since=now)
    if following is None:
        return _to(opened, now, Effective.DONE, Reason.DONE_OFFERED)
    return _to(opened, now, Effective.OFFERING, Reason.OFFERING_RING, following.name)


def _halted(deployment: Deployment, situation: Situation, now: datetime) -> Deployment | None:
    """The halt of any ring that was opened: those whose gates have passed are watched too."""
    if deployment.ring_since is None:
        return None
    for index, ring in enumerate(situation.policy.rings[: deployment.ring + 1]):
        halt = gates.beyond(ring.gate, situation.tally(index), _accepted(deployment, index))
        if halt is None or halt.reason is None:
            continue
        if situation.policy.revert_on_halt:
            return _to(deployment, now, Effective.REVERTING, Reason.REVERTING_BY_GATE, _about(ring, halt.detail))
        return _to(deployment, now, Effective.HALTED, halt.reason, _about(ring, halt.detail))
    return None


def _reverting(deployment: Deployment, situation: Situation, now: datetime) -> Deployment:
    """A revert goes on, whatever happens to the content, until no device is known to run it."""
    by_gate = deployment.effective is Effective.REVERTING and deployment.reason is Reason.REVERTING_BY_GATE
    reason = Reason.REVERTING_BY_GATE if by_gate else Reason.REVERTING_BY_REQUEST
    if situation.running:
        detail = deployment.detail if by_gate else f"{situation.running} devices run it"
        return _to(deployment, now, Effective.REVERTING, reason, detail)
    if deployment.effective is Effective.REVERTING:
        return _to(replace(deployment, requested=Requested.REVERT), now, Effective.DONE, Reason.DONE_REVERTED)
    if deployment.reason is Reason.DONE_REVERTED:
        return deployment
    return _to(deployment, now, Effective.REVERTING, reason)


def _waved(deployment: Deployment, index: int, following: Ring | None) -> bool:
    """Did a person wave the next ring through, although this one can prove nothing?"""
    said = [a for a in deployment.approvals if a.ring == index and a.approved]
    return following is not None and bool(said)


def _remembering(deployment: Deployment, situation: Situation) -> Deployment:
    """A silent device that was accepted and answers well after all leaves no room for another failure."""
    rings = situation.policy.rings
    accepted = tuple(
        min(count, gates.bad(rings[index].gate, situation.tally(index)))
        for index, count in enumerate(deployment.accepted[: len(rings)])
    )
    return deployment if accepted == deployment.accepted else replace(deployment, accepted=accepted)


def _about(ring: Ring, detail: str) -> str:
    return f"{ring.name}: {detail}" if detail else ring.name


def _accepted(deployment: Deployment, ring: int) -> int:
    return deployment.accepted[ring] if ring < len(deployment.accepted) else 0


def _to(deployment: Deployment, now: datetime, effective: Effective, reason: Reason, detail: str = "") -> Deployment:
    if (deployment.effective, deployment.reason, deployment.detail) == (effective, reason, detail):
        return deployment
    since = deployment.since if deployment.effective is effective else now
    return replace(deployment, effective=effective, reason=reason, detail=detail, since=since or now)


# -- what people ask for


def pause(deployment: Deployment, now: datetime, until: datetime | None = None) -> Deployment:
    """Pause a deployment, until a person resumes it or until a time.

    Raises:
        RequestRefused: it has ended, or the time is over already.
    """
    _alive(deployment, "paused")
    if until is not None and until <= now:
        raise RequestRefused(f"deployment {deployment.id} cannot be paused until {until:%Y-%m-%d %H:%M}: that is past")
    return replace(deployment, requested=Requested.PAUSED, pause=Pause(now, until))


def resume(deployment: Deployment, situation: Situation, now: datetime) -> Deployment:
    """A person resumes what a person paused or a gate halted. Bad outcomes so far are accepted, further ones are not.

    Raises:
        RequestRefused: it has ended, or neither was it paused nor halted.
    """
    _alive(deployment, "resumed")
    halted = deployment.effective is Effective.HALTED
    if not halted and deployment.requested is not Requested.PAUSED:
        raise RequestRefused(f"deployment {deployment.id} is neither paused nor halted; there is nothing to resume")
    resumed = replace(deployment, requested=Requested.NONE, pause=None)
    if not halted:
        return resumed
    rings = situation.policy.rings
    accepted = tuple(gates.bad(ring.gate, situation.tally(index)) for index, ring in enumerate(rings))
    resumed = replace(resumed, accepted=accepted, ring_since=now)
    ring = rings[min(deployment.ring, len(rings) - 1)]
    return _to(resumed, now, Effective.OFFERING, Reason.OFFERING_RING, ring.name)


def stop(deployment: Deployment) -> Deployment:
    """Stop a deployment for good; what runs keeps running.

    Raises:
        RequestRefused: it has ended.
    """
    _alive(deployment, "stopped")
    return replace(deployment, requested=Requested.STOPPED, pause=None)


def revert(deployment: Deployment) -> Deployment:
    """Order what a deployment applied to be taken out. Possible at any time, also after revocation.

    Raises:
        RequestRefused: that was ordered before.
    """
    if deployment.requested is Requested.REVERT or deployment.effective is Effective.REVERTING:
        raise RequestRefused(f"deployment {deployment.id} is being reverted already")
    return replace(deployment, requested=Requested.REVERT, pause=None)


def approve(deployment: Deployment, approval: Approval) -> Deployment:
    """Record a person's approval or rejection of a deployment or of one of its rings.

    Raises:
        RequestRefused: it has ended.
    """
    _alive(deployment, "approved")
    return replace(deployment, approvals=(*deployment.approvals, approval))


def _alive(deployment: Deployment, what: str) -> None:
    if final(deployment) or deployment.requested in (Requested.STOPPED, Requested.REVERT):
        raise RequestRefused(f"deployment {deployment.id} cannot be {what}: {deployment.reason.text}; make a new one")
    if deployment.effective is Effective.REVERTING:
        raise RequestRefused(f"deployment {deployment.id} cannot be {what}: it is being reverted; make a new one")


def offers(deployment: Deployment) -> bool:
    """May content be offered now? Devices of open rings alone (``ring`` or lower).

    A request counts from the moment it is made, before the effective state follows.
    """
    if deployment.requested is not Requested.NONE or deployment.reason is Reason.DONE_REVERTED:
        return False
    return deployment.effective in (Effective.OFFERING, Effective.DONE)


def tally(members: Iterable[tuple[int | None, DeviceState, datetime | None]], rings: Sequence[Ring]) -> list[RingTally]:
    """The tallies of a deployment from its members: ring, state and since when. (A database counts by itself.)"""
    states: list[dict[DeviceState, int]] = [{} for _ in rings]
    successes: list[list[datetime]] = [[] for _ in rings]
    for ring, state, since in members:
        if ring is None or ring >= len(rings):
            continue
        states[ring][state] = states[ring].get(state, 0) + 1
        if state is gates.GOOD and since is not None:
            successes[ring].append(since)
    found = []
    for each, counted, times in zip(rings, states, successes, strict=True):
        first = sorted(times)[: each.gate.min_sample]
        found.append(RingTally(counted, first[-1] if first else None))
    return found
