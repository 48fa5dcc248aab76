"""Who signs the repository: key files of ours, tokens (PKCS#11) and key services, all behind one reference.

A reference is the path of a key file, or a URI that securesystemslib knows: ``hsm:KEYID?label=TOKEN`` (PKCS#11; the
module is named by the environment variable PYKCS11LIB), ``awskms:…``, ``gcpkms:…``, ``azurekms:…``, ``hv:…``. Key
files are Ed25519; tokens and services sign with what they have (ECDSA P-256 or P-384, RSA), which TUF allows too.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, HSMSigner, Key, Signer, SSlibKey

from midflight.errors import InputError
from midflight.trust.keys import load_private_key

PIN_VARIABLE = "MIDFLIGHT_HSM_PIN"
_URI = re.compile(r"([a-z][a-z0-9]+):(?!\\)(.*)")
_FILES = ("file", "file2")


def scheme_of(reference: str) -> str | None:
    """The scheme of a URI of a key; None when the reference is the path of a file."""
    found = _URI.fullmatch(reference)
    if found is None:
        return None
    if found[1] not in SIGNER_FOR_URI_SCHEME or found[1] in _FILES:
        known = ", ".join(sorted(f"{name}:" for name in SIGNER_FOR_URI_SCHEME if name not in _FILES))
        raise InputError(f"{reference} is no key that is known; give a file, or a URI with {known}")
    return found[1]


def public_key_of(reference: str) -> Key:
    """The public key that a reference means: a public key file (PEM; Ed25519, ECDSA or RSA), or a key on a token.

    Raises:
        InputError: it cannot be had.
    """
    scheme = scheme_of(reference)
    if scheme == HSMSigner.SCHEME:
        return _token_key(reference)
    if scheme is not None:
        raise InputError(f"the public key of {reference} is not read from there; give it as a PEM file")
    try:
        content = Path(reference).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read key {reference}: {error.strerror}; check the path") from None
    if b"PRIVATE KEY-----" in content:
        raise InputError(f"{reference} is a private key; give the public one, which ends in .pub")
    try:
        return SSlibKey.from_crypto(load_pem_public_key(content))
    except ValueError:
        raise InputError(f"{reference} is no public key in PEM form; make a pair with midflight keygen") from None


def open_signer(reference: str, public: Key | None = None) -> Signer:
    """Who signs with the key that a reference means.

    Args:
        public: the public half; needed for key services alone.

    Raises:
        InputError: the key cannot be used.
    """
    scheme = scheme_of(reference)
    if scheme is None:
        native = load_pem_private_key(load_private_key(reference).pem(None), None)
        return CryptoSigner(native)
    if public is None:
        public = public_key_of(reference)
    try:
        return Signer.from_priv_key_uri(reference, public, _secret)
    except Exception as error:  # each service has errors of its own
        raise InputError(f"cannot use {reference}: {_words(error)}") from None


def sign_failure(reference: str, error: Exception) -> InputError:
    """What to tell when a token or service did not sign."""
    return InputError(f"{reference} did not sign: {_words(error)}")


def _token_key(reference: str) -> Key:
    from urllib.parse import parse_qsl, urlparse

    parts = urlparse(reference)
    if not os.environ.get("PYKCS11LIB"):
        raise InputError("the environment variable PYKCS11LIB must name the PKCS#11 module of the token, a .so file")
    if parts.path and not parts.path.isdigit():
        raise InputError(f"{reference} is no key on a token; one looks like hsm:2?label=TOKEN")
    try:
        _, key = HSMSigner.import_(
            int(parts.path) if parts.path else None, dict(parse_qsl(parts.query)).get("label"), _secret
        )
    except Exception as error:  # python-pkcs11 has many, most of them without a text
        raise InputError(f"cannot read the key {reference}: {_words(error)}") from None
    return key


def _secret(name: str) -> str:
    """The PIN of a token, from the environment or the person at the terminal."""
    value = os.environ.get(PIN_VARIABLE)
    if value is None:
        if not sys.stdin.isatty():
            raise InputError(f"the token asks for its {name}; set {PIN_VARIABLE}, or run this at a terminal")
        value = getpass.getpass(f"{name} of the token: ")
    return value


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
