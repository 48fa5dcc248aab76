"""Enrollment: how a new device proves that it was invited, and what it gets.

An invitation is a token of 256 random bits that works once. The server stores its hash alone; the device sends the
token over a connection whose server it has pinned (:mod:`midflight.trust.pinning`).
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

from midflight.patch.fields import FieldError, integer, many, pattern, record, show, text
from midflight.trust.encoding import canonical, decode_canonical
from midflight.trust.errors import TrustError
from midflight.trust.instructions import DEVICE_ID, SHA256

T = TypeVar("T")

VERSION = 1
MAX_MESSAGE = 1 << 20
_TOKEN = re.compile(r"mfe_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """What a device sends to be enrolled. All but token and certificate request is for people and rules to read."""

    token: str
    certificate_request: str
    """PKCS#10 in PEM, from :func:`midflight.trust.devices.begin_enrollment`."""
    hostname: str
    machine_id: str
    """Of this machine, so that a device that enrolls again is recognised; 64 hex digits (a hash, not the id itself)."""
    os: str
    architecture: str
    agent_version: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnrollmentResponse:
    """What a device gets."""

    device: str
    certificate: str
    authority: str
    """The certificate (PEM) of the authority that issued the device's."""
    root: str
    """The repository's root metadata (JSON text). A device believes it only when it has its sha256 from the person who
    enrolls it, or from its package; otherwise it uses the one that it came with."""
    repository_urls: tuple[str, ...]
    interval_s: int


def new_token() -> tuple[str, str]:
    """A token, to be given to a device, and its hash, to be stored."""
    token = "mfe_" + secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> str:
    """sha256 of a token, in hex. No salt and no slow hash: a token has 256 random bits, so nobody can guess one."""
    return sha256(token.encode()).hexdigest()


def token_matches(token: str, stored_hash: str) -> bool:
    """Whether a token is the one whose hash is stored; takes the same time for every wrong one."""
    return hmac.compare_digest(hash_token(token), stored_hash)


def encode_request(request: EnrollmentRequest) -> bytes:
    """The body of the request."""
    return canonical(
        {
            "version": VERSION,
            "token": request.token,
            "certificate_request": request.certificate_request,
            "hostname": request.hostname,
            "machine_id": request.machine_id,
            "os": request.os,
            "architecture": request.architecture,
            "agent_version": request.agent_version,
            "labels": dict(request.labels),
        }
    )


def decode_request(data: bytes) -> EnrollmentRequest:
    """Read a request.

    Raises:
        TrustError: reason ``malformed`` or ``oversized``.
    """
    return _decode(data, _request, "the request for enrollment")


def encode_response(response: EnrollmentResponse) -> bytes:
    """The body of the response."""
    return canonical(
        {
            "version": VERSION,
            "device": response.device,
            "certificate": response.certificate,
            "authority": response.authority,
            "root": response.root,
            "repository_urls": list(response.repository_urls),
            "interval_s": response.interval_s,
        }
    )


def decode_response(data: bytes) -> EnrollmentResponse:
    """Read a response.

    Raises:
        TrustError: reason ``malformed`` or ``oversized``.
    """
    return _decode(data, _response, "the answer to the enrollment")


def _decode(data: bytes, check: Callable[[object], T], what: str) -> T:
    if len(data) > MAX_MESSAGE:
        raise TrustError(f"{what} has {len(data)} bytes, at most {MAX_MESSAGE} are read", "oversized")
    try:
        return decode_canonical(data, check)
    except FieldError as error:
        raise TrustError(f"{what} has a fault: {error}; update the agent or the server", "malformed") from None


def _labels(value: object) -> Mapping[str, str]:
    if type(value) is not dict or len(value) > 64:
        raise FieldError("must be an object with at most 64 keys")
    for key, label in value.items():
        if not _LABEL.fullmatch(key):
            raise FieldError(f"has a key that is no name of a label: {show(key)}")
        _label(label)
    return value


_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
_label = text(0, 200)
_pem = text(1, 16 << 10, lines=True)
_request = record(
    lambda agent_version, architecture, certificate_request, hostname, labels, machine_id, os, token, version: (
        EnrollmentRequest(token, certificate_request, hostname, machine_id, os, architecture, agent_version, labels)
    ),
    agent_version=text(1, 64),
    architecture=text(1, 64),
    certificate_request=_pem,
    hostname=text(1, 253),
    labels=_labels,
    machine_id=pattern(SHA256, "a sha256 in hex"),
    os=text(1, 200),
    token=pattern(_TOKEN.pattern, "a token of this server (mfe_…)"),
    version=integer(VERSION, VERSION),
)
_response = record(
    lambda authority, certificate, device, interval_s, repository_urls, root, version: EnrollmentResponse(
        device, certificate, authority, root, repository_urls, interval_s
    ),
    authority=_pem,
    certificate=_pem,
    device=pattern(DEVICE_ID, "the id of a device"),
    interval_s=integer(1, 86400 * 7),
    repository_urls=many(pattern(r"https?://[!-~]{1,500}", "a URL"), 0, 16),
    root=text(1, 512 << 10, lines=True),
    version=integer(VERSION, VERSION),
)
