"""The one secret from which the server derives those that it must be able to use again.

A webhook's signing secret must be known when a delivery is signed, so a hash of it is not enough. It is derived from a
key that lies in a file beside the other keys and is never in the database: who steals the database can sign nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from midflight.errors import InputError

_LENGTH = 32


class MasterKey:
    """Derives; shows itself to nobody."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != _LENGTH:
            raise InputError(f"the master key has {len(key)} bytes, not {_LENGTH}; restore the file from a backup")
        self._key = key

    @classmethod
    def load(cls, path: Path, create: bool = False) -> MasterKey:
        """From its file; with ``create`` the file is made when there is none (readable by its owner alone).

        Raises:
            InputError: there is none, or it has not the right length.
        """
        if create:
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except FileExistsError:
                pass
            else:
                with os.fdopen(handle, "wb") as file:
                    file.write(secrets.token_bytes(_LENGTH))
                    file.flush()
                    os.fsync(file.fileno())
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; restore it from a backup or run midflight server init") from None

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose (HKDF-Expand of RFC 5869 with one block)."""
        return hmac.digest(self._key, b"midflight " + purpose.encode() + b"\x01", hashlib.sha256)
