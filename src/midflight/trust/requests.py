"""Requests of devices, signed: HTTP Message Signatures (RFC 9421) with Content-Digest (RFC 9530), Ed25519.

The signature covers method, path, query, the digest of the body and the header ``midflight-sequence``; its key id is
the fingerprint of the device's certificate. So any TLS proxy may stand before the server, and any of its processes can
check any request. The signature's form is one of those that the RFC allows, and the only one accepted here
(docs/adr/0067): it is recognised, not interpreted.
"""

from __future__ import annotations

import re
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Protocol
from urllib.parse import urlsplit

from midflight.patch.signature import Signer
from midflight.trust.certificates import DeviceCertificate
from midflight.trust.encoding import MAX_INTEGER, from_base64, to_base64
from midflight.trust.errors import RequestRefused

TAG = "midflight-device"
"""What the signature is for (RFC 9421 section 2.3): no signature made for something else is taken."""
SEQUENCE = "midflight-sequence"
MAX_AGE = timedelta(minutes=5)
"""How old a request may be, and how far the device's clock may be ahead."""

_COVERED = '("@method" "@path" "@query" "content-digest" "midflight-sequence")'
_INPUT = re.compile(
    r'midflight=(\("@method" "@path" "@query" "content-digest" "midflight-sequence"\)'
    r';created=([0-9]{1,12});keyid="([0-9a-f]{64})";alg="ed25519";tag="midflight-device")'
)
_SIGNATURE = re.compile(r"midflight=:([A-Za-z0-9+/]{86}==):")
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")
_MAX_AGE = int(MAX_AGE.total_seconds())


class Identity(Protocol):
    """Who signs: :class:`midflight.trust.devices.DeviceIdentity`."""

    @property
    def key(self) -> Signer:
        """The device's private key."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the device's certificate, in hex."""


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """A request that a device made. Whether it is played to us again is the server's to find out, who knows the last
    sequence: see :func:`check_sequence`."""

    device: str
    sequence: int
    created: datetime
    certificate: DeviceCertificate


def sign_request(
    identity: Identity, method: str, url: str, body: bytes, sequence: int, now: datetime | None = None
) -> dict[str, str]:
    """The headers to send with a request.

    Args:
        method: in upper case.
        url: absolute or from the path on, encoded as it is sent.
        sequence: higher than that of every request before (see :func:`next_sequence`).
    """
    parts = urlsplit(url)
    created = int(clock.time() if now is None else now.timestamp())
    parameters = f'{_COVERED};created={created};keyid="{identity.fingerprint}";alg="ed25519";tag="{TAG}"'
    digest = _digest(body)
    base = _base(method, parts.path or "/", parts.query, digest, str(sequence), parameters)
    return {
        "content-digest": digest,
        SEQUENCE: str(sequence),
        "signature-input": f"midflight={parameters}",
        "signature": f"midflight=:{to_base64(identity.key.sign(base))}:",
    }


def verify_request(
    headers: Mapping[str, str],
    method: str,
    path: str,
    query: str,
    body: bytes,
    find_certificate: Callable[[str], DeviceCertificate | None],
    now: datetime,
) -> DeviceRequest:
    """Who made a request, if it is as the device signed it.

    Args:
        headers: by lower-case name (or a mapping that ignores case).
        path: as it was sent, percent-encoded (in ASGI: ``raw_path``).
        query: as it was sent, without the question mark.
        find_certificate: the certificate that the server issued with this fingerprint, or None. Revocation is the
            server's list: it sets ``DeviceCertificate.revoked``.

    Raises:
        RequestRefused: with the reason.
    """
    found = _INPUT.fullmatch(headers.get("signature-input", ""))
    signature = _SIGNATURE.fullmatch(headers.get("signature", ""))
    number = headers.get(SEQUENCE, "")
    if found is None or signature is None or not _NUMBER.fullmatch(number) or int(number) > MAX_INTEGER:
        raise _unsigned(headers)
    parameters, created, fingerprint = found.groups()
    seconds = int(now.timestamp())
    if not -_MAX_AGE <= seconds - int(created) <= _MAX_AGE:
        raise RequestRefused(
            f"the request is {seconds - int(created)} seconds old by its own word, and {_MAX_AGE} are allowed; "
            "compare the clocks of device and server",
            "stale",
        )
    digest = headers.get("content-digest", "")
    if digest != _digest(body):
        raise RequestRefused("the body is not the one that the device signed; send it again", "altered")
    certificate = find_certificate(fingerprint)
    if certificate is None:
        raise RequestRefused(f"no device has the certificate {fingerprint[:16]}…; enroll it again", "unknown")
    if certificate.revoked is not None:
        raise RequestRefused(
            f"the certificate of device {certificate.device} is revoked: {certificate.revoked}", "revoked"
        )
    if not certificate.not_before <= now + MAX_AGE or now >= certificate.not_after:
        raise RequestRefused(
            f"the certificate of device {certificate.device} is not valid now; enroll it again", "expired"
        )
    if "\n" in method or "\n" in path or "\n" in query:  # else two requests would have one signature base
        raise RequestRefused("the request has a line feed in its first line", "malformed")
    base = _base(method, path, query, digest, number, parameters)
    try:
        raw = from_base64(signature[1])
    except ValueError:
        raise _unsigned(headers) from None
    if not certificate.key.verify(raw, base):
        raise RequestRefused(
            f"the request is not as device {certificate.device} signed it; a proxy may have changed its path or query",
            "altered",
        )
    return DeviceRequest(certificate.device, int(number), datetime.fromtimestamp(int(created), UTC), certificate)


def check_sequence(request: DeviceRequest, last: int) -> None:
    """Refuse what was seen before; ``last`` is the highest sequence of this device so far.

    Raises:
        RequestRefused: reason ``replayed``.
    """
    if request.sequence <= last:
        raise RequestRefused(
            f"the request of device {request.device} has sequence {request.sequence}, and {last} came before; "
            "it is played again, or two devices share one key",
            "replayed",
        )


def next_sequence(last: int, now: datetime) -> int:
    """The sequence of the next request: microseconds since 1970, or one more than the last when the clock went back."""
    return max(last + 1, int(now.timestamp() * 1_000_000))


def _digest(body: bytes) -> str:
    return f"sha-256=:{to_base64(sha256(body).digest())}:"


def _base(method: str, path: str, query: str, digest: str, sequence: str, parameters: str) -> bytes:
    """What is signed (RFC 9421 section 2.5)."""
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": ?{query}\n"content-digest": {digest}\n'
        f'"midflight-sequence": {sequence}\n"@signature-params": {parameters}'
    ).encode()


def _unsigned(headers: Mapping[str, str]) -> RequestRefused:
    if "signature" in headers or "signature-input" in headers:
        return RequestRefused(
            "the signature of the request is not of the form that devices use (RFC 9421, label midflight); "
            "update the agent or the server",
            "malformed",
        )
    return RequestRefused("the request is not signed; devices sign each one", "unsigned")
