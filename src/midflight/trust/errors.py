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


class ContentError(TrustError):
    """Content or its metadata could not be had, or is not believed. What was believed before stays in force."""


class SourceUnreachable(ContentError):
    """The source does not answer, or with an error; nothing is known about what it has."""

    reason = "unreachable"


class SourceSlow(ContentError):
    """The source answers too slowly: the slow retrieval attack, or a bad line."""

    reason = "slow"


class EndlessData(ContentError):
    """The source sends more than there should be."""

    reason = "endless"


class MetadataExpired(ContentError):
    """The newest metadata that the source has is over: the freeze attack, or nobody renews it."""

    reason = "expired"


class MetadataRollback(ContentError):
    """The source has older metadata than was seen before, or versions that do not belong together."""

    reason = "rollback"


class MetadataUnsigned(ContentError):
    """Metadata is not signed by enough of the keys that must sign it."""

    reason = "unsigned"


class MetadataMalformed(ContentError):
    """Metadata cannot be read."""

    reason = "malformed"


class ContentAltered(ContentError):
    """A file does not have the hash that is signed."""

    reason = "altered"


class ContentMissing(ContentError):
    """The repository has no such content, or the source not its file."""

    reason = "missing"
