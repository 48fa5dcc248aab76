"""Whether a device is compliant: judged by what runs in its memory, as last reported, and by nothing else.

- A report that is older than the policy's validity says nothing: stale is not compliant.
- No policy is no compliance; nor is a conflict of policies, or a report that contradicts itself.
- A required fix counts when it runs, by hotpatch or from disk; both kinds of device stand side by side.
- Until the grace is over a missing fix is tolerated, and said so.

(States after Graph's ``complianceStatus``: unknown, compliant, noncompliant, conflict, error, inGracePeriod; with
stale and unassigned, which Intune by default counts as compliant.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from midflight.server.domain.audience import Governance
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.model import ComplianceState, Content, ContentKind, Device, Policy
from midflight.server.domain.reasons import Reason

ADMITTED = frozenset({ComplianceState.COMPLIANT, ComplianceState.IN_GRACE})
"""What conditional access lets in."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A content that a policy requires, and since when: from its deployment's first offer on."""

    content: Content
    since: datetime


@dataclass(frozen=True, slots=True)
class Missing:
    """A required fix that does not run; tolerated until ``until``."""

    content: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Compliance:
    """A device's compliance. ``until``: when time alone will make it worse (validity or grace runs out)."""

    state: ComplianceState
    reason: Reason
    policy: str | None = None
    detail: str = ""
    missing: tuple[Missing, ...] = ()
    until: datetime | None = None
    hotpatched: bool = False
    """Some required fix runs by hotpatch alone: it is not on disk yet."""

    @property
    def admitted(self) -> bool:
        """May conditional access let it in?"""
        return self.state in ADMITTED


def required(policy: Policy, started: Iterable[tuple[Content, datetime]]) -> list[Requirement]:
    """What a policy requires.

    Args:
        policy: its compliance rule says from which severity on.
        started: the contents of its deployments with the time of their first offer. Revoked content is not required;
            leave out deployments that were reverted: nobody is to be blamed for lacking what was ordered out.
    """
    lowest = policy.compliance.min_severity.rank
    return [
        Requirement(content, since)
        for content, since in started
        if content.revoked is None and content.severity.rank >= lowest
    ]


def evaluate(
    device: Device, governance: Governance, requirements: Sequence[Requirement], catalogue: Catalogue, now: datetime
) -> Compliance:
    """A device's compliance now.

    Args:
        device: as last reported.
        governance: the policy that governs it.
        requirements: of that policy (:func:`required`).
        catalogue: all content.
        now: the time.
    """
    policy = governance.policy
    if policy is None:
        conflict = governance.reason is Reason.POLICY_CONFLICT
        state = ComplianceState.CONFLICT if conflict else ComplianceState.UNASSIGNED
        return Compliance(state, governance.reason or Reason.UNASSIGNED, None, governance.detail)
    if device.last_seen is None or device.images is None:
        return Compliance(ComplianceState.UNKNOWN, Reason.NEVER_REPORTED, policy.id)
    valid = device.last_seen + policy.compliance.validity
    if device.disabled:
        return Compliance(ComplianceState.NONCOMPLIANT, Reason.DEVICE_DISABLED, policy.id)
    if now >= valid:
        return Compliance(
            ComplianceState.STALE, Reason.STALE, policy.id, f"last seen {device.last_seen:%Y-%m-%d %H:%M %Z}"
        )
    if device.report_faulty:
        return Compliance(ComplianceState.ERROR, Reason.REPORT_FAULTY, policy.id)
    if device.integrity_violated:
        return Compliance(ComplianceState.NONCOMPLIANT, Reason.INTEGRITY_VIOLATED, policy.id)
    missing, hotpatched = _missing(device, requirements, catalogue, policy.compliance.grace)
    if not missing:
        reason = Reason.UP_TO_DATE_HOTPATCHED if hotpatched else Reason.UP_TO_DATE_RESTARTED
        return Compliance(ComplianceState.COMPLIANT, reason, policy.id, until=valid, hotpatched=hotpatched)
    first = min(each.until for each in missing)
    late = now >= first
    return Compliance(
        ComplianceState.NONCOMPLIANT if late else ComplianceState.IN_GRACE,
        Reason.FIX_MISSING if late else Reason.IN_GRACE,
        policy.id,
        ", ".join(each.content for each in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
        tuple(missing),
        None if late else min(first, valid),
        hotpatched,
    )


def _missing(
    device: Device, requirements: Sequence[Requirement], catalogue: Catalogue, grace: timedelta
) -> tuple[list[Missing], bool]:
    fixes = catalogue.fixes(device)
    missing: list[Missing] = []
    hotpatched = False
    for requirement in requirements:
        content = requirement.content
        fix = catalogue.fixed_by(device, content, fixes)
        if fix is None:
            if not catalogue.concerns(device, content.package):
                continue
            # a device that is new has the whole time from then on
            since = max(requirement.since, device.enrolled or requirement.since)
            missing.append(Missing(content.id, since + grace))
        elif fix.kind is ContentKind.HOTPATCH:
            hotpatched = True
    return missing, hotpatched


@dataclass(frozen=True, slots=True)
class Span:
    """A line of a device's history: how it stood, from when to when (None: still)."""

    state: ComplianceState
    reason: Reason
    policy: str | None
    begin: datetime
    end: datetime | None = None


def history(spans: Sequence[Span], compliance: Compliance, now: datetime) -> tuple[Span, ...] | None:
    """The history after an evaluation; None: nothing changed, nothing to write."""
    last = spans[-1] if spans else None
    if last and (last.state, last.reason, last.policy) == (compliance.state, compliance.reason, compliance.policy):
        return None
    closed = (*spans[:-1], replace(last, end=now)) if last else ()
    return (*closed, Span(compliance.state, compliance.reason, compliance.policy, now))


@dataclass(frozen=True, slots=True)
class Overview:
    """How the devices of a fleet or a policy stand, hotpatched and restarted ones side by side."""

    states: Counter[ComplianceState]
    hotpatched: int
    restarted: int

    @property
    def share(self) -> float:
        """Of all devices, how many are compliant; whoever is stale or unassigned counts as not. 0 to 1."""
        total = sum(self.states.values())
        return self.states[ComplianceState.COMPLIANT] / total if total else 0.0


def overview(all: Iterable[Compliance]) -> Overview:
    """Count."""
    states: Counter[ComplianceState] = Counter()
    hotpatched = restarted = 0
    for each in all:
        states[each.state] += 1
        if each.state is ComplianceState.COMPLIANT:
            hotpatched += each.hotpatched
            restarted += not each.hotpatched
    return Overview(states, hotpatched, restarted)
