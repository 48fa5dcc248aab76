"""The head of the audit log as a signed text, to be kept where the server cannot reach it.

It is a JSON Web Token of a type of its own, so that it can be pasted, mailed and verified with any library.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from midflight.errors import InputError
from midflight.server.access.auditchain import Head
from midflight.server.outputs.jwtkeys import JwtKeys

TYPE = "midflight-audit-head+jwt"
_VALID = timedelta(days=36525)
"""A head never loses its meaning."""


def signed(keys: JwtKeys, head: Head, issuer: str, now: datetime) -> str:
    """The head, signed by this server."""
    claims: dict[str, Any] = {
        "iss": issuer,
        "nbf": int((now - timedelta(minutes=1)).timestamp()),
        "exp": int((now + _VALID).timestamp()),
        "iat": int(now.timestamp()),
        "sequence": head.sequence,
        "hash": head.hash,
    }
    return keys.sign(claims, TYPE)


def read(keys: JwtKeys, text: str, issuer: str, now: datetime) -> Head:
    """A head that this server signed.

    Raises:
        TokenRefused: it did not.
        InputError: it holds no head.
    """
    claims = keys.verify(text.strip(), TYPE, issuer, now)
    sequence, own = claims.get("sequence"), claims.get("hash")
    if not isinstance(sequence, int) or not isinstance(own, str):
        raise InputError("the text is signed, but holds no head of an audit log; export one anew")
    return Head(sequence, own)
