"""What tells others that a device is compliant: short-lived tokens, and security event tokens when that changes; pure.

A compliance token (RFC 7519) is made for compliant devices alone, so that one who forgets to look at its claims still
grants nothing to others. It names the device's certificate (RFC 8705 section 3.1): stolen, it is of no use to a proxy
that compares the two. A change is told by a Security Event Token (RFC 8417) with the event *device-compliance-change*
of the OpenID Continuous Access Evaluation Profile 1.0.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

COMPLIANCE_TYPE = "midflight-compliance+jwt"
EVENT_TYPE = "secevent+jwt"
"""RFC 8417 section 2.3."""
CHANGE = "https://schemas.openid.net/secevent/caep/event-type/device-compliance-change"
LIFETIME = timedelta(minutes=5)
SKEW = timedelta(seconds=30)
"""A receiver's clock may be late by so much."""


def compliance_claims(
    issuer: str, device: str, thumbprint: str, state: str, audience: str, token: str, now: datetime
) -> dict[str, Any]:
    """The claims of a compliance token.

    Args:
        thumbprint: of the device's certificate, SHA-256, base64url without padding.
        state: the compliance state, ``compliant`` or ``in_grace``.
        audience: whom the device wants to show it to; empty: anyone.
        token: an identifier of its own.
    """
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": device,
        "iat": int(now.timestamp()),
        "nbf": int((now - SKEW).timestamp()),
        "exp": int((now + LIFETIME).timestamp()),
        "jti": token,
        "cnf": {"x5t#S256": thumbprint},
        "compliance": state,
    }
    return claims | ({"aud": audience} if audience else {})


def change_claims(
    issuer: str, audience: str, event: str, device: str, at: datetime, now: datetime, *, compliant: bool, reason: str
) -> dict[str, Any]:
    """The claims of a device-compliance-change event; ``event`` is its identifier, the same at every delivery."""
    return {
        "iss": issuer,
        "aud": audience,
        "jti": event,
        "iat": int(now.timestamp()),
        "txn": event,
        "sub_id": {"format": "complex", "device": {"format": "iss_sub", "iss": issuer, "sub": device}},
        "events": {
            CHANGE: {
                "event_timestamp": int(at.timestamp()),
                "initiating_entity": "policy",
                "reason_admin": {"en": reason},
                "current_status": "compliant" if compliant else "not-compliant",
                "previous_status": "not-compliant" if compliant else "compliant",
            }
        },
    }
