"""The keys of this machine: one that signs by default, and the folder of public keys that are trusted.

They are in the folder of settings (``midflight.machine.places``): ``signing.key``, made at first use, and
``trust.d/*.pub``. Whoever can write there decides what code goes into processes, so both must be closed to others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from midflight.errors import InputError
from midflight.machine.ownership import changeable_by, make_closed_folder
from midflight.machine.places import config_folder
from midflight.trust.keys import (
    PrivateKey,
    PublicKey,
    create_key_pair,
    find_passphrase,
    load_private_key,
    load_public_key,
)

_MEND = (
    "let administrators alone own and write it (icacls)"
    if sys.platform == "win32"
    else "give it to root and chmod it go-w"
)


def folder() -> Path:
    """Where the keys of this machine (for an administrator) or of this user are."""
    return config_folder()


def make_folders(*paths: Path) -> None:
    """Make folders that everybody may read, and that others cannot change.

    Raises:
        OSError: one cannot be made, or somebody else made it.
    """
    for path in paths:
        if sys.platform == "win32":
            make_closed_folder(path)
        else:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)


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
            make_folders(folder(), public.parent)
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
    for path in (place, *files) if files else ():
        try:
            other = changeable_by(path)
        except OSError as error:
            raise InputError(f"{path} cannot be looked at: {error.strerror}; name a key with --trust") from None
        if other is not None:
            raise InputError(
                f"{path} can be changed by others ({other}), so the keys there are not trusted; {_MEND}, "
                "or name a key with --trust"
            )
    return tuple(load_public_key(path) for path in files)
