"""Two-person approval: who asked for something is not one of those who approve it; pure but for its errors."""

from __future__ import annotations

from midflight.server.api.deps import Actor
from midflight.server.api.problems import Problem
from midflight.server.domain import model as m
from midflight.server.domain.approvals import rule_for


def demands_two(policy: m.Policy, content: m.Content, ring: int | None) -> bool:
    """Whether a policy demands two persons for a content (or, with ``ring``, for one of its rings)."""
    if ring is not None:
        return 0 <= ring < len(policy.rings) and policy.rings[ring].mode is m.ApprovalMode.TWO_PERSON
    rule = rule_for(policy.approvals, content)
    return rule is not None and rule.mode is m.ApprovalMode.TWO_PERSON


def approver(actor: Actor, requester: str, two: bool, approved: bool) -> str:
    """Who speaks, as it is kept beside the approval: the person, whichever of their logins it is.

    Args:
        requester: who asked for the deployment.
        two: two persons are demanded.
        approved: rejecting is open to everybody who may approve, the requester too.

    Raises:
        Problem: 403, in a two-person approval by the requester, or by nobody in particular.
    """
    if two and approved:
        if not actor.person:
            raise Problem(403, "no-person", "two persons must approve this; sign in with an account of your own")
        if actor.person == requester:
            raise Problem(403, "own-request", "you asked for this deployment; two others must approve it")
    return actor.person or actor.id
