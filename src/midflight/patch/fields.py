"""Checked decoding of JSON values into frozen dataclasses: small functions that each check one kind of value.

A check takes a value as JSON gave it and returns the decoded one, or raises :class:`FieldError`. Paths to the faulty
field are put together only when there is a fault, so that reading a good manifest is fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

Check = Callable[[object], Any]
T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
# Characters that make text look like other text: bidirectional embeddings, overrides and isolates (UAX #9).
_BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class FieldError(ValueError):
    """A value is not allowed. ``path`` names the field ("targets[0].functions[2].name")."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.path.lstrip('.') or 'document'} {self.reason}"

    def inside(self, step: str) -> FieldError:
        """The same error, seen from one level further out."""
        return FieldError(self.reason, f"{step}{self.path}")


def show(value: object) -> str:
    """A value for an error message: short, printable ASCII."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def record(cls: Callable[..., T], **checks: Check) -> Callable[[object], T]:
    """An object with exactly these keys, all required; ``checks`` are in the order of the dataclass fields."""
    items = tuple(checks.items())
    keys = checks.keys()

    def decode(value: object) -> T:
        if type(value) is not dict:
            raise FieldError("must be an object")
        if value.keys() != keys:
            for key in keys - value.keys():
                raise FieldError("is missing", f".{key}")
            raise FieldError(f"has an unknown key {show(min(value.keys() - keys))}")
        decoded: list[object] = []
        for key, check in items:
            try:
                decoded.append(check(value[key]))
            except FieldError as error:
                raise error.inside(f".{key}") from None
        return cls(*decoded)

    return decode


def many(check: Callable[[object], T], least: int = 0, most: int = 1_000_000) -> Callable[[object], tuple[T, ...]]:
    """An array."""

    def decode(value: object) -> tuple[T, ...]:
        if type(value) is not list:
            raise FieldError("must be an array")
        if not least <= len(value) <= most:
            raise FieldError(f"must have {least} to {most} elements, has {len(value)}")
        decoded: list[T] = []
        for index, element in enumerate(value):
            try:
                decoded.append(check(element))
            except FieldError as error:
                raise error.inside(f"[{index}]") from None
        return tuple(decoded)

    return decode


def optional(check: Callable[[object], T]) -> Callable[[object], T | None]:
    """Null, or what ``check`` accepts."""

    def decode(value: object) -> T | None:
        return None if value is None else check(value)

    return decode


def integer(least: int, most: int) -> Callable[[object], int]:
    """An integer in a range, both ends included; ``true`` is none."""

    def decode(value: object) -> int:
        if type(value) is not int:
            raise FieldError(f"must be an integer, is {show(value)}")
        if not least <= value <= most:
            raise FieldError(f"must be {least} to {most}, is {show(value)}")
        return value

    return decode


def boolean(value: object) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise FieldError(f"must be true or false, is {show(value)}")
    return value


def choice(words: tuple[str, ...]) -> Callable[[object], Any]:
    """One of some words."""
    allowed = frozenset(words)

    def decode(value: object) -> str:
        if type(value) is not str or value not in allowed:
            raise FieldError(f"must be one of {', '.join(words)}; is {show(value)}")
        return value

    return decode


def pattern(expression: str, meaning: str) -> Callable[[object], str]:
    """A string that a regular expression matches as a whole."""
    compiled = re.compile(expression)

    def decode(value: object) -> str:
        if type(value) is not str or not compiled.fullmatch(value):
            raise FieldError(f"must be {meaning}, is {show(value)}")
        return value

    return decode


def hex_bytes(*sizes: int) -> Callable[[object], bytes]:
    """A byte string of one of some sizes, in lower-case hex."""

    def decode(value: object) -> bytes:
        if type(value) is not str or not _HEX.fullmatch(value):
            raise FieldError(f"must be bytes in lower-case hex, is {show(value)}")
        if len(value) // 2 not in sizes:
            raise FieldError(f"must be {' or '.join(map(str, sizes))} bytes, has {len(value) // 2}")
        return bytes.fromhex(value)

    return decode


def text(least: int, most: int, *, lines: bool = False) -> Callable[[object], str]:
    """Text for people and names of symbols: no control characters (line feeds and tabs where ``lines``), no characters
    that turn the reading direction, no lone surrogates."""

    def decode(value: object) -> str:
        if type(value) is not str:
            raise FieldError(f"must be text, is {show(value)}")
        if not least <= len(value) <= most:
            raise FieldError(f"must have {least} to {most} characters, has {len(value)}")
        if least and not value.strip():
            raise FieldError("must not be blank")
        if not (value.isascii() and value.isprintable()):
            import unicodedata

            for character in value:
                if character in "\n\t" and lines:
                    continue
                if character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
                    raise FieldError(f"must not have the character {character!a}")
        return value

    return decode
