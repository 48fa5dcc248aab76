"""Why things are as they are: every state that a person can see carries one of these.

A reason is a stable machine-readable word, a text for people, and an owner: who has to do something, if anybody.
After the ``deploymentStateReason`` of Microsoft Graph, and the alerts of Autopatch, which name their owner.
"""

from __future__ import annotations

from enum import StrEnum


class Owner(StrEnum):
    """Who has to act next."""

    ADMINISTRATOR = "administrator"
    MIDFLIGHT = "midflight"
    """Nobody: it goes on by itself."""
    DEVICE = "device"
    """The device, or whoever looks after it: it must come back, be updated, be restarted."""


_A, _M, _D = Owner.ADMINISTRATOR, Owner.MIDFLIGHT, Owner.DEVICE


class Reason(StrEnum):
    """A machine-readable reason. ``text`` is for people; ``owner`` says who acts next."""

    text: str
    owner: Owner

    def __new__(cls, value: str, owner: Owner, text: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.owner = owner
        member.text = text
        return member

    # -- a deployment as a whole
    SCHEDULED_FOR_START = "scheduled_for_start", _M, "starts at its start time"
    SCHEDULED_FOR_DELAY = "scheduled_for_delay", _M, "approved by rule once the delay has passed"
    AWAITING_APPROVAL = "awaiting_approval", _A, "waits for a person's approval"
    AWAITING_SECOND_APPROVAL = "awaiting_second_approval", _A, "waits for a second person's approval"
    APPROVAL_REJECTED = "approval_rejected", _A, "a person rejected it"
    NO_APPROVAL_RULE = "no_approval_rule", _A, "no approval rule of the policy matches it; a person must approve it"
    OFFERING_RING = "offering_ring", _M, "the ring in progress is being offered the content"
    AWAITING_SAMPLE = "awaiting_sample", _D, "the gate has not seen enough devices of the ring yet"
    SOAKING = "soaking", _M, "the gate has its sample and waits for the soak time to pass"
    PAUSED_BY_REQUEST = "paused_by_request", _A, "a person paused it; a person resumes it"
    PAUSED_UNTIL = "paused_until", _M, "paused until the time that was set, then goes on by itself"
    PAUSED_BY_POLICY = "paused_by_policy", _A, "the policy is paused"
    HALTED_BY_FAILURES = "halted_by_failures", _A, "failures went beyond the gate's limit; only a person resumes it"
    HALTED_BY_SILENCE = (
        "halted_by_silence",
        _A,
        "too many devices fell silent after the offer or after their success; only a person resumes it",
    )
    STOPPED_BY_REQUEST = "stopped_by_request", _A, "a person stopped it for good"
    REVERTING_BY_REQUEST = "reverting_by_request", _M, "a person ordered it to be taken out"
    REVERTING_BY_GATE = "reverting_by_gate", _M, "the gate halted it and the policy orders it to be taken out"
    DONE_OFFERED = "done_offered", _M, "every ring's gate has passed; newcomers still get it"
    DONE_REVERTED = "done_reverted", _M, "no device that reports runs it any more"
    FAULTED_REVOKED = "faulted_revoked", _A, "the content was revoked; this is final"
    FAULTED_OUTDATED = "faulted_outdated", _A, "the content's last day of deployment has passed"
    FAULTED_SUPERSEDED = "faulted_superseded", _M, "newer content replaces it"
    AUDIENCE_EMPTY = "audience_empty", _A, "no device of the audience can take it yet"

    # -- one device in a deployment
    OFFERED = "offered", _M, "offered; the device has not answered yet"
    OFFERED_IN_WINDOW = "offered_in_window", _M, "offered, inside the maintenance window"
    OFFERED_EXPEDITED = "offered_expedited", _M, "offered at once: expedited, no window is waited for"
    OFFERED_PAST_DEADLINE = (
        "offered_past_deadline",
        _M,
        "offered at once: its deadline has passed, no window is waited for",
    )
    AWAITING_WINDOW = "awaiting_window", _M, "offered, and waits for the next maintenance window"
    AWAITING_RING = "awaiting_ring", _M, "its ring is not reached yet, or it has not asked since"
    AWAITING_START = "awaiting_start", _M, "the deployment has not started"
    NO_WINDOW = "no_window", _A, "none of the policy's maintenance windows ever opens again"
    DOWNLOADING = "downloading", _M, "the device is fetching it"
    APPLIED = "applied", _M, "runs in all processes that need it"
    APPLY_FAILED = "apply_failed", _D, "the device could not apply it; nothing was changed"
    HEALTH_FAILED = "health_failed", _A, "reverted by itself after a failed health check; barred until someone looks"
    CRASHED = "crashed", _A, "a patched process crashed; reverted and barred until someone looks"
    REVERT_ORDERED = "revert_ordered", _M, "the device was told to take it out"
    REVERTED = "reverted", _M, "taken out by order"
    REVERT_FAILED = "revert_failed", _A, "the device could not take it out"
    BARRED = "barred", _A, "failed on this device before; barred here until someone looks"
    HELD_BY_SAFEGUARD = (
        "held_by_safeguard",
        _A,
        "a known-bad combination: held until the safeguard is lifted or expires",
    )
    EXCLUDED = "excluded", _A, "in an excluded group; exclusion wins"
    ABSENT = "absent", _D, "has not been seen since its ring began; no answer of it is waited for"
    SILENT = "silent", _D, "not heard of since it was offered it, or since it applied it"
    SUPERSEDED = "superseded", _M, "newer content replaces it"
    DEVICE_DISABLED = "device_disabled", _A, "the device is disabled"
    WITHDRAWN = "withdrawn", _M, "was offered before the deployment was paused, halted, stopped or revoked"
    FALLBACK = "fallback", _D, "cannot have the hotpatch; gets the baseline instead (a restart)"
    RESTART_NEEDED = "restart_needed", _D, "staged; takes effect at the next restart"

    # -- eligibility
    NOT_AFFECTED = "not_affected", _M, "the device has nothing that the content changes"
    WRONG_PLATFORM = "wrong_platform", _M, "the content is for another platform"
    KERNEL_TOO_OLD = "kernel_too_old", _D, "needs a newer kernel"
    AGENT_TOO_OLD = "agent_too_old", _D, "needs a newer agent"
    BASELINE_NOT_CURRENT = "baseline_not_current", _D, "runs another baseline; gets the baseline first (a restart)"
    BASELINE_OFF_TRACK = (
        "baseline_off_track",
        _M,
        "runs a baseline without hotpatches; gets baselines until the next common one",
    )
    MEMORY_LOW = "memory_low", _D, "not enough free memory"
    HOTPATCH_DISABLED = "hotpatch_disabled", _A, "its policy turns hotpatches off; gets the baseline (a restart)"
    NO_INVENTORY = "no_inventory", _D, "has not reported its inventory yet"
    NOT_IN_AUDIENCE = "not_in_audience", _A, "in none of the groups of the audience"
    POLICY_CONFLICT = "policy_conflict", _A, "several policies of equal priority claim the device; it gets nothing new"

    # -- compliance
    UNASSIGNED = "unassigned", _A, "no policy covers the device; this is not compliance"
    NEVER_REPORTED = "never_reported", _D, "enrolled, and has never reported its state"
    STALE = "stale", _D, "its last report is older than the policy's validity"
    UP_TO_DATE_HOTPATCHED = "up_to_date_hotpatched", _M, "all required fixes run, by hotpatch"
    UP_TO_DATE_RESTARTED = "up_to_date_restarted", _M, "all required fixes run, from disk"
    IN_GRACE = "in_grace", _D, "a required fix is missing, within the time that the policy grants"
    FIX_MISSING = "fix_missing", _D, "a required fix is missing beyond the time that the policy grants"
    INTEGRITY_VIOLATED = "integrity_violated", _A, "code in memory is neither what is on disk nor what the ledger says"
    REPORT_FAULTY = "report_faulty", _A, "the device's report contradicts itself"
