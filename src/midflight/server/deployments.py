"""Making deployments: by a person, or by an approval rule when content appears."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain import approvals
from midflight.server.domain import model as m
from midflight.server.domain.reasons import Reason
from midflight.server.store import events, meta
from midflight.server.store.base import new_id
from midflight.server.store.documents import audience_json, rings_json
from midflight.server.store.fleet import Fleet
from midflight.server.store.policies import Deployment, Policy


def create(
    session: Session,
    content: m.Content,
    policy: m.Policy,
    actor: str,
    now: datetime,
    *,
    starts: datetime | None = None,
    expedite: bool = False,
    audience: m.Audience | None = None,
) -> Deployment:
    """A new deployment; background work looks for its devices and starts it."""
    row = Deployment(
        id=new_id("dpl"),
        content_id=content.id,
        policy_id=policy.id,
        created=now,
        created_by=actor,
        starts=starts or now,
        requested=m.Requested.NONE.value,
        paused_since=None,
        paused_until=None,
        effective=m.Effective.SCHEDULED.value,
        reason=Reason.SCHEDULED_FOR_START.value,
        detail="",
        since=now,
        ring=0,
        ring_since=None,
        first_offer=None,
        accepted=[],
        expedite=expedite,
        audience=audience_json(audience),
        rings=rings_json(policy.rings),
        live=True,
        populated=None,
        version=1,
    )
    session.add(row)
    data = {"content": content.id, "policy": policy.id, "starts": row.starts.isoformat(), "expedite": expedite}
    events.publish(session, "deployment.created", data, subject=row.id, actor=actor, at=now)
    meta.bump(session, "deployments")
    return row


def propose(session: Session, fleet: Fleet, now: datetime) -> list[str]:
    """Make the deployments that the approval rules of policies ask for: the newest content of each package and kind
    that a rule matches and that the policy has not deployed. The rule's delay, and people's approval, come after.
    """
    taken = set(session.execute(select(Deployment.content_id, Deployment.policy_id)).all())
    created = dict(session.execute(select(Policy.id, Policy.created)).all())
    newest: dict[tuple[str, m.ContentKind], m.Content] = {}
    for content in fleet.catalogue.contents.values():
        gone = content.revoked is not None or (content.deployable_until is not None and content.deployable_until <= now)
        key = (content.package, content.kind)
        if not gone and (key not in newest or newest[key].sequence < content.sequence):
            newest[key] = content
    made = []
    for policy in fleet.policies.values():
        for content in newest.values():
            # what was published before the policy was made, a person deploys
            if (content.id, policy.id) in taken or content.published < created[policy.id]:
                continue
            if approvals.rule_for(policy.approvals, content) is not None:
                made.append(create(session, content, policy, "midflight", now).id)
    return made
