"""How long to wait after failed logins; pure.

Two counters, one per account and one per source address. Neither locks for ever: whoever knows a name could otherwise
lock its owner out. From the limit on, each failure doubles the wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

FORGOTTEN_AFTER = timedelta(hours=24)
_LONGEST = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Limit:
    """``free`` failures cost nothing; the next costs ``first``, and each one after it twice as much."""

    free: int
    first: timedelta


ACCOUNT = Limit(free=5, first=timedelta(seconds=5))
SOURCE = Limit(free=30, first=timedelta(seconds=5))


@dataclass(frozen=True, slots=True)
class Failures:
    """How often a login failed in a row, and when last."""

    count: int = 0
    last: datetime | None = None


def wait(failures: Failures, limit: Limit, now: datetime) -> timedelta:
    """How long the next attempt must still wait; zero if it may come now."""
    if failures.last is None or failures.count < limit.free or now - failures.last >= FORGOTTEN_AFTER:
        return timedelta()
    doublings = min(failures.count - limit.free, 20)
    until = failures.last + min(limit.first * (1 << doublings), _LONGEST)
    return max(until - now, timedelta())


def failed(failures: Failures, now: datetime) -> Failures:
    """One more failure; what is older than a day is forgotten."""
    forgotten = failures.last is not None and now - failures.last >= FORGOTTEN_AFTER
    return Failures(1 if forgotten else failures.count + 1, now)
