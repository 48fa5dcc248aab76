"""When waiting ends: pauses that expire, deadlines of offers, and restarts with grace and warnings.

(After Windows Update for Business: a deadline of days from the offer, a grace period that starts when a device comes
back after it was away, and warnings before a restart is forced.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from midflight.server.domain.model import Deployment, Interval, Pause, Policy, RestartBehaviour

WARNINGS = (timedelta(hours=24), timedelta(hours=4), timedelta(hours=1), timedelta(minutes=15))
"""How long before a forced restart its users are warned."""


def paused(pause: Pause | None, now: datetime) -> bool:
    """Is a pause in force? One with an end is over from that moment on."""
    return pause is not None and pause.since <= now and (pause.until is None or now < pause.until)


def expedited(deployment: Deployment, policy: Policy) -> bool:
    """Does a deployment wait for no window? Only where the policy allows that."""
    return deployment.expedite and policy.expedite_allowed


def apply_deadline(deployment: Deployment, policy: Policy, offered: datetime) -> datetime | None:
    """From when on a device waits for no maintenance window any more; None: it always waits for one.

    Counted from when the device was first offered the content: one that was away gets the whole time.
    """
    if expedited(deployment, policy):
        return offered
    return None if policy.deadline is None else offered + policy.deadline


@dataclass(frozen=True, slots=True)
class Restart:
    """When a device with a staged baseline restarts. ``forced`` None: never by itself."""

    forced: datetime | None
    warnings: tuple[datetime, ...] = ()
    """When users are told, the past ones left out."""
    in_window: Interval | None = None
    """It may restart in this span before that, if nobody objects."""


def restart(
    policy: Policy, staged: datetime, back: datetime, windows: Sequence[Interval], now: datetime, expedite: bool = False
) -> Restart:
    """The restart that a staged baseline needs.

    Args:
        policy: of the device.
        staged: when the baseline lay ready on the device.
        back: when the device last came back after it had been away (or was enrolled).
        windows: the open and coming maintenance windows.
        now: the time.
        expedite: the deployment is expedited: the deadline is over at once, the grace is not.
    """
    if policy.restart in (RestartBehaviour.NEVER, RestartBehaviour.SERVICES):
        return Restart(None)
    window = windows[0] if windows else None
    if policy.deadline is None and not expedite:
        return Restart(None, in_window=window)
    deadline = staged if expedite or policy.deadline is None else staged + policy.deadline
    # grace is there so that nobody who opens a laptop after weeks is restarted in the same minute
    forced = max(deadline, staged, back if back > deadline else staged) + policy.grace
    if policy.restart is RestartBehaviour.IN_WINDOW and window is None:
        return Restart(None)
    if policy.restart is RestartBehaviour.IN_WINDOW and window is not None:
        later = next((w for w in windows if w.end > forced), None)
        return Restart(max(forced, later.start) if later else None, (), window)
    return Restart(forced, tuple(at for w in WARNINGS if (at := forced - w) > now), window)
