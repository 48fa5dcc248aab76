"""The keys of the server's JSON Web Tokens: P-256 (ES256), in PEM files outside the database.

Every proxy and identity product verifies ES256. Several keys may lie in the folder: all are published, the newest
signs. A key is rotated by adding a file and, a token's lifetime later, removing the old one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from midflight.errors import InputError, MidflightError

ALGORITHM = "ES256"


class TokenRefused(MidflightError):
    """A token is not ours, is not of this kind, or is over."""


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """The keys of one server, the one that signs first."""

    keys: tuple[ECKey, ...]

    @classmethod
    def load(cls, folder: Path, create: bool = False) -> JwtKeys:
        """All keys of the folder, newest name first; with ``create`` one is made when there is none.

        Raises:
            InputError: there is no key, or one cannot be read.
        """
        if create and not any(folder.glob("*.pem")):
            add_key(folder, "0001")
        found = []
        for path in sorted(folder.glob("*.pem"), reverse=True):
            try:
                key = ECKey.import_key(path.read_bytes(), {"use": "sig", "alg": ALGORITHM})
            except (ValueError, JoseError) as error:
                raise InputError(f"{path} is no P-256 key: {error}; restore it from a backup") from None
            key.ensure_kid()
            found.append(key)
        if not found:
            raise InputError(f"{folder} holds no key for tokens; restore it or run midflight server init")
        return cls(tuple(found))

    def public(self) -> dict[str, Any]:
        """The JSON Web Key Set (RFC 7517): public halves alone."""
        return {"keys": [key.as_dict(private=False) for key in self.keys]}

    def sign(self, claims: Mapping[str, Any], kind: str) -> str:
        """A signed token with header ``typ`` = kind, so that no token can be taken for one of another kind."""
        key = self.keys[0]
        return jwt.encode({"alg": ALGORITHM, "typ": kind, "kid": key.kid}, dict(claims), key)

    def verify(self, token: str, kind: str, issuer: str, now: datetime) -> dict[str, Any]:
        """The claims of a token of this server.

        Raises:
            TokenRefused: wrong signature, algorithm, kind or issuer, or out of its time.
        """
        try:
            decoded = jwt.decode(token, KeySet(list(self.keys)), algorithms=[ALGORITHM])
        except (JoseError, ValueError):
            raise TokenRefused("the token was not signed by this server; fetch a new one") from None
        claims, moment = decoded.claims, now.timestamp()
        times = [claims.get(name) for name in ("nbf", "exp")]
        if decoded.header.get("typ") != kind or claims.get("iss") != issuer:
            raise TokenRefused("the token is of another kind or server; fetch one for this purpose")
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in times):
            raise TokenRefused("the token does not say how long it is valid; fetch a new one")
        if not claims["nbf"] <= moment < claims["exp"]:
            raise TokenRefused("the token is over or not valid yet; fetch a new one, and see whether the clocks agree")
        return dict(claims)


def add_key(folder: Path, name: str) -> None:
    """Make a new key file, readable by its owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = ECKey.generate_key("P-256", private=True).as_pem(private=True)
    handle = os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
