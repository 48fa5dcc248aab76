"""When a delivery is tried again, and when a webhook is given up; pure."""

from __future__ import annotations

from datetime import datetime, timedelta

_WAITS = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 7200, 14400))
GIVE_UP_AFTER = timedelta(days=3)
"""From an event on: older news help nobody."""
_LONGEST = timedelta(hours=24)


def next_attempt(
    attempts: int, event_at: datetime, now: datetime, asked: timedelta | None, jitter: float
) -> datetime | None:
    """When to try again after ``attempts`` failures; None: give up.

    Args:
        asked: what the receiver's Retry-After says; it is followed up to a day.
        jitter: 0 to 1: up to a fifth is added, so that what failed together does not come back together.
    """
    wait = _WAITS[min(attempts, len(_WAITS)) - 1] * (1 + jitter / 5)
    due = now + max(wait, min(asked or timedelta(), _LONGEST))
    return due if due - event_at < GIVE_UP_AFTER else None


def given_up(failing_since: datetime | None, disable_after: timedelta, now: datetime) -> bool:
    """Whether a webhook has failed for so long, without one success, that it is disabled."""
    return failing_since is not None and now - failing_since >= disable_after
