"""How one device stands in one deployment, and what changes that: what it is told, what it reports, and its silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from midflight.server.domain.model import DeviceState, Gate, Membership
from midflight.server.domain.reasons import Reason

_OPEN = (DeviceState.OFFERED, DeviceState.DOWNLOADING)
AWAITED = (Reason.OFFERED, Reason.OFFERED_IN_WINDOW, Reason.OFFERED_EXPEDITED, Reason.OFFERED_PAST_DEADLINE)
"""It was told to begin now, so an answer is due."""


class Result(StrEnum):
    """What a device reports of an action (check-in protocol, ``outcomes``)."""

    DOWNLOADING = "downloading"
    APPLIED = "applied"
    STAGED = "staged"
    """A baseline lies ready and waits for the restart."""
    FAILED = "failed"
    HEALTH_FAILED = "health_failed"
    CRASHED = "crashed"
    REVERTED = "reverted"
    REVERT_FAILED = "revert_failed"
    INELIGIBLE = "ineligible"


_AFTER: dict[Result, tuple[DeviceState, Reason]] = {
    Result.DOWNLOADING: (DeviceState.DOWNLOADING, Reason.DOWNLOADING),
    Result.APPLIED: (DeviceState.APPLIED, Reason.APPLIED),
    Result.STAGED: (DeviceState.OFFERED, Reason.RESTART_NEEDED),
    Result.FAILED: (DeviceState.FAILED, Reason.APPLY_FAILED),
    Result.HEALTH_FAILED: (DeviceState.FAILED, Reason.HEALTH_FAILED),
    Result.CRASHED: (DeviceState.FAILED, Reason.CRASHED),
    Result.REVERTED: (DeviceState.REVERTED, Reason.REVERTED),
    Result.REVERT_FAILED: (DeviceState.FAILED, Reason.REVERT_FAILED),
    Result.INELIGIBLE: (DeviceState.INELIGIBLE, Reason.NOT_AFFECTED),
}
BARS = frozenset({Result.HEALTH_FAILED, Result.CRASHED})
"""After these the content is barred on the device until someone looks."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a deployment means for a device now; the membership follows it."""

    state: DeviceState
    reason: Reason
    detail: str = ""


def follow(membership: Membership, verdict: Verdict, now: datetime) -> Membership | None:
    """The membership after a verdict of :func:`midflight.server.domain.offers.decide`; None: nothing to write."""
    same = membership.state is verdict.state and membership.reason is verdict.reason
    if same and membership.detail == verdict.detail:
        return None
    offered = membership.offered
    anew = membership.state is DeviceState.INELIGIBLE
    if verdict.state is DeviceState.OFFERED and (offered is None or anew):
        # what a device refused is another attempt, with an answer of its own
        offered = now
    since = membership.since if same and membership.since else now
    return Membership(membership.ring, verdict.state, verdict.reason, verdict.detail, since, offered)


def report(
    membership: Membership, result: Result, now: datetime, reason: Reason | None = None, detail: str = ""
) -> Membership:
    """The membership after a device reported a result.

    It stands so since the server heard of it: a device's clock may be wrong, and must not shorten a gate's soak.

    Args:
        membership: before.
        result: what it reports.
        now: the time.
        reason: the device's own reason, where it gives one (eligibility).
        detail: its words.
    """
    state, usual = _AFTER[result]
    return Membership(membership.ring, state, reason or usual, detail, now, membership.offered)


def silence(
    membership: Membership,
    last_seen: datetime | None,
    gate: Gate,
    now: datetime,
    opened: datetime | None = None,
    soaked: datetime | None = None,
) -> Membership | None:
    """The membership of a device that has fallen silent or was never there; None: neither.

    Silent is who was offered the content and has not been seen since for so long, and who checks in but leaves
    unanswered what it was told to begin. Whoever waits for its window, and says so by checking in, is not silent.
    Silent is also who applied it and was then not heard of: a success holds once the device was heard of after the
    soak, counted from its own success, and in the ring in progress after that of the gate, which waits for it.
    Absent is who has not been seen since its ring began: it was offered nothing, so it is no failure, and the gate's
    sample is taken without it. All are offered the content when they come back without it.

    Args:
        membership: of the device.
        last_seen: when the device was last heard of.
        gate: of its ring.
        now: the time.
        opened: when its ring began; None: it has not, or that does not matter any more.
        soaked: when the soak of its ring is over (:func:`midflight.server.domain.gates.soaked`); None: its ring is not
            the one in progress, or has no sample yet.
    """
    if membership.state is DeviceState.PENDING and opened is not None:
        if (last_seen is None or last_seen < opened) and now - opened > gate.silence_after:
            return replace(membership, state=DeviceState.INELIGIBLE, reason=Reason.ABSENT, detail="", since=now)
        return None
    if membership.state is DeviceState.APPLIED:
        return _vanished(membership, last_seen, gate, now, soaked)
    if membership.state not in _OPEN or membership.offered is None:
        return None
    heard = max(membership.offered, last_seen or membership.offered)
    gone = now - heard > gate.silence_after
    due = membership.state is DeviceState.DOWNLOADING or membership.reason in AWAITED
    unanswered = due and now - (membership.since or membership.offered) > gate.silence_after
    if not gone and not unanswered:
        return None
    never = gone and heard == membership.offered
    detail = "not seen since the offer" if never else f"last seen {heard:%Y-%m-%d %H:%M %Z}"
    return replace(membership, state=DeviceState.SILENT, reason=Reason.SILENT, detail=detail, since=now)


def _vanished(
    membership: Membership, last_seen: datetime | None, gate: Gate, now: datetime, soaked: datetime | None
) -> Membership | None:
    """Who applied it and was not heard of after the soak. Without a soak nobody is waited for; nor is anybody whose
    success something newer has replaced."""
    success = membership.since
    if membership.reason is not Reason.APPLIED or success is None or not gate.soak:
        return None
    heard = max(success, last_seen or success)
    ends = (success + gate.soak, soaked or success)
    if not any(heard < end and now - end > gate.silence_after for end in ends):
        return None
    detail = f"applied it, last seen {heard:%Y-%m-%d %H:%M %Z}"
    return replace(membership, state=DeviceState.SILENT, reason=Reason.SILENT, detail=detail, since=now)


def retry(membership: Membership, now: datetime) -> Membership | None:
    """A person looked, and lets a failed or barred device try again; None: it is neither."""
    if membership.state not in (DeviceState.FAILED, DeviceState.BARRED):
        return None
    return replace(
        membership, state=DeviceState.PENDING, reason=Reason.AWAITING_RING, detail="", since=now, offered=None
    )
