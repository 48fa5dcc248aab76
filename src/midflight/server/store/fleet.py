"""What every decision needs, kept in memory by each process: catalogue, policies, groups, holds, live deployments.

Each kind has a stamp in the database, counted up by whoever changes something of it (``meta.bump``). A process reads
the five stamps with every decision and loads anew what has changed, so that it never decides by what is gone."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain import model as m
from midflight.server.domain import offers
from midflight.server.domain.audience import Group, Groups
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.safeguards import Safeguard
from midflight.server.store import convert
from midflight.server.store.catalogue import Content, ContentCve, ContentImage
from midflight.server.store.devices import Group as GroupRow
from midflight.server.store.meta import Stamp
from midflight.server.store.policies import ApprovalRow, Deployment, Hold, Policy


@dataclass(frozen=True, slots=True)
class Live:
    """A deployment that says something to devices."""

    deployment: m.Deployment
    policy: m.Policy
    """With the rings that the deployment began with."""
    content: m.Content
    plan: offers.Plan


@dataclass(frozen=True, slots=True)
class Fleet:
    """One consistent picture."""

    stamps: Mapping[str, int] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=Catalogue)
    content_ids: Mapping[str, str] = field(default_factory=dict)
    """By sha256 of the file."""
    policies: Mapping[str, m.Policy] = field(default_factory=dict)
    groups: Groups = field(default_factory=lambda: Groups(()))
    """Those with a rule; listed members stand in the table."""
    holds: Sequence[Safeguard] = ()
    live: Mapping[str, Live] = field(default_factory=dict)
    by_policy: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ids of live deployments."""
    deployed: frozenset[tuple[str, str]] = frozenset()
    """Policies and the contents that were ever deployed under them."""


class FleetCache:
    """Keeps the picture of a process up to date; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fleet = Fleet()

    def get(self, session: Session) -> Fleet:
        """The picture as of now, in this transaction."""
        stamps = dict(session.execute(select(Stamp.name, Stamp.value)).all())
        fleet = self._fleet
        if fleet.stamps == stamps:
            return fleet
        with self._lock:
            fleet = self._fleet
            if fleet.stamps != stamps:
                fleet = load(session, fleet, stamps)
                self._fleet = fleet
            return fleet


def load(session: Session, before: Fleet, stamps: Mapping[str, int]) -> Fleet:
    """A new picture; what has not changed is taken from the one before."""

    def changed(name: str) -> bool:
        return before.stamps.get(name) != stamps.get(name)

    after = replace(before, stamps=stamps)
    if changed("catalogue"):
        contents = load_contents(session)
        after = replace(
            after, catalogue=Catalogue(contents), content_ids={content.sha256: content.id for content in contents}
        )
    if changed("policies"):
        after = replace(after, policies={row.id: convert.policy_of(row) for row in session.scalars(select(Policy))})
    if changed("groups"):
        rows = session.scalars(select(GroupRow).where(GroupRow.rule != ""))
        after = replace(after, groups=Groups(Group(row.id, row.name, rule=row.rule) for row in rows))
    if changed("holds"):
        rows_held = session.scalars(select(Hold).where(Hold.lifted.is_(None)))
        after = replace(after, holds=tuple(convert.safeguard_of(row) for row in rows_held))
    if changed("deployments") or changed("policies") or changed("catalogue"):
        after = _with_deployments(session, after)
    return after


def load_contents(session: Session) -> list[m.Content]:
    """All content, revoked content too."""
    images: dict[str, list[str]] = defaultdict(list)
    for content, build_id in session.execute(select(ContentImage.content_id, ContentImage.build_id)):
        images[content].append(build_id)
    cves: dict[str, list[m.Cve]] = defaultdict(list)
    for row in session.scalars(select(ContentCve).order_by(ContentCve.cve)):
        cves[row.content_id].append(m.Cve(row.cve, row.cvss, m.Severity(row.severity), row.exploited))
    return [convert.content_of(row, images[row.id], cves[row.id]) for row in session.scalars(select(Content))]


def approvals_of(session: Session, deployments: Sequence[str]) -> dict[str, list[ApprovalRow]]:
    """What people said, by deployment."""
    found: dict[str, list[ApprovalRow]] = defaultdict(list)
    for row in session.scalars(select(ApprovalRow).where(ApprovalRow.deployment_id.in_(deployments))):
        found[row.deployment_id].append(row)
    return found


def _with_deployments(session: Session, fleet: Fleet) -> Fleet:
    rows = session.scalars(select(Deployment).where(Deployment.live)).all()
    pairs = session.execute(select(Deployment.policy_id, Deployment.content_id).distinct())
    deployed = frozenset((policy, content) for policy, content in pairs)
    approvals = approvals_of(session, [row.id for row in rows])
    live: dict[str, Live] = {}
    by_policy: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        policy, content = fleet.policies.get(row.policy_id), fleet.catalogue.contents.get(row.content_id)
        if policy is None or content is None:
            continue
        policy = convert.frozen_rings(policy, row)
        deployment = convert.deployment_of(row, approvals[row.id])
        live[row.id] = Live(deployment, policy, content, offers.compile_plan(deployment, policy, content))
        by_policy[row.policy_id].append(row.id)
    return replace(fleet, live=live, by_policy=by_policy, deployed=deployed)
