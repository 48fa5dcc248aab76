"""Maintenance windows in local time: recurrences, daylight saving, merging, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.server.domain import windows
from midflight.server.domain.model import Interval, Window
from midflight.server.domain.windows import WindowError
from tests.server.domain.things import DAY, HOUR, moments

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia"]


def daily(hour: int, minute: int = 0, hours: float = 3, zone: str | None = None) -> Window:
    return Window(f"FREQ=DAILY;BYHOUR={hour};BYMINUTE={minute}", datetime(2020, 1, 1), timedelta(hours=hours), zone)


def at(text: str, zone: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def test_a_night_window_follows_local_time_through_the_year() -> None:
    window = daily(2)
    for day, utc_hour in (("2026-01-15", 1), ("2026-07-15", 0)):
        opening = windows.next_opening([window], "Europe/Berlin", datetime.fromisoformat(f"{day}T00:00+00:00"))
        assert opening is not None and opening.start.hour == utc_hour and opening.end - opening.start == 3 * HOUR


def test_an_opening_in_the_gap_of_spring_takes_the_offset_from_before() -> None:
    # 29 March 2026: 02:00 to 03:00 does not exist in Berlin; RFC 5545 section 3.3.5 makes 03:30 of 02:30
    opening = windows.next_opening([daily(2, 30)], "Europe/Berlin", at("2026-03-29T00:00", "Europe/Berlin"))
    assert opening is not None
    assert opening.start.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M %z") == "03:30 +0200"
    assert opening.end - opening.start == 3 * HOUR


def test_an_opening_that_exists_twice_in_autumn_opens_once_and_the_first_time() -> None:
    begin = at("2026-10-25T00:00", "Europe/Berlin")
    found = windows.openings([daily(2, 30, 0.5)], "Europe/Berlin", begin, begin + DAY)
    assert [span.start for span in found] == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]


def test_half_hour_daylight_saving_and_a_day_that_never_was() -> None:
    # Lord Howe puts its clock forward by 30 minutes on 4 October 2026 at 02:00
    opening = windows.next_opening([daily(2, 10)], "Australia/Lord_Howe", at("2026-10-04T00:00", "Australia/Lord_Howe"))
    assert opening is not None
    assert opening.start.astimezone(ZoneInfo("Australia/Lord_Howe")).strftime("%H:%M") == "02:40"
    # Apia had no 30 December 2011: that day's opening falls together with the next day's
    window = Window("FREQ=DAILY;BYHOUR=2;BYMINUTE=0", datetime(2011, 12, 1), 3 * HOUR)
    begin = at("2011-12-29T12:00", "Pacific/Apia")
    found = windows.openings([window], "Pacific/Apia", begin, begin + timedelta(days=2))
    assert len({span.start.astimezone(ZoneInfo("Pacific/Apia")).date() for span in found}) == len(found) == 2


def test_the_second_saturday_of_a_month() -> None:
    window = Window("FREQ=MONTHLY;BYDAY=2SA;BYHOUR=22;BYMINUTE=0", datetime(2020, 1, 1), 4 * HOUR, "Europe/Berlin")
    opening = windows.next_opening([window], "Asia/Kolkata", datetime(2026, 6, 14, 12, tzinfo=UTC))
    assert opening == Interval(datetime(2026, 7, 11, 20, tzinfo=UTC), datetime(2026, 7, 12, 0, tzinfo=UTC))


@settings(max_examples=60, deadline=None)
@given(moments, st.sampled_from(ZONES), st.integers(0, 23), st.integers(0, 59), st.integers(1, 30))
def test_open_is_what_a_clock_on_the_wall_says(now: datetime, zone: str, hour: int, minute: int, hours: int) -> None:
    """Against a count of local days, without any recurrence rule."""
    expected = []
    local = now.astimezone(ZoneInfo(zone)).date()
    for offset in range(-3, 17):
        opens = datetime.combine(local + timedelta(days=offset), datetime.min.time()).replace(hour=hour, minute=minute)
        start = opens.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        expected.append((start, start + timedelta(hours=hours)))
    window = [daily(hour, minute, hours)]
    spans = windows.schedule(window, zone, now)
    assert windows.is_open(window, zone, now) is any(start <= now < end for start, end in expected)
    assert all(span.end > now for span in spans)
    assert all(a.end < b.start for a, b in pairwise(spans))
    for hours_ahead in range(0, 14 * 24, 5):
        moment = now + timedelta(hours=hours_ahead)
        wanted = any(start <= moment < end for start, end in expected)
        assert any(moment in span for span in spans) is wanted


def _changes(zone: str) -> list[datetime]:
    """When the clocks of a zone are changed in 2026, to the quarter of an hour."""
    place, begin = ZoneInfo(zone), datetime(2026, 1, 1, tzinfo=UTC)
    quarters = (begin + timedelta(minutes=15 * n) for n in range(365 * 96))
    return [b for a, b in pairwise(quarters) if a.astimezone(place).utcoffset() != b.astimezone(place).utcoffset()]


CHANGES = [(zone, at) for zone in ZONES for at in _changes(zone)]


@given(st.sampled_from(CHANGES), st.integers(-180, 180), st.integers(0, 23), st.integers(0, 59), st.integers(1, 30))
def test_windows_around_the_change_of_clocks(
    change: tuple[str, datetime], minutes: int, hour: int, minute: int, hours: int
) -> None:
    """On the day that has 23 or 25 hours, and those beside it: open for as long as it says, once for each local day."""
    zone, now = change[0], change[1] + timedelta(minutes=minutes)
    place, window = ZoneInfo(zone), daily(hour, minute, hours)
    found = windows.openings([window], zone, now - 2 * DAY, now + 2 * DAY)
    starts = []
    for offset in range(-5, 6):
        day = now.astimezone(place).date() + timedelta(days=offset)
        naive = datetime(day.year, day.month, day.day, hour, minute)
        # RFC 5545: the offset before a gap, the first of two times that are the same
        start = naive.replace(tzinfo=place, fold=0).astimezone(UTC)
        there = start.astimezone(place).replace(tzinfo=None)
        assert there == naive or timedelta(0) < there - naive <= HOUR
        starts.append(start)
    assert windows.is_open([window], zone, now) is any(s <= now < s + hours * HOUR for s in starts)
    for span in found:
        assert span.start in starts and (span.end - span.start) >= hours * HOUR
    covered = [now + timedelta(minutes=n) for n in range(-24 * 60, 24 * 60, 25)]
    for at_time in covered:
        assert any(at_time in span for span in found) is any(s <= at_time < s + hours * HOUR for s in starts)


def test_touching_windows_are_one_and_a_long_one_spans_the_blocks() -> None:
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    found = windows.openings([daily(1, hours=2), daily(3, hours=1)], "UTC", now, now + DAY)
    assert [(s.start.hour, s.end.hour) for s in found] == [(1, 4)]
    always = [daily(0, hours=24)]
    assert windows.is_open(always, "UTC", now)
    assert windows.schedule(always, "UTC", now)[0].end >= now + 14 * DAY


def test_a_weekly_window_with_an_interval_keeps_its_weeks() -> None:
    window = Window("FREQ=WEEKLY;INTERVAL=3;BYDAY=WE;BYHOUR=1;BYMINUTE=0", datetime(2020, 1, 1), HOUR, "UTC")
    found = windows.openings([window], "UTC", datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    weeks = {(span.start.date() - datetime(2020, 1, 1).date()).days % 21 for span in found}
    assert weeks == {0} and len(found) in (17, 18)


def test_none_and_never() -> None:
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert windows.is_open([], "UTC", now)
    over = Window("FREQ=DAILY;UNTIL=20260101T000000", datetime(2025, 12, 1), HOUR)
    assert not windows.is_open([over], "UTC", now) and windows.next_opening([over], "UTC", now) is None
    yearly = Window("FREQ=YEARLY", datetime(2025, 3, 1, 4), HOUR, "UTC")
    opening = windows.next_opening([yearly], "UTC", now)
    assert opening is not None and opening.start == datetime(2027, 3, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../../etc/passwd", "/etc/passwd", "Europe", "a\0b", "x" * 5000])
def test_a_time_zone_that_a_device_made_up_counts_as_utc(zone: str) -> None:
    now = datetime(2026, 5, 4, 3, tzinfo=UTC)
    assert windows.is_open([daily(2)], zone, now)


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("FREQ=SECONDLY", "must have FREQ"),
        ("FREQ=HOURLY", "must have FREQ"),
        ("BYHOUR=2", "must have FREQ"),
        ("FREQ=DAILY;FREQ=DAILY", "cannot have"),
        ("FREQ=DAILY;BYEASTER=1", "cannot have"),
        ("FREQ=DAILY\nRRULE:FREQ=DAILY", "must have FREQ"),
        ("FREQ=DAILY;BYHOUR=99", "cannot be read"),
        ("FREQ=DAILY;INTERVAL=0", "1 to 9999"),
        ("FREQ=WEEKLY;BYDAY=XX", "cannot be read"),
        ("FREQ=DAILY;UNTIL=20261231T000000Z", "must be local time"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=31", "never occurs"),
        ("FREQ=DAILY;BYHOUR=1,2,3,4,5;BYMINUTE=1,2,3,4,5", "24 times a day"),
    ],
)
def test_recurrences_that_cannot_be_used_are_refused(rule: str, complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        windows.validate(Window(rule, datetime(2026, 1, 1), HOUR))


def test_other_faults_of_a_window_are_refused() -> None:
    good = daily(2, zone="Europe/Berlin")
    windows.validate(good)
    for bad, complaint in (
        (Window(good.rrule, good.start, timedelta(minutes=1)), "5 minutes"),
        (Window(good.rrule, good.start, timedelta(days=40)), "31 days"),
        (Window(good.rrule, datetime(2026, 1, 1, tzinfo=UTC), HOUR), "without a time zone"),
        (Window(good.rrule, good.start, HOUR, "Europe/Atlantis"), "no time zone"),
    ):
        with pytest.raises(WindowError, match=complaint):
            windows.validate(bad)
