"""The keys of this machine: one that signs by default, and the folder of public keys that are trusted.

Root has them in /etc/midflight, everybody else in ~/.config/midflight: ``signing.key``, made at first use, and
``trust.d/*.pub``. Whoever can write there decides what code goes into processes, so both must be closed to others.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from midflight.errors import InputError
from midflight.trust.keys import (
    PrivateKey,
    PublicKey,
    create_key_pair,
    find_passphrase,
    load_private_key,
    load_public_key,
)

VARIABLE = "MIDFLIGHT_CONFIG"
"""Environment variable with another folder."""

_OPEN = stat.S_IWGRP | stat.S_IWOTH


def folder() -> Path:
    """Where the keys of this machine (for root) or of this user are."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA") or r"C:\ProgramData") / "Midflight"
    if os.geteuid() == 0:
        return Path("/etc/midflight")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "midflight"


def default_signer() -> tuple[PrivateKey, Path, bool]:
    """The key that signs when none is named, where it is, and whether it was made just now.

    A new one is trusted on this machine from then on. It is encrypted when MIDFLIGHT_KEY_PASSPHRASE is set.

    Raises:
        InputError: it cannot be read or made.
    """
    private = folder() / "signing.key"
    made = not private.exists()
    if made:
        public = folder() / "trust.d" / "local.pub"
        try:
            for path, mode in ((folder(), 0o755), (public.parent, 0o755)):
                path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make {error.filename} for a signing key: {error.strerror}; give a key with --key"
            ) from None
        create_key_pair(private, public, find_passphrase("", ask=False))
    return load_private_key(private), private, made


def trusted_keys() -> tuple[PublicKey, ...]:
    """The public keys that are trusted without being named, by file name; empty when there are none.

    Raises:
        InputError: one cannot be read, or others can write it or its folder.
    """
    place = folder() / "trust.d"
    files = sorted(place.glob("*.pub"))
    if sys.platform == "win32" and files:
        raise InputError(f"who can change {place} is not looked at on Windows: name the key with --trust {files[0]}")
    for path in (place, *files) if files else ():
        state = path.stat()
        if state.st_uid not in (0, os.geteuid()) or state.st_mode & _OPEN:
            raise InputError(
                f"{path} can be changed by others, so the keys there are not trusted; "
                "give it to root and chmod it go-w, or name a key with --trust"
            )
    return tuple(load_public_key(path) for path in files)
