"""Secrets that the server hands out once and keeps only hashes of: API tokens, session ids, CSRF tokens; pure.

All carry 256 bits from the system's random source, so one SHA-256 is all the hashing they need: there is nothing to
guess. The check digits let a secret scanner, and the server, tell a real token from noise without a look-up.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import zlib

TOKEN_PREFIX = "mft_"
"""Marks API tokens of Midflight in logs and repositories."""
_LENGTH = 43 + 6


def new_token() -> str:
    """An API token: prefix, 32 random bytes, CRC-32 of both."""
    body = secrets.token_urlsafe(32)
    return TOKEN_PREFIX + body + _check(body)


def is_token(text: str) -> bool:
    """Whether the text has the form of an API token (its check digits included)."""
    if not text.startswith(TOKEN_PREFIX) or len(text) != len(TOKEN_PREFIX) + _LENGTH or not text.isascii():
        return False
    body = text.removeprefix(TOKEN_PREFIX)
    return hmac.compare_digest(_check(body[:-6]), body[-6:])


def new_session() -> str:
    """The value of a session cookie."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a token or session: SHA-256 in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def csrf_of(session: str) -> str:
    """The CSRF token of a session: derived from the cookie's value, so it is kept nowhere."""
    return derived(session, "csrf")


def derived(secret: str, purpose: str) -> str:
    """43 characters that only who has the secret can compute; each purpose gives another."""
    mac = hmac.new(secret.encode("utf-8", "surrogatepass"), b"midflight " + purpose.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac.digest()).rstrip(b"=").decode()


def same(given: str, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


def _check(body: str) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(body.encode()).to_bytes(4, "big")).rstrip(b"=").decode()
