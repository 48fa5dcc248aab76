"""Whether content may be deployed: by rule after a delay, by one person, or by two.

(After Graph's ``contentApprovalRule`` with ``durationBeforeDeploymentStart``, and the four-eyes principle.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from midflight.server.domain.model import Approval, ApprovalMode, ApprovalRule, Content, Ring
from midflight.server.domain.reasons import Reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """``approved``, or the reason why not (yet). ``at``: when time alone will approve it."""

    approved: bool
    reason: Reason | None = None
    detail: str = ""
    at: datetime | None = None


APPROVED = Verdict(True)


def rule_for(rules: Iterable[ApprovalRule], content: Content) -> ApprovalRule | None:
    """The first rule that matches a content; none: a person has to approve it."""
    for rule in rules:
        if (
            content.kind in rule.kinds
            and content.classification in rule.classifications
            and rule.min_severity.rank <= content.severity.rank <= rule.max_severity.rank
        ):
            return rule
    return None


def content_approved(
    rules: Iterable[ApprovalRule], content: Content, approvals: Sequence[Approval], now: datetime
) -> Verdict:
    """Whether a deployment of this content may start.

    A person's rejection outweighs any rule and any approval of others, until the same person approves. A person's
    approval shortens the delay of an automatic rule.
    """
    rule = rule_for(rules, content)
    mode = rule.mode if rule else ApprovalMode.MANUAL
    said = _said(approvals, None)
    if mode is ApprovalMode.AUTOMATIC and rule and not said:
        at = content.published + rule.delay
        return (
            APPROVED if now >= at else Verdict(False, Reason.SCHEDULED_FOR_DELAY, f"until {at:%Y-%m-%d %H:%M %Z}", at)
        )
    verdict = _people(said, ApprovalMode.MANUAL if mode is ApprovalMode.AUTOMATIC else mode)
    if rule is None and verdict.reason is Reason.AWAITING_APPROVAL:
        return Verdict(False, Reason.NO_APPROVAL_RULE)
    return verdict


def ring_approved(ring: Ring, index: int, approvals: Sequence[Approval]) -> Verdict:
    """Whether a ring may begin, once the gate before it has passed."""
    said = _said(approvals, index)
    if ring.mode is ApprovalMode.AUTOMATIC and all(said.values()):
        return APPROVED
    return _people(said, ring.mode)


def _said(approvals: Sequence[Approval], ring: int | None) -> dict[str, bool]:
    """Each person's last word."""
    ordered = sorted((a for a in approvals if a.ring == ring), key=lambda a: a.at)
    return {approval.person: approval.approved for approval in ordered}


def _people(said: dict[str, bool], mode: ApprovalMode) -> Verdict:
    against = sorted(person for person, word in said.items() if not word)
    if against:
        return Verdict(False, Reason.APPROVAL_REJECTED, f"by {', '.join(against)}")
    if not said:
        return Verdict(False, Reason.AWAITING_APPROVAL)
    if mode is ApprovalMode.TWO_PERSON and len(said) < 2:
        return Verdict(False, Reason.AWAITING_SECOND_APPROVAL, f"{next(iter(said))} approved")
    return APPROVED
