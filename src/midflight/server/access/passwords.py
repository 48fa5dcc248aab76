"""Passwords: argon2id hashes (RFC 9106), and what a new one must be.

The rule is that of NIST SP 800-63B section 5.1.1.2: length and no well-known word, no composition rules.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from midflight.errors import InputError

MINIMUM = 12
"""Characters."""
MAXIMUM = 256
"""Characters; a limit so that hashing a huge one is no way to keep the server busy."""

_hasher = PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1, type=Type.ID)


def _normal(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def check_new(password: str, name: str) -> None:
    """Whether it may become the password of ``name``.

    Raises:
        InputError: it is too short, too long, one character repeated, or made of the account's name.
    """
    text = _normal(password)
    if not MINIMUM <= len(text) <= MAXIMUM:
        raise InputError(f"the password has {len(text)} characters; give one with {MINIMUM} to {MAXIMUM}")
    bare = text.casefold()
    if len(set(bare)) < 5 or (name and bare.replace(name.casefold(), "").strip("0123456789 !.-_") == ""):
        raise InputError("the password is too easy to guess; give a longer phrase that does not repeat the name")


def hash_password(password: str) -> str:
    """The hash to keep, with its parameters and salt (PHC string format)."""
    return _hasher.hash(_normal(password))


def verify(kept: str | None, password: str) -> bool:
    """Whether the password is the one whose hash was kept.

    With no hash (an unknown name, an account of an identity provider) the same work is done and the answer is no, so
    that the time of an answer does not tell which accounts there are.
    """
    if len(password) > MAXIMUM * 4:
        return False
    try:
        matches = _hasher.verify(kept or _nobody(), _normal(password))
    except (VerificationError, InvalidHashError):
        return False
    return matches and kept is not None


def outdated(kept: str) -> bool:
    """Whether the hash was made with other parameters than today's and should be made anew at this login."""
    return _hasher.check_needs_rehash(kept)


@lru_cache(maxsize=1)
def _nobody() -> str:
    return _hasher.hash("the password of nobody")
