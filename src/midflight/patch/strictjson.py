"""JSON from outside, read without surprises: no duplicate keys, no floats, no deep nesting, no huge numbers.

Python's ``json`` silently keeps the last of two equal keys (RFC 8259 section 4 leaves it open), which lets two readers
see two documents in the same bytes. Here such a document is refused.
"""

from __future__ import annotations

import json
from typing import NoReturn

MAX_DEPTH = 16
"""Nesting of arrays and objects; the manifest needs 8."""

_MAX_DIGITS = 20
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))


class StrictJSONError(ValueError):
    """The text is not JSON as we accept it; ``str()`` says why."""


def loads(data: bytes) -> object:
    """Read one JSON document (UTF-8, no byte order mark).

    Raises:
        StrictJSONError: it is not JSON, or uses something that this reader refuses.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"is not UTF-8 (byte {error.start})") from None
    _check_depth(data)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except StrictJSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJSONError(f"is not JSON ({error})") from None
    return value


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before the recursive reader sees it, at the speed of bytes methods."""
    # Without escapes every quote begins or ends a string, so every second piece lies outside of strings.
    skeleton = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_BRACKETS, _NO_BRACKETS)
    brackets = b"".join(skeleton.split(b'"')[::2])
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise StrictJSONError(f"is nested deeper than {MAX_DEPTH} levels, or its brackets do not match")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJSONError(f"has the key {ascii(key)[:80]} twice in one object")
            seen.add(key)
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise StrictJSONError(f"has a number of {len(digits)} digits")
    return int(digits)


def _no_float(text: str) -> NoReturn:
    raise StrictJSONError(f"has the number {text[:20]}; only integers are allowed")
