"""The errors of trust: each names what is not believed, and has a word for programs (``reason``)."""

from __future__ import annotations

from midflight.errors import MidflightError


class TrustError(MidflightError):
    """Something from outside is not believed, so nothing was done with it. ``reason`` is a stable word for programs."""

    reason = "untrusted"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class InstructionsRefused(TrustError):
    """Instructions are not followed. Reasons: oversized, malformed, unsigned, untrusted, altered, foreign, early,
    expired, replayed, older, downgraded, future."""


class RequestRefused(TrustError):
    """A device's request is not accepted. Reasons: malformed, unsigned, unknown, revoked, expired, stale, altered,
    replayed."""


class CertificateRefused(TrustError):
    """A certificate or the request for one is not accepted. Reasons: malformed, foreign, early, expired, revoked."""


class ServerRefused(TrustError):
    """The other side of a connection is not the server that is pinned, or does not behave like one. Reasons: pin,
    unreachable, slow, oversized, redirect, insecure."""
