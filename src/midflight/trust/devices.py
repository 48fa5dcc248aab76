"""A device's identity on the device: its key, its certificate, and how both are renewed.

One file, ``identity.pem`` (mode 0600), has key, certificate and the authority's certificate, and is replaced as a
whole, so that they always belong together. A key that waits for its certificate is in ``pending.key``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from midflight.errors import InputError
from midflight.machine.ownership import make_closed_folder
from midflight.trust.certificates import DeviceCertificate, make_request, verify_certificate
from midflight.trust.errors import CertificateRefused
from midflight.trust.files import replace_file, sync_folder, write_new
from midflight.trust.keys import PrivateKey, load_private_key

IDENTITY = "identity.pem"
PENDING = "pending.key"
_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who this device is: what it signs its requests with."""

    key: PrivateKey
    certificate: DeviceCertificate
    authority: str
    """The certificate (PEM) of the authority that issued this device's."""

    @property
    def device(self) -> str:
        """The device's id."""
        return self.certificate.device

    @property
    def fingerprint(self) -> str:
        """sha256 of the certificate, in hex: the key id of its signatures."""
        return self.certificate.fingerprint

    def renewal_due(self, now: datetime) -> bool:
        """Whether it is time to renew: when a third of the certificate's time is left."""
        lifetime = self.certificate.not_after - self.certificate.not_before
        return now >= self.certificate.not_after - lifetime / 3


def begin_enrollment(folder: Path) -> str:
    """Make this device's key (or take the one that waits already); returns the request for its certificate (PEM).

    For a renewal this makes the next key, while the current identity stays in force.

    Raises:
        InputError: the folder cannot be written, or the waiting key cannot be read.
    """
    try:
        make_closed_folder(folder)
        path = folder / PENDING
        if not path.exists():
            write_new({path: (PrivateKey.generate().pem(None), 0o600)})
            sync_folder(folder)
    except OSError as error:
        raise InputError(
            f"cannot make {error.filename} for the device's key: {error.strerror}; give it to root, or remove it"
        ) from None
    return make_request(load_private_key(path, ask=False))


def finish_enrollment(folder: Path, certificate: str, authority: str, now: datetime) -> DeviceIdentity:
    """Take the certificate for the waiting key; from then on the device is who it says.

    Raises:
        InputError: no key waits.
        CertificateRefused: the certificate is for another key, or not by that authority, or not valid now.
    """
    key = load_private_key(folder / PENDING, ask=False)
    described = verify_certificate(certificate, [authority], now)
    if described.key.raw != key.public.raw:
        raise CertificateRefused("the certificate is for another key than this device's; enroll again", "foreign")
    content = key.pem(None).decode() + described.pem + authority
    replace_file(folder / IDENTITY, content.encode(), 0o600)
    (folder / PENDING).unlink()
    return DeviceIdentity(key, described, authority)


def load_identity(folder: Path, now: datetime) -> DeviceIdentity:
    """This device's identity.

    Raises:
        InputError: there is none, or it cannot be read or is open to others.
        CertificateRefused: the certificate is over; the device must be enrolled again.
    """
    path = folder / IDENTITY
    if not path.exists():
        raise InputError(f"this device is not enrolled ({path} is missing); enroll it with a token of the server")
    key = load_private_key(path, ask=False)
    parts = path.read_text(encoding="ascii").split(_BEGIN)
    if len(parts) != 3:
        raise InputError(f"{path} is damaged; enroll this device again")
    certificate, authority = _BEGIN + parts[1], _BEGIN + parts[2]
    described = verify_certificate(certificate, [authority], now)
    if described.key.raw != key.public.raw:
        raise InputError(f"{path} is damaged: key and certificate are no pair; enroll this device again")
    return DeviceIdentity(key, described, authority)
