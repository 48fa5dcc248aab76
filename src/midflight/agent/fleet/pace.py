"""When the next check-in is. Pure: randomness is given.

The server paces: it says an interval with each answer, already jittered. Only what it cannot say is decided here: how
long to wait when it does not answer (exponential back-off with full jitter, as the AWS Architecture Blog of 2015 has
it), and that no server can make a device hurry or fall silent for ever.
"""

from __future__ import annotations

from collections.abc import Callable

SHORTEST, LONGEST = 1.0, 86400.0
"""Seconds between two check-ins, whatever the server says."""
SHARE, LEAST_BASE, CAP = 0.1, 1.0, 900.0
"""Back-off begins at a tenth of the interval that the server set: who has many devices sets a long one."""
LONGEST_RETRY_AFTER = 3600.0


def after_answer(interval_s: int) -> float:
    """Seconds until the next check-in, after an answer."""
    return min(max(float(interval_s), SHORTEST), LONGEST)


def after_failure(failures: int, interval_s: float, draw: Callable[[], float]) -> float:
    """Seconds until the next try, after so many failures in a row (at least 1).

    Args:
        interval_s: what the server said last.
        draw: gives a number from 0 to 1.
    """
    base = max(LEAST_BASE, SHARE * interval_s)
    return max(SHORTEST, draw() * min(CAP, base * 2.0 ** min(failures, 30)))


def after_refusal(retry_after: str, failures: int, interval_s: float, draw: Callable[[], float]) -> float:
    """Seconds until the next try, after an answer that was no: the header Retry-After (RFC 9110 10.2.3, in seconds;
    a date is not used by our server) counts, else as after a failure."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(max(float(retry_after[:9]), SHORTEST), LONGEST_RETRY_AFTER)
    return after_failure(failures, interval_s, draw)


def poll(left: float, elapsed: float) -> float:
    """Seconds until something that is going on is looked at again: often at first, seldom when it takes long."""
    return max(0.2, min(left, 0.2 + elapsed / 10, 30.0))
