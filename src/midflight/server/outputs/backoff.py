"""When a delivery is tried again, and when a webhook is given up; pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_WAITS = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 7200, 14400))
GIVE_UP_AFTER = timedelta(days=3)
"""From an event on: older news help nobody."""
LONGEST_ASKED = timedelta(hours=4)
"""A receiver may ask for so much, and no more: a wrong header must not keep news back for long."""


def next_attempt(
    attempts: int, event_at: datetime, now: datetime, asked: timedelta | None, jitter: float
) -> datetime | None:
    """When to try again after ``attempts`` failures; None: give up.

    Args:
        asked: see :func:`asked_wait`.
        jitter: 0 to 1: up to a fifth is added, so that what failed together does not come back together.
    """
    wait = _WAITS[min(attempts, len(_WAITS)) - 1] * (1 + jitter / 5)
    due = now + max(wait, asked or timedelta())
    return due if due - event_at < GIVE_UP_AFTER else None


def asked_wait(header: str | None, now: datetime) -> timedelta | None:
    """What the receiver's Retry-After says (RFC 9110, section 10.2.3: seconds, or a date); None: nothing of use."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        asked = timedelta(seconds=min(int(text[:10]), LONGEST_ASKED // timedelta(seconds=1)))
    else:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return None
        asked = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    return min(asked, LONGEST_ASKED) if asked > timedelta() else None


def given_up(failing_since: datetime | None, disable_after: timedelta, now: datetime) -> bool:
    """Whether a webhook has failed for so long, without one success, that it is disabled."""
    return failing_since is not None and now - failing_since >= disable_after
