"""Certificates of devices: the server's own authority, what it issues, and what is checked of them (RFC 5280).

A device's certificate binds its Ed25519 key to its id, which stands as ``urn:midflight:device:ID`` among the subject
alternative names. It signs requests, not TLS connections, and lasts 30 days; the device renews it by itself. What is
revoked is the server's list to know, and callers ask it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from midflight.errors import InputError
from midflight.trust.errors import CertificateRefused
from midflight.trust.files import write_new
from midflight.trust.instructions import DEVICE_ID
from midflight.trust.keys import PrivateKey, PublicKey, load_private_key

VALIDITY = timedelta(days=30)
AUTHORITY_VALIDITY = timedelta(days=3650)
BACKDATE = timedelta(minutes=5)
"""Certificates begin so much before they are made, for devices whose clock is behind."""
MAX_PEM = 16 << 10
URN = "urn:midflight:device:"

_DEVICE_ID = re.compile(DEVICE_ID)


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """What a device's certificate says. The server keeps these, and may make them from what it stored."""

    device: str
    fingerprint: str
    """sha256 of the certificate (DER), in hex."""
    key: PublicKey
    not_before: datetime
    not_after: datetime
    revoked: str | None = None
    """Why it is revoked; None: it is not. The server's list knows; a certificate itself never says so."""
    pem: str = ""


def make_request(key: PrivateKey) -> str:
    """A request for a certificate (PKCS#10, RFC 2986) in PEM: it proves that the sender has the key, and says no more.

    Which device it is for is decided by the server.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "midflight device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_native(key), None)
    return request.public_bytes(Encoding.PEM).decode()


class CertificateAuthority:
    """The server's authority for device certificates: one Ed25519 key and one self-signed certificate, two files."""

    def __init__(self, key: PrivateKey, certificate: x509.Certificate) -> None:
        self._key = _native(key)
        self.certificate = certificate
        if _public(certificate).raw != key.public.raw:
            raise InputError(
                "the key and the certificate of the authority are no pair; give the two that belong together"
            )

    @classmethod
    def create(cls, key_path: Path, certificate_path: Path, name: str, now: datetime) -> CertificateAuthority:
        """Make an authority and write its two new files; the key is for its owner alone (mode 0600).

        Raises:
            InputError: a file exists, or cannot be written.
        """
        key = PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(_native(key).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + AUTHORITY_VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(_native(key).public_key()), critical=False)
            .sign(_native(key), None)
        )
        write_new({key_path: (key.pem(None), 0o600), certificate_path: (certificate.public_bytes(Encoding.PEM), 0o644)})
        return cls(key, certificate)

    @classmethod
    def load(cls, key_path: Path, certificate_path: Path) -> CertificateAuthority:
        """Read an authority from its two files.

        Raises:
            InputError: one cannot be read, the key is open to others, or they are no pair.
        """
        key = load_private_key(key_path, ask=False)
        try:
            certificate = _certificate(certificate_path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError, CertificateRefused) as error:
            raise InputError(f"cannot read the authority's certificate {certificate_path}: {error}") from None
        return cls(key, certificate)

    @property
    def pem(self) -> str:
        """The authority's certificate, in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, request: str, device: str, now: datetime, validity: timedelta = VALIDITY) -> DeviceCertificate:
        """The certificate for a device's key. Nothing of the request is taken over but its key.

        Raises:
            CertificateRefused: the request is malformed, or not signed by its own Ed25519 key.
        """
        if not _DEVICE_ID.fullmatch(device):
            raise CertificateRefused(
                f"{device!r} is no id of a device; give 1 to 64 of a-z, 0-9, '.', '_', '-'", "malformed"
            )
        end = min(now + validity, self.certificate.not_valid_after_utc)
        if end <= now:
            raise CertificateRefused("the authority's own certificate is no longer valid; make a new one", "expired")
        key = _requested_key(request)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + device)]), critical=False)
            .sign(self._key, None)
        )
        return _described(certificate)

    def renew(
        self, request: str, current: DeviceCertificate, now: datetime, validity: timedelta = VALIDITY
    ) -> DeviceCertificate:
        """A new certificate for a device that has one, for the same or a new key. The caller has verified that the
        device asked for it with the current one (:func:`midflight.trust.requests.verify_request`).

        Raises:
            CertificateRefused: the current one is over or revoked, or the request is malformed.
        """
        if current.revoked is not None:
            raise CertificateRefused(
                f"device {current.device} is revoked: {current.revoked}; enroll it again", "revoked"
            )
        if now >= current.not_after:
            raise CertificateRefused(f"the certificate of device {current.device} is over; enroll it again", "expired")
        return self.issue(request, current.device, now, validity)


def verify_certificate(
    pem: str,
    authorities: Iterable[str],
    now: datetime,
    revoked: Callable[[str], str | None] = lambda fingerprint: None,
) -> DeviceCertificate:
    """What a device's certificate says, if one of the authorities (PEM) issued it and it is valid now.

    Args:
        revoked: the server's list: why the certificate with a fingerprint is revoked, or None.

    Raises:
        CertificateRefused: with the reason.
    """
    certificate = _certificate(pem)
    if not any(_issued_by(certificate, _certificate(authority), now) for authority in authorities):
        raise CertificateRefused("the certificate is from no authority that is trusted here; enroll again", "foreign")
    described = _described(certificate)
    if now < described.not_before:
        raise CertificateRefused(f"the certificate of {described.device} is not valid yet; compare the clocks", "early")
    if now >= described.not_after:
        raise CertificateRefused(f"the certificate of {described.device} is over; renew it or enroll again", "expired")
    reason = revoked(described.fingerprint)
    if reason is not None:
        raise CertificateRefused(f"the certificate of {described.device} is revoked: {reason}", "revoked")
    return described


def read_certificate(pem: str) -> DeviceCertificate:
    """What a device's certificate says, without asking who issued it.

    Raises:
        CertificateRefused: it is not a certificate of a device.
    """
    return _described(_certificate(pem))


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> bool:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.ca and authority.not_valid_before_utc <= now < authority.not_valid_after_utc


def _described(certificate: x509.Certificate) -> DeviceCertificate:
    try:
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise _not_of_a_device() from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    device = uris[0].removeprefix(URN) if len(names) == len(uris) == 1 and uris[0].startswith(URN) else ""
    if constraints.ca or ExtendedKeyUsageOID.CLIENT_AUTH not in usages or not _DEVICE_ID.fullmatch(device):
        raise _not_of_a_device()
    der = certificate.public_bytes(Encoding.DER)
    return DeviceCertificate(
        device,
        sha256(der).hexdigest(),
        _public(certificate),
        certificate.not_valid_before_utc.astimezone(UTC),
        certificate.not_valid_after_utc.astimezone(UTC),
        None,
        certificate.public_bytes(Encoding.PEM).decode(),
    )


def _not_of_a_device() -> CertificateRefused:
    return CertificateRefused("the certificate is not one of a device; enroll again", "malformed")


def _certificate(pem: str) -> x509.Certificate:
    if len(pem) > MAX_PEM:
        raise CertificateRefused(f"a certificate of {len(pem)} characters is too large", "malformed")
    try:
        return x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError:
        raise CertificateRefused("the certificate cannot be read; get it again from the server", "malformed") from None


def _requested_key(pem: str) -> Ed25519PublicKey:
    if len(pem) > MAX_PEM:
        raise CertificateRefused(f"a request of {len(pem)} characters is too large for a certificate", "malformed")
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        key = request.public_key()
        valid = request.is_signature_valid
    except ValueError:
        raise CertificateRefused("the request for a certificate cannot be read; make it again", "malformed") from None
    if not isinstance(key, Ed25519PublicKey) or not valid:
        raise CertificateRefused(
            "the request for a certificate is not signed by an Ed25519 key of its own; make it again", "malformed"
        )
    return key


def _public(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateRefused("the certificate is for another kind of key than Ed25519", "malformed")
    return PublicKey(key.public_bytes_raw())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _native(key: PrivateKey) -> Ed25519PrivateKey:
    native = load_pem_private_key(key.pem(None), None)
    assert isinstance(native, Ed25519PrivateKey)
    return native
