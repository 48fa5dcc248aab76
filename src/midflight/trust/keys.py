"""Ed25519 keys (RFC 8032): making, keeping and loading them.

Private keys are PKCS#8 PEM files (RFC 5958, RFC 8410) with mode 0600, encrypted when there is a passphrase; public
keys are SubjectPublicKeyInfo PEM files (RFC 8410). Both are what ``openssl pkey`` reads. The cryptography library is
imported when a key is first used, and reading a public key does not need it.
"""

from __future__ import annotations

import binascii
import getpass
import hashlib
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.errors import InputError
from midflight.machine.ownership import changeable_by
from midflight.trust.files import write_all_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASE_VARIABLE = "MIDFLIGHT_KEY_PASSPHRASE"

_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410 section 4, with the 32 bytes of the key to follow
_MAX_KEY_FILE = 16 << 10


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half: 32 bytes."""

    raw: bytes
    key_id: str = field(init=False, compare=False)
    """sha256 over the canonical JSON of the key, in hex: the identifier that securesystemslib and TUF give it too."""

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise InputError(f"an Ed25519 public key has 32 bytes, this one has {len(self.raw)}; give another key")
        canonical = f'{{"keytype":"ed25519","keyval":{{"public":"{self.raw.hex()}"}},"scheme":"ed25519"}}'
        object.__setattr__(self, "key_id", hashlib.sha256(canonical.encode()).hexdigest())

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature over the message was made with this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """The key as SubjectPublicKeyInfo PEM."""
        body = binascii.b2a_base64(_SPKI_PREFIX + self.raw)
        return b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n"


class PrivateKey:
    """The private half. It signs; it shows itself to nobody."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key from the system's random source."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @property
    def key_id(self) -> str:
        """The key id of the pair."""
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        """The signature (64 bytes) over the message; the same message gives the same signature."""
        return self._key.sign(message)

    def pem(self, passphrase: str | None) -> bytes:
        """The key as PKCS#8 PEM, encrypted when there is a passphrase."""
        from cryptography.hazmat.primitives import serialization as s

        encryption = s.BestAvailableEncryption(passphrase.encode()) if passphrase else s.NoEncryption()
        return self._key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, encryption)

    def __repr__(self) -> str:
        return f"PrivateKey({self.key_id[:16]}…)"


def create_key_pair(private_path: Path, public_path: Path, passphrase: str | None = None) -> PublicKey:
    """Make a key pair and write it to two new files. Neither is ever overwritten, and never is there only one of them.

    Raises:
        InputError: one of the files exists, or cannot be written.
    """
    key = PrivateKey.generate()
    try:
        write_all_new({private_path: (key.pem(passphrase), 0o600), public_path: (key.public.pem(), 0o644)})
    except FileExistsError as error:
        raise InputError(f"{error.filename} exists, and keys are never overwritten; choose another name") from None
    except OSError as error:
        raise InputError(f"cannot write key {error.filename}: {error.strerror}; choose another place") from None
    return key.public


def load_public_key(path: str | Path) -> PublicKey:
    """Read a public key file.

    Raises:
        InputError: it cannot be read, or is no Ed25519 public key.
    """
    content, _ = _read(path)
    if b"PRIVATE KEY-----" in content:
        raise InputError(f"{path} is a private key; give the public one, which ends in .pub")
    der = _pem_body(content, b"PUBLIC KEY")
    if der is None:
        raise InputError(f"{path} is not a public key in PEM form; make a key pair with midflight keygen")
    if len(der) != len(_SPKI_PREFIX) + 32 or not der.startswith(_SPKI_PREFIX):
        raise InputError(f"{path} is not an Ed25519 key; make a key pair with midflight keygen")
    return PublicKey(der[len(_SPKI_PREFIX) :])


def load_private_key(path: str | Path, passphrase: str | None = None, *, ask: bool = True) -> PrivateKey:
    """Read a private key file. An encrypted one needs a passphrase: ``passphrase``, else the environment variable
    MIDFLIGHT_KEY_PASSPHRASE, else (with ``ask``) the person at the terminal.

    Raises:
        InputError: it cannot be read, others can read it, it is no Ed25519 private key, or the passphrase is wrong.
    """
    content, mode = _read(path)
    if b"-----BEGIN PUBLIC KEY-----" in content:
        raise InputError(f"{path} is a public key; give the private one, which ends in .key")
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" in content:
        raise InputError(f"{path} is an OpenSSH key, which signs no hotpatches; make a key pair with midflight keygen")
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in content
    if not encrypted and b"PRIVATE KEY-----" not in content:
        raise InputError(f"{path} is not a private key in PEM form; make a key pair with midflight keygen")
    if sys.platform == "win32":  # modes say nothing there; the folder was made closed (docs/adr/0055)
        other = changeable_by(Path(path))
        if other is not None:
            raise InputError(f"private key {path}: {other} can change it; make a new one in a folder of your own")
    elif mode & 0o077:
        raise InputError(f"private key {path} is open to others (mode {mode:04o}); chmod 600 it, or make a new one")
    if not encrypted:
        passphrase = None
    elif passphrase is None:
        passphrase = find_passphrase(f"Passphrase of {path}: ", ask=ask)
        if passphrase is None:
            raise InputError(f"{path} needs a passphrase; set {PASSPHRASE_VARIABLE}, or run this at a terminal")
    return PrivateKey(_decode_private(path, content, passphrase))


def _decode_private(path: str | Path, content: bytes, passphrase: str | None) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(content, passphrase.encode() if passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase is not None:
            raise InputError(
                f"cannot open {path}: the passphrase is wrong, or the file is damaged; try again"
            ) from None
        raise InputError(f"{path} is a damaged or unusual private key; make a key pair with midflight keygen") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 key; make a key pair with midflight keygen")
    return key


def find_passphrase(prompt: str, *, ask: bool = True, twice: bool = False) -> str | None:
    """A passphrase from the environment, else from the person at the terminal; None when there is neither.

    Raises:
        InputError: it is empty, or the two times it was typed (``twice``) differ.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        if not ask or not sys.stdin.isatty():
            return None
        passphrase = getpass.getpass(prompt)
        if twice and getpass.getpass("The same again: ") != passphrase:
            raise InputError("the passphrases differ; nothing was written, try again")
    if not passphrase:
        raise InputError("the passphrase is empty; give one, or none at all")
    return passphrase


def _pem_body(content: bytes, label: bytes) -> bytes | None:
    """What a PEM file (RFC 7468) with exactly one block of that label holds."""
    lines = content.split()
    text = b" ".join(lines)
    begin, end = b"-----BEGIN " + label + b"-----", b"-----END " + label + b"-----"
    if not (text.startswith(begin) and text.endswith(end) and len(text) >= len(begin) + len(end)):
        return None
    try:
        return binascii.a2b_base64(text[len(begin) : -len(end)].replace(b" ", b""), strict_mode=True)
    except binascii.Error:
        return None


def _read(path: str | Path) -> tuple[bytes, int]:
    """Content and permission bits of a key file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"{path} is not a regular file; give the path of a key")
            content = file.read(_MAX_KEY_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible file name"
        raise InputError(f"cannot read key {path}: {reason}; check the path and its permissions") from None
    if len(content) > _MAX_KEY_FILE:
        raise InputError(f"{path} is too large to be a key; give another file")
    return content, stat.S_IMODE(mode)
