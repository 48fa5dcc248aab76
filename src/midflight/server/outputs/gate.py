"""Conditional access: which device a proxy speaks of, and whether it may in. Whatever is not clear is a no."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from ssl import PEM_cert_to_DER_cert
from urllib.parse import unquote

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain.compliance import ADMITTED
from midflight.server.domain.model import ComplianceState
from midflight.server.store.devices import Certificate, Device
from midflight.server.store.policies import Compliance

_ENVOY = re.compile(r"(?:^|;)Hash=([0-9a-fA-F]{64})(?:;|$)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_ADMITTED = frozenset(state.value for state in ADMITTED)
_MAX_HEADER = 16384
JUDGED_WITHIN = timedelta(minutes=5)
"""Who is to be judged anew is so within seconds; after this long nobody does it, and the device is refused."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a device may in. ``state`` and ``reason`` are words of the model, for logs and error pages."""

    admitted: bool
    device: str = ""
    fingerprint: str = ""
    state: str = "unknown"
    reason: str = ""


def fingerprint_of(headers: Mapping[str, str]) -> str | None:
    """SHA-256, in hex, of the client certificate that the proxy says it has verified; None when it names none.

    Understands ``Client-Cert`` (RFC 9440), ``X-SSL-Client-Cert`` (nginx's ``$ssl_client_escaped_cert``) and
    ``X-Forwarded-Client-Cert`` (Envoy; one element). nginx's own fingerprint is SHA-1 and is not taken. With several
    of them, or several certificates in one, nobody knows who is meant: None.
    """
    names = ("client-cert", "x-ssl-client-cert", "x-forwarded-client-cert")
    given = [(name, headers[name]) for name in names if headers.get(name)]
    if len(given) != 1 or len(given[0][1]) > _MAX_HEADER:
        return None
    name, value = given[0]
    try:
        if name == "client-cert":
            found = re.fullmatch(r":([A-Za-z0-9+/]+=*):", value)
            return sha256(base64.b64decode(found[1], validate=True)).hexdigest() if found else None
        if name == "x-ssl-client-cert":
            pem = unquote(value)
            return sha256(PEM_cert_to_DER_cert(pem)).hexdigest() if pem.count("-----BEGIN") == 1 else None
    except (ValueError, binascii.Error):
        return None
    bare = _QUOTED.sub("", value)  # the subject's text is the client's own
    hashes = _ENVOY.findall(bare)
    return hashes[0].lower() if len(hashes) == 1 and "," not in bare else None


def by_certificate(session: Session, fingerprint: str, now: datetime) -> Verdict:
    """Whether the device whose certificate this is may in."""
    return _judge(session, Certificate.fingerprint == fingerprint, now)


def by_device(session: Session, device: str, fingerprint: str, now: datetime) -> Verdict:
    """Whether the device may in, by a certificate of its own that is still good."""
    verdict = by_certificate(session, fingerprint, now)
    return verdict if verdict.device == device else Verdict(False, device, reason="foreign_certificate")


def _judge(session: Session, which: object, now: datetime) -> Verdict:
    statement = (
        select(
            Certificate.fingerprint,
            Certificate.not_before,
            Certificate.not_after,
            Certificate.revoked,
            Device.id,
            Device.disabled,
            Compliance.state,
            Compliance.reason,
            Device.integrity_violated,
            Compliance.until,
            Compliance.due,
        )
        .join(Device, Device.id == Certificate.device_id)
        .outerjoin(Compliance, Compliance.device_id == Device.id)
        .where(which)  # type: ignore[arg-type]
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return Verdict(False, reason="unknown_certificate")
    state = row.state or ComplianceState.UNKNOWN.value

    def no(reason: str) -> Verdict:
        return Verdict(False, row.id, row.fingerprint, state, reason)

    if row.disabled is not None:
        return no("device_disabled")
    if row.revoked is not None or not row.not_before <= now < row.not_after:
        return no("certificate_over")
    if row.integrity_violated:
        # no word of last time counts against that
        return no("integrity_violated")
    if (row.until is not None and now >= row.until) or (row.due is not None and now >= row.due + JUDGED_WITHIN):
        # time alone has made it worse, or something changed, and nobody judges it anew
        return no("evaluation_over")
    if state not in _ADMITTED:
        return no(row.reason or "unknown")
    return Verdict(True, row.id, row.fingerprint, state, row.reason)


def thumbprint(fingerprint: str) -> str:
    """The fingerprint as tokens write it (RFC 8705): base64url of the digest, without padding."""
    return base64.urlsafe_b64encode(bytes.fromhex(fingerprint)).rstrip(b"=").decode()


def fingerprint_from(thumb: object) -> str:
    """The other way round; empty when it is none."""
    if not isinstance(thumb, str) or not re.fullmatch(r"[A-Za-z0-9_-]{43}", thumb):
        return ""
    return base64.urlsafe_b64decode(thumb + "=").hex()
