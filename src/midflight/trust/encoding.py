"""How trust writes what it signs: canonical JSON (RFC 8785 over integers and text), UTC times, base64.

Reading accepts the canonical encoding alone, so that two readers cannot see two documents in the same bytes.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from midflight.patch import strictjson
from midflight.patch.fields import FieldError, show

T = TypeVar("T")

MAX_INTEGER = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exactly (RFC 8259 section 6)."""

_TIME = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\dZ")


def canonical(document: object) -> bytes:
    """The one encoding of a document: keys sorted, no white space, UTF-8. Floats are not allowed anywhere."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_canonical(data: bytes, check: Callable[[object], T]) -> T:
    """Read a canonical document through a check (see :mod:`midflight.patch.fields`).

    Raises:
        FieldError: it is not JSON, not canonical, or the check refuses it.
    """
    try:
        document = strictjson.loads(data)
    except strictjson.StrictJSONError as error:
        raise FieldError(str(error)) from None
    try:
        same = canonical(document) == data
    except UnicodeEncodeError:
        raise FieldError("has a lone surrogate") from None
    if not same:
        raise FieldError("is not in its canonical form")
    return check(document)


def format_time(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC, to the second."""
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def time(value: object) -> datetime:
    """A check: RFC 3339 in UTC, to the second, in this century."""
    if type(value) is str and _TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise FieldError(f"must be a time like 2026-01-31T12:00:00Z, is {show(value)}")


def to_base64(data: bytes) -> str:
    """Base64 with padding (RFC 4648 section 4), in one line."""
    return binascii.b2a_base64(data, newline=False).decode()


def from_base64(text: str) -> bytes:
    """What strict base64 holds.

    Raises:
        ValueError: it is not strict base64.
    """
    return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
