"""How values are shown to people: times in their zone, durations, sizes, shares; and strings that devices sent.

Pure; the templates use these as filters.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from markupsafe import Markup, escape

from midflight.server.domain.reasons import Owner, Reason

NOTHING = "\u2013"
"""Stands where there is no value (an en dash)."""
_HIDDEN = re.compile("[\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_DURATION = re.compile(r"(-)?P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.\d+)?S)?)?")
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def visible(value: Any) -> Any:
    """A string with whatever would not be seen, or would turn its neighbours around, made visible.

    Control characters become their pictures (U+2400), invisible and direction-changing ones the replacement
    character. Anything else is returned as it is.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if value.isascii() and value.isprintable():
        return value
    shown = "".join(map(_picture, _HIDDEN.sub("\ufffd", value)))
    return type(value)(shown) if type(value) is str else shown


def _picture(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Cn"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def moment(value: str | datetime | None) -> datetime | None:
    """A time of the API as an aware datetime."""
    if not value:
        return None
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def zone_named(name: str) -> tzinfo:
    """The zone of that IANA name; UTC when there is none."""
    try:
        return ZoneInfo(name) if re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name) else UTC
    except (KeyError, ValueError, OSError):
        return UTC


def time_tag(value: str | datetime | None, zone: tzinfo, seconds: bool = False) -> Markup:
    """A time in the viewer's zone, with UTC in its title; the same length in every zone, so nothing moves."""
    at = moment(value)
    if at is None:
        return Markup('<span class="none">never</span>')
    return _tag(at, f"{at.astimezone(zone):%Y-%m-%d %H:%M{':%S' if seconds else ''}}", "at")


def ago_tag(value: str | datetime | None, now: datetime) -> Markup:
    """How long ago (or how far ahead) a time is, with the time in its title."""
    at = moment(value)
    if at is None or at.year <= 1970:
        return Markup('<span class="none">never</span>')
    distance = now - at
    ahead = distance < timedelta(0)
    length = duration(abs(distance), parts=1)
    text = "now" if length == "0 s" else f"in {length}" if ahead else f"{length} ago"
    return _tag(at, text, "ago")


def _tag(at: datetime, text: str, kind: str) -> Markup:
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}" data-time="{}">{}</time>').format(
        f"{utc:%Y-%m-%dT%H:%M:%SZ}", f"{utc:%Y-%m-%d %H:%M:%S} UTC", kind, text
    )


def as_duration(value: str | int | float | timedelta | None) -> timedelta | None:
    """A duration of the API: ISO 8601, or seconds."""
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, int | float):
        return timedelta(seconds=value)
    found = _DURATION.fullmatch(value)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return -length if found[1] else length


def duration(value: str | int | float | timedelta | None, parts: int = 2) -> str:
    """A duration in at most ``parts`` units: ``3 d 4 h``."""
    length = as_duration(value)
    if length is None:
        return NOTHING
    left = abs(round(length.total_seconds()))
    shown: list[str] = []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count or (shown and len(shown) < parts and left):
            shown.append(f"{count} {name}")
        if len(shown) == parts:
            break
    return " ".join(part for part in shown if not part.startswith("0 ")) or "0 s"


def number(value: float | int | None, digits: int = 0) -> str:
    """A number with thin spaces between groups of thousands."""
    return NOTHING if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def share(part: float | None, whole: float | None = None) -> str:
    """A share in per cent: never 100 % while anything is missing, never 0 % while anything is there."""
    if part is None or whole == 0:
        return NOTHING
    ratio = part if whole is None else part / whole
    percent = 100 * ratio
    if 99 < percent < 100:
        return f"{int(percent * 10) / 10:.1f} %"
    if 0 < percent < 1:
        return "< 1 %"
    return f"{round(percent)} %"


def size(octets: int | None) -> str:
    """A size in bytes, KiB or MiB."""
    if octets is None:
        return NOTHING
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if octets >= factor:
            return f"{octets / factor:.1f} {unit}"
    return f"{octets} bytes"


def label(word: str | None) -> str:
    """A word of the API (``in_grace``) as people read it (``in grace``)."""
    return (word or "none").replace("_", " ").replace("-", " ")


def reason_text(word: str | None) -> str:
    """What a reason means."""
    known = Reason._value2member_map_.get(word)
    return known.text if isinstance(known, Reason) else label(word)


def reason_owner(word: str | None) -> str:
    """Who has to act next."""
    known = Reason._value2member_map_.get(word)
    return known.owner.value if isinstance(known, Reason) else Owner.MIDFLIGHT.value


def breakable(text: str) -> Markup:
    """A long word (a path, a hash, a dotted name) that may be broken after its separators."""
    return Markup(re.sub(r"([/:._-])", r"\1<wbr>", str(escape(visible(text)))))
