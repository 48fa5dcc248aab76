"""Comparing versions as Debian does (deb-version(7)): epochs, digits as numbers, ``~`` before the end.

Kernels and agents compare well by the same rules: ``6.1.0-18-amd64`` is above ``6.1`` and below ``6.10``.
"""

from __future__ import annotations

import re
from functools import lru_cache

Key = tuple[object, ...]
_PARTS = re.compile(r"([^0-9]*)([0-9]*)")
_END = ((0,), 0)


@lru_cache(maxsize=4096)
def key(version: str) -> Key:
    """A sort key: ``key(a) < key(b)`` if a is the older one."""
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isdecimal():
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch[:18]), _key(upstream), _key(revision))


def at_least(version: str, wanted: str) -> bool:
    """Is a version the wanted one or newer? An unknown (empty) version is not."""
    return bool(version) and key(version) >= key(wanted)


def _key(text: str) -> Key:
    parts: list[object] = []
    for match in _PARTS.finditer(text):
        letters, digits = match.groups()
        if letters or digits:
            # int() of untrusted digits is quadratic: no version has numbers so long
            parts.append(((*map(_order, letters), 0), int(digits[:18] or 0)))
    return (*parts, _END)


def _order(char: str) -> int:
    return -1 if char == "~" else ord(char) if char.isascii() and char.isalpha() else ord(char) + 256
