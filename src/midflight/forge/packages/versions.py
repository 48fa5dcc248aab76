"""Debian version numbers: their order and their parts. Knowledge: deb-version(7)."""

from __future__ import annotations

import functools
import re

_BINARY_ONLY = re.compile(r"\+b\d+$")


def compare(left: str, right: str) -> int:
    """Compare two versions: negative, 0 or positive, as ``dpkg --compare-versions`` does."""
    for one, other in zip(_parts(left), _parts(right), strict=True):
        if order := _compare_part(one, other):
            return order
    return 0


version_key = functools.cmp_to_key(compare)


def upstream(version: str) -> str:
    """The upstream version: without epoch and Debian revision."""
    return _parts(version)[1]


def without_binary_only(version: str) -> str:
    """The version of the source that a binary-only rebuild (``1.0-3+b1``) was made from."""
    return _BINARY_ONLY.sub("", version)


def file_name(version: str) -> str:
    """A version as part of a file name, epoch included."""
    return version.replace(":", "%3a")


def from_file_name(name: str) -> str:
    """The opposite of :func:`file_name`."""
    return name.replace("%3a", ":")


def _parts(version: str) -> tuple[str, str, str]:
    """Epoch, upstream version, Debian revision; what is not there is "0"."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    body, hyphen, revision = rest.rpartition("-")
    return (epoch, body, revision) if hyphen else (epoch, rest, "0")


def _compare_part(left: str, right: str) -> int:
    one, other = re.findall(r"\d+|\D+", left), re.findall(r"\d+|\D+", right)
    # Texts and numbers alternate, beginning with a text.
    for pieces in (one, other):
        if pieces and pieces[0].isdigit():
            pieces.insert(0, "")
    for number in range(max(len(one), len(other))):
        a = one[number] if number < len(one) else ""
        b = other[number] if number < len(other) else ""
        if number % 2:
            order = int(a or 0) - int(b or 0)
        else:
            x, y = [_weight(c) for c in a] + [0], [_weight(c) for c in b] + [0]
            order = (x > y) - (x < y)
        if order:
            return order
    return 0


def _weight(character: str) -> int:
    """A tilde sorts before the end, letters before everything else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
