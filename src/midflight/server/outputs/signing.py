"""Signatures and envelope of a webhook; pure.

Standard Webhooks 1.0 (standardwebhooks.com, the scheme ``v1``) and CloudEvents 1.0 in structured JSON mode.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

SECRET_PREFIX = "whsec_"
EVENT_PREFIX = "io.midflight."
"""Types of CloudEvents are in reverse-DNS form (CloudEvents 1.0, section type)."""


def secret_text(key: bytes) -> str:
    """The secret as receivers enter it."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def headers(message: str, at: datetime, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The three headers of Standard Webhooks. With several keys (a rotation) there is a signature by each."""
    stamp = str(int(at.timestamp()))
    content = b".".join((message.encode(), stamp.encode(), body))
    signatures = " ".join("v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {"webhook-id": message, "webhook-timestamp": stamp, "webhook-signature": signatures}


def envelope(event: str, kind: str, at: datetime, source: str, subject: str, data: Mapping[str, Any]) -> bytes:
    """A CloudEvent. ``source`` and ``event`` together name it: the same event delivered again is the same name."""
    document = {
        "specversion": "1.0",
        "id": event,
        "type": EVENT_PREFIX + kind,
        "source": source,
        "time": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    if subject:
        document["subject"] = subject
    return json.dumps(document, separators=(",", ":")).encode()
