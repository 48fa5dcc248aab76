"""An event as each format has it; pure. None where a format has no place for a kind of event."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from midflight.server.domain.compliance import ADMITTED
from midflight.server.domain.reasons import Reason
from midflight.server.outputs import ocsf, signing, tokens
from midflight.server.outputs.jwtkeys import JwtKeys

_PID = re.compile(r"([0-9]{1,9})\)?$")
FORMATS = ("cloudevents", "ocsf", "caep")
COMPLIANCE_CHANGED = "compliance.changed"
_PATCHES = {
    "patch.applied": (True, True),
    "patch.failed": (True, False),
    "patch.reverted": (False, True),
    "patch.revert_failed": (False, False),
    "patch.health_failed": (False, True),
}
"""Kinds of events: whether it was to be put in (or out), and whether that worked."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event, with what a reader elsewhere cannot look up."""

    uid: str
    kind: str
    at: datetime
    subject: str
    data: Mapping[str, Any]
    host: ocsf.Host | None = None
    content_name: str = ""
    cves: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent."""

    body: bytes
    content_type: str


def matches(kinds: Sequence[str], kind: str) -> bool:
    """Whether a webhook with these kinds gets an event of this one."""
    return any(kind == each or (each.endswith("*") and kind.startswith(each[:-1])) for each in kinds)


def takes(format: str, kind: str) -> bool:
    """Whether the format has a place for the kind of event."""
    if format == "ocsf":
        return kind in _PATCHES or kind in ("device.integrity_violated", COMPLIANCE_CHANGED)
    return format == "cloudevents" or kind in (COMPLIANCE_CHANGED, "webhook.test")


def render(event: Happened, format: str, issuer: str, audience: str, keys: JwtKeys, now: datetime) -> Message | None:
    """The message of an event in a format; None when it says nothing there (a change that leaves a device admitted)."""
    if format == "cloudevents":
        body = signing.envelope(event.uid, event.kind, event.at, issuer, event.subject, event.data)
        return Message(body, "application/cloudevents+json; charset=utf-8")
    if format == "ocsf":
        document = _ocsf(event)
        return Message(orjson.dumps(document), "application/json") if document else None
    admitted, before = _admission(event.data)
    if event.kind == COMPLIANCE_CHANGED and admitted == before:
        return None
    claims = tokens.change_claims(
        issuer,
        audience,
        event.uid,
        event.subject,
        event.at,
        now,
        compliant=admitted,
        reason=_text(event.data.get("reason")),
    )
    return Message(keys.sign(claims, tokens.EVENT_TYPE).encode(), "application/secevent+jwt")


def _ocsf(event: Happened) -> dict[str, Any] | None:
    data = event.data
    host = event.host or ocsf.Host(event.subject, str(data.get("hostname", "")))
    if event.kind in _PATCHES:
        applied, succeeded = _PATCHES[event.kind]
        return ocsf.patch_changed(
            event.uid,
            event.at,
            host,
            applied=applied,
            succeeded=succeeded,
            content=str(data.get("content") or data.get("deployment") or event.uid),
            name=event.content_name or str(data.get("content") or "unknown"),
            cves=event.cves,
            processes=int(data.get("processes") or 0),
            stopped_ms=int(data.get("stopped_us") or 0) / 1000,
            detail=str(data.get("detail") or ""),
        )
    if event.kind == "device.integrity_violated":
        first: Mapping[str, Any] = next(iter(data.get("violations") or ()), {})
        number = _PID.search(str(first.get("process") or ""))
        return ocsf.integrity_violated(
            event.uid,
            event.at,
            host,
            image=str(first.get("path") or first.get("build_id") or ""),
            pid=int(number[1]) if number else None,
            detail=str(first.get("detail") or ""),
        )
    if event.kind == COMPLIANCE_CHANGED:
        reason = str(data.get("reason") or "")
        return ocsf.compliance_changed(
            event.uid,
            event.at,
            host,
            compliant=_admission(data)[0],
            state=str(data.get("state")),
            previous=str(data.get("before") or ""),
            reason=reason,
            text=_text(reason),
        )
    return None


def _admission(data: Mapping[str, Any]) -> tuple[bool, bool]:
    words = {state.value for state in ADMITTED}
    return data.get("state") in words, data.get("before") in words


def _text(reason: object) -> str:
    known = Reason._value2member_map_.get(reason)
    return known.text if isinstance(known, Reason) else str(reason or "unknown")
