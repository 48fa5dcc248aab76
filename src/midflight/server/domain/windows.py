"""Maintenance windows: RFC 5545 recurrences in local time, across daylight saving, as spans of UTC.

The recurrence is counted in local time. An opening that falls into the gap of spring is taken with the offset from
before the gap (02:30 becomes 03:30), one that exists twice in autumn opens the first time: RFC 5545 section 3.3.5, to
which section 3.3.10 refers for computed instances (docs/adr/0071). Durations are exact time (section 3.3.6, ``PT``):
a window of three hours is open for three hours on every day of the year.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from zoneinfo import ZoneInfo

from dateutil.rrule import rrule, rruleset, rrulestr

from midflight.errors import InputError
from midflight.server.domain.model import Interval, Window

SHORTEST = timedelta(minutes=5)
LONGEST = timedelta(days=31)
SEARCH = timedelta(days=366 * 2)
"""How far ahead a next opening is looked for."""
_BLOCK = timedelta(days=28)
_AHEAD = timedelta(days=14)
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_PARTS = frozenset(
    ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYMONTH", "BYWEEKNO", "BYYEARDAY", "BYMONTHDAY", "BYDAY")
) | {"BYHOUR", "BYMINUTE", "BYSETPOS"}
_FIRST, _LAST = datetime(2000, 1, 1), datetime(2199, 12, 31, 23, 59, 59)
_NEAR_THE_END = datetime(9940, 1, 1)
"""59 years hold every date on every day of the week."""
MAX_RULE = 500
MAX_COUNT = 10_000
MAX_DAILY = 24
"""Openings on one day."""
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_END = attrgetter("end")
_LOCAL = re.compile(r"\d{8}(T\d{6})?")


class WindowError(InputError):
    """A maintenance window cannot be used; the message says why."""


def validate(window: Window) -> None:
    """Check a window as an administrator wrote it.

    Raises:
        WindowError: no rule of RFC 5545, one that is too frequent, an impossible duration, or an unknown time zone.
    """
    if not SHORTEST <= window.duration <= LONGEST:
        raise WindowError(f"a maintenance window is open for 5 minutes to 31 days, not {window.duration}")
    if window.start.tzinfo is not None:
        raise WindowError("the start of a maintenance window is local time; give it without a time zone")
    if window.timezone is not None and _zone(window.timezone) is None:
        raise WindowError(f"there is no time zone {window.timezone!r}; use a name such as Europe/Berlin")
    if not _FIRST <= window.start <= _LAST:
        raise WindowError(f"a maintenance window begins from 2000 to 2199, not {window.start}; give another start")
    if len(window.rrule) > MAX_RULE:
        raise WindowError(f"the recurrence is longer than {MAX_RULE} characters; take several windows")
    count = re.search("COUNT=([^;]*)", window.rrule)
    if count and not (re.fullmatch("[1-9][0-9]{0,4}", count[1]) and int(count[1]) <= MAX_COUNT):
        raise WindowError(f"COUNT in the recurrence {window.rrule!r} must be a number from 1 to {MAX_COUNT}")
    whole = _recurrence(window.rrule, window.start)
    # who looks for what never occurs looks to the end of all years, which takes seconds; so first at the last of them
    bare = ";".join(part for part in window.rrule.split(";") if not part.startswith(("UNTIL=", "COUNT=", "INTERVAL=")))
    if next(iter(_recurrence(bare, _NEAR_THE_END)), None) is None or next(iter(whole), None) is None:
        raise WindowError(f"the recurrence {window.rrule!r} never occurs; give one that does")


def schedule(windows: Sequence[Window], timezone: str, now: datetime) -> tuple[Interval, ...]:
    """The open span (if any) and the coming ones of all windows, for at least 14 days, in order, merged.

    Cheap enough for every check-in: computed once per policy, time zone and four weeks, by nothing but its arguments.

    Args:
        windows: of the policy.
        timezone: the device's own; an unknown one (devices report what they like) counts as UTC.
        now: the time.
    """
    block = _block(tuple(windows), timezone, (now - _EPOCH) // _BLOCK)
    return block[bisect_right(block, now, key=_END) :]


def is_open(windows: Sequence[Window], timezone: str, now: datetime) -> bool:
    """May changes begin now? Without any windows, always."""
    if not windows:
        return True
    spans = schedule(windows, timezone, now)
    return bool(spans) and spans[0].start <= now


def next_opening(windows: Sequence[Window], timezone: str, now: datetime) -> Interval | None:
    """The open span, or the next one within two years; None if there is none."""
    spans = schedule(windows, timezone, now)
    if spans:
        return spans[0]
    return next(iter(openings(windows, timezone, now, now + SEARCH)), None)


def openings(windows: Sequence[Window], timezone: str, begin: datetime, end: datetime) -> list[Interval]:
    """All spans that are open at some time from ``begin`` to ``end``; those that touch become one."""
    spans = sorted((s for w in windows for s in _openings(w, timezone, begin, end)), key=lambda span: span.start)
    merged: list[Interval] = []
    for span in spans:
        if merged and span.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(span.end, merged[-1].end))
        else:
            merged.append(span)
    return merged


@lru_cache(maxsize=4096)
def _block(windows: tuple[Window, ...], timezone: str, number: int) -> tuple[Interval, ...]:
    begin = _EPOCH + number * _BLOCK
    return tuple(openings(windows, timezone, begin, begin + _BLOCK + _AHEAD))


def _openings(window: Window, timezone: str, begin: datetime, end: datetime) -> Iterator[Interval]:
    zone = _zone(window.timezone or timezone) or _zone("UTC")
    day = timedelta(days=1)
    # a day more on both sides: local time is at most that far from UTC
    first = begin.replace(tzinfo=None) - window.duration - day
    last = end.replace(tzinfo=None) + day
    for local in _recurrence(window.rrule, window.start, first).between(first, last, inc=True):
        # zoneinfo reads fold=0 as RFC 5545 wants it: the offset before a gap, the first of two
        start = local.replace(tzinfo=zone).astimezone(UTC)
        span = Interval(start, start + window.duration)
        if span.end > begin and span.start < end:
            yield span


def _recurrence(rule: str, start: datetime, after: datetime | None = None) -> rrule:
    parts: dict[str, str] = {}
    for part in rule.removeprefix("RRULE:").split(";"):
        name, _, value = part.partition("=")
        if name not in _PARTS or not value or name in parts:
            raise WindowError(
                f"the recurrence {rule!r} has a part {part!r} that it cannot have (RFC 5545 section 3.3.10)"
            )
        parts[name] = value
    if parts.get("FREQ") not in _FREQUENCIES:
        raise WindowError(f"the recurrence {rule!r} must have FREQ={', '.join(_FREQUENCIES)}")
    if (parts.get("BYHOUR", "").count(",") + 1) * (parts.get("BYMINUTE", "").count(",") + 1) > MAX_DAILY:
        raise WindowError(f"the recurrence {rule!r} occurs more than {MAX_DAILY} times a day; open longer instead")
    if not re.fullmatch("[1-9][0-9]{0,3}", parts.get("INTERVAL", "1")):
        raise WindowError(f"INTERVAL in the recurrence {rule!r} must be a number from 1 to 9999")
    if "UNTIL" in parts and not _LOCAL.fullmatch(parts["UNTIL"]):
        raise WindowError(f"UNTIL in the recurrence {rule!r} must be local time, such as 20271231T000000")
    if after is not None and "COUNT" not in parts:
        start = _later_start(parts, start, after)
    try:
        found = rrulestr(";".join(f"{k}={v}" for k, v in parts.items()), dtstart=start)
    except (ValueError, OverflowError, TypeError) as error:
        raise WindowError(f"the recurrence {rule!r} cannot be read: {error}") from None
    if isinstance(found, rruleset):
        raise WindowError(f"the recurrence {rule!r} must be one rule")
    return found


def _later_start(parts: dict[str, str], start: datetime, after: datetime) -> datetime:
    """A start of the same recurrence near ``after``: otherwise years of occurrences are counted to get there."""
    step = {"DAILY": timedelta(days=1), "WEEKLY": timedelta(weeks=1)}.get(parts["FREQ"])
    if step is None or after <= start:
        return start
    step *= int(parts.get("INTERVAL", "1"))
    return start + max(0, (after - start) // step - 1) * step


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        return None
