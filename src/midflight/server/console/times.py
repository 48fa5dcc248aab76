"""Times and durations as people type them, for the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from midflight.server.console.api import Refused
from midflight.server.console.display import as_duration, moment


def local_time(text: str, zone: tzinfo) -> str | None:
    """What a browser's field for date and time gives (the viewer's own time), in UTC; None when it is empty.

    Raises:
        Refused: it is no time.
    """
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC).isoformat()
    except ValueError:
        raise Refused(422, "invalid", f"{text[:40]!r} is no date and time; write it like 2026-11-26T18:00") from None


def field_time(value: str | None, zone: tzinfo) -> str:
    """A time of the API for such a field."""
    at = moment(value)
    return f"{at.astimezone(zone):%Y-%m-%dT%H:%M}" if at else ""


def iso_duration(amount: float | int | None, unit: str) -> str | None:
    """A duration for the API from a number and its unit (``days``, ``hours`` or ``minutes``).

    Raises:
        Refused: it is below zero, or too long.
    """
    if amount is None:
        return None
    try:
        length = timedelta(**{unit: amount})
    except OverflowError:
        raise Refused(422, "invalid", f"{amount} {unit} is too long") from None
    if length < timedelta(0):
        raise Refused(422, "invalid", f"{amount} {unit}: give a number from 0")
    return f"PT{round(length.total_seconds())}S"


def in_unit(value: str | float | None, unit: str) -> str:
    """A duration of the API as a number of that unit, for a field."""
    length = as_duration(value)
    return "" if length is None else f"{length / timedelta(**{unit: 1}):g}"
