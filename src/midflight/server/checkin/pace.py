"""How often devices come: the interval that a device is told, and when those come again that were sent away.

All devices that one interval governs would come in step after an outage or a power cut. So every interval is drawn anew
around its mean, more widely for a device that was away, and who is sent away is spread over a whole interval.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

JITTER = 0.1
"""An interval is drawn between 90 % and 110 % of its mean."""
AWAY = 2.0
"""A device was away when it was not seen for so many intervals; then its next interval is 50 % to 150 %."""


def interval(mean_s: int, last_seen: datetime | None, now: datetime, draw: random.Random) -> int:
    """Seconds until a device should come again."""
    away = last_seen is None or now - last_seen > timedelta(seconds=AWAY * mean_s)
    width = 0.5 if away else JITTER
    return max(1, round(mean_s * draw.uniform(1 - width, 1 + width)))


def retry_after(mean_s: int, draw: random.Random) -> int:
    """Seconds after which a device that was sent away unheard should come again."""
    return round(draw.uniform(5, max(10, mean_s)))
