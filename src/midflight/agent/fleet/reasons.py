"""Why this device does not do (yet) what it was told, for programs. Words that the server knows mean the same there."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """A machine-readable reason."""

    # not for this device
    WRONG_PLATFORM = "wrong_platform"
    KERNEL_TOO_OLD = "kernel_too_old"
    AGENT_TOO_OLD = "agent_too_old"
    NOT_AFFECTED = "not_affected"
    BASELINE_NOT_CURRENT = "baseline_not_current"
    HOTPATCH_DISABLED = "hotpatch_disabled"
    MEMORY_LOW = "memory_low"
    DISK_LOW = "disk_low"
    BARRED = "barred"
    SUPERSEDED = "superseded"
    NO_PLACE = "no_place"
    """A baseline's file has no place on this machine: its settings do not say where it belongs."""
    # not believed
    UNKNOWN_CONTENT = "unknown_content"
    REVOKED = "faulted_revoked"
    CONTENT_MISMATCH = "content_mismatch"
    """Server and offline keys say different things, or the file something else than its description."""
    # not now
    AWAITING_WINDOW = "awaiting_window"
    NO_WINDOW = "no_window"
    HELD = "held_by_safeguard"
    CLOCK_UNSURE = "clock_unsure"
    """The clock was set, and no server has said yet what time it is."""
    CONTENT_UNAVAILABLE = "content_unavailable"
    # what came of it
    APPLIED = "applied"
    APPLY_FAILED = "apply_failed"
    HEALTH_FAILED = "health_failed"
    CRASHED = "crashed"
    REVERTED = "reverted"
    REVERT_FAILED = "revert_failed"
    RESTART_NEEDED = "restart_needed"
    STAGING_FAILED = "staging_failed"
