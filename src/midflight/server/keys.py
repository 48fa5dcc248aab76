"""The server's keys: the authority for device certificates, the key of instructions, and the TLS key that devices pin.

All are files in the server's folder, for its owner alone. None of them can make content: that takes the offline keys
of the repository, which are not here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from midflight.errors import InputError
from midflight.server.settings import Settings
from midflight.trust.certificates import CertificateAuthority
from midflight.trust.files import write_new
from midflight.trust.keys import PrivateKey, create_key_pair, load_private_key
from midflight.trust.pinning import Pin, pin_of

TLS_VALIDITY = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a server process signs with."""

    authority: CertificateAuthority
    instructions: PrivateKey

    @property
    def signers(self) -> Sequence[PrivateKey]:
        """The signers of instructions."""
        return (self.instructions,)


def create(settings: Settings, now: datetime | None = None) -> ServerKeys:
    """Make all keys of a new server.

    Raises:
        InputError: one exists, or cannot be written.
    """
    moment = now or datetime.now(UTC)
    authority = CertificateAuthority.create(
        settings.path(settings.ca_key), settings.path(settings.ca_certificate), "Midflight devices", moment
    )
    key_path = settings.path(settings.instruction_key)
    create_key_pair(key_path, key_path.with_suffix(".pub"))
    create_tls(settings, moment)
    return ServerKeys(authority, load_private_key(key_path, ask=False))


def load(settings: Settings) -> ServerKeys:
    """Read the keys.

    Raises:
        InputError: one is missing, or open to others.
    """
    return ServerKeys(
        CertificateAuthority.load(settings.path(settings.ca_key), settings.path(settings.ca_certificate)),
        load_private_key(settings.path(settings.instruction_key), ask=False),
    )


def create_tls(settings: Settings, now: datetime) -> None:
    """A key and a self-signed certificate for TLS. Devices pin the key, so no authority is needed; browsers will ask.

    Raises:
        InputError: a file exists, or cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    host = urlsplit(settings.public_url).hostname or "localhost"
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((host, "localhost", "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + TLS_VALIDITY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_new(
        {
            settings.path(settings.tls_key): (
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                0o600,
            ),
            settings.path(settings.tls_certificate): (certificate.public_bytes(Encoding.PEM), 0o644),
        }
    )


def tls_pin(settings: Settings) -> Pin | None:
    """The pin of the TLS key in use; None when a proxy serves TLS.

    Raises:
        InputError: the certificate cannot be read.
    """
    if not settings.tls:
        return None
    path: Path = settings.path(settings.tls_certificate)
    try:
        return pin_of(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; mend tls_certificate, or set tls = false") from None
