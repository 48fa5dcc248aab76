"""Who comes in, and who stays: invitations, enrollment, renewal and revocation of devices.

A token works once (or as often as its maker said). A device that lost the answer may ask again with the same token,
machine and key for an hour; nobody else can.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from midflight.server.store import events
from midflight.server.store.base import from_micros, new_id
from midflight.server.store.devices import Answer, Certificate, Device, EnrollToken, Presence
from midflight.server.store.policies import Compliance
from midflight.trust.certificates import CertificateAuthority, DeviceCertificate
from midflight.trust.enrollment import EnrollmentRequest, hash_token, new_token
from midflight.trust.errors import RequestRefused

AGAIN = timedelta(hours=1)
"""For so long the answer to an enrollment can be asked for again."""
OVERLAP = timedelta(days=1)
"""For so long a renewed certificate is still good: the device may have lost the new one."""


def invite(
    session: Session,
    actor: str,
    now: datetime,
    *,
    lifetime: timedelta = timedelta(days=1),
    uses: int = 1,
    label: str = "",
    tags: Mapping[str, str] | None = None,
) -> tuple[EnrollToken, str]:
    """A new token; returned once, and stored as its hash."""
    token, digest = new_token()
    row = EnrollToken(
        id=new_id("inv"),
        hash=digest,
        label=label,
        tags=dict(tags or {}),
        created=now,
        created_by=actor,
        expires=now + lifetime,
        uses_left=uses,
        revoked=None,
    )
    session.add(row)
    data = {"label": label, "uses": uses, "expires": row.expires.isoformat()}
    events.publish(session, "enrollment.invited", data, subject=row.id, actor=actor, at=now)
    return row, token


def enroll(
    session: Session, request: EnrollmentRequest, authority: CertificateAuthority, now: datetime
) -> DeviceCertificate:
    """Take a device in.

    Raises:
        RequestRefused: the token is unknown, used up, expired or revoked, or the device is disabled.
        CertificateRefused: the certificate request is not one.
    """
    token = session.scalars(
        select(EnrollToken).where(EnrollToken.hash == hash_token(request.token)).with_for_update()
    ).first()
    if token is None:
        raise RequestRefused("the enrollment token is not one of this server; ask for a new one", "unknown")
    if token.revoked is not None or token.expires <= now:
        word = "revoked" if token.revoked is not None else "expired"
        raise RequestRefused(f"the enrollment token is {word}; ask for a new one", word)
    device = session.scalars(
        select(Device).where(Device.machine_id == request.machine_id).order_by(Device.enrolled.desc()).with_for_update()
    ).first()
    if device is not None and device.disabled is not None:
        raise RequestRefused(f"this machine is device {device.id}, which is disabled; enable it first", "revoked")
    if token.uses_left <= 0 and not _again(session, token, device, request, authority, now):
        raise RequestRefused("the enrollment token was used; each works once, ask for a new one", "replayed")
    token.uses_left = max(0, token.uses_left - 1)
    again = device is not None
    if device is None:
        device = _new_device(session, request, token, now)
    device.token_id, device.enrolled = token.id, now
    device.agent = request.agent_version
    certificate = authority.issue(request.certificate_request, device.id, now)
    if again:
        revoke_certificates(session, device.id, "enrolled again", now)
    store_certificate(session, certificate)
    data = {"hostname": request.hostname, "token": token.id, "fingerprint": certificate.fingerprint, "again": again}
    events.publish(session, "device.enrolled", data, subject=device.id, actor=f"device:{device.id}", at=now)
    return certificate


def _again(
    session: Session,
    token: EnrollToken,
    device: Device | None,
    request: EnrollmentRequest,
    authority: CertificateAuthority,
    now: datetime,
) -> bool:
    """Whether this is the device that used the token last, asking for its lost answer."""
    if device is None or device.token_id != token.id or now - device.enrolled > AGAIN:
        return False
    asked = authority.issue(request.certificate_request, device.id, now)
    found = select(Certificate.fingerprint).where(
        Certificate.device_id == device.id, Certificate.public_key == asked.key.raw
    )
    return session.scalars(found).first() is not None


def _new_device(session: Session, request: EnrollmentRequest, token: EnrollToken, now: datetime) -> Device:
    tags = {f"label.{name}": value for name, value in request.labels.items()} | dict(token.tags)
    device = Device(
        id=new_id("dev"),
        machine_id=request.machine_id,
        token_id=token.id,
        hostname=request.hostname,
        platform=f"{request.os}-{request.architecture}".lower()[:200],
        kernel="",
        agent=request.agent_version,
        timezone="UTC",
        boot_id="",
        memory_free_mib=None,
        tags=tags,
        state=None,
        state_digest="",
        inventory_digest="",
        sequence=0,
        reported=None,
        integrity_violated=False,
        restart_pending=False,
        enrolled=now,
        lifted=[],
        disabled=None,
        disabled_reason="",
        policy_id=None,
        governance="unassigned",
        governance_detail="",
    )
    session.add(device)
    session.flush()
    session.add(Presence(device_id=device.id, last_seen=from_micros(0)))
    session.add(Answer(device_id=device.id, sequence=0, digest="", expires=0, until=0, interval_s=60, regroup=True))
    session.add(
        Compliance(
            device_id=device.id,
            policy_id=None,
            state="unknown",
            reason="never_reported",
            detail="",
            hotpatched=False,
            since=now,
            until=None,
            due=now,
            evaluated=now,
        )
    )
    return device


def store_certificate(session: Session, certificate: DeviceCertificate) -> None:
    """Remember a certificate that was issued: requests name it by its fingerprint."""
    session.add(
        Certificate(
            fingerprint=certificate.fingerprint,
            device_id=certificate.device,
            public_key=certificate.key.raw,
            not_before=certificate.not_before,
            not_after=certificate.not_after,
            pem=certificate.pem,
            revoked=None,
            revoked_reason=None,
        )
    )


def renew(
    session: Session, request: str, current: DeviceCertificate, authority: CertificateAuthority, now: datetime
) -> DeviceCertificate:
    """The next certificate of a device, which asked for it with a verified request. The current one ends soon.

    Raises:
        CertificateRefused: the request is malformed.
    """
    certificate = authority.renew(request, current, now)
    session.execute(
        update(Certificate)
        .where(Certificate.device_id == current.device, Certificate.not_after > now + OVERLAP)
        .values(not_after=now + OVERLAP)
    )
    store_certificate(session, certificate)
    data = {"fingerprint": certificate.fingerprint, "not_after": certificate.not_after.isoformat()}
    events.publish(session, "device.renewed", data, subject=current.device, actor=f"device:{current.device}", at=now)
    return certificate


def revoke_certificates(session: Session, device: str, reason: str, now: datetime) -> None:
    """Let no certificate of a device be good any more, from its next request on."""
    session.execute(
        update(Certificate)
        .where(Certificate.device_id == device, Certificate.revoked.is_(None))
        .values(revoked=now, revoked_reason=reason)
    )
