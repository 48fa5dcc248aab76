"""Policies, deployments and safeguard holds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from midflight.server.store.base import Base


class Policy(Base):
    """What an administrator decided for an audience."""

    __tablename__ = "policy"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    priority: Mapped[int]
    document: Mapped[dict[str, Any]]
    """Everything else, as the API has it (midflight.server.api.policymodel)."""
    paused_since: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    created: Mapped[datetime]
    updated: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class Deployment(Base):
    """Content for the devices that a policy governs; requested and effective state are kept apart."""

    __tablename__ = "deployment"
    __table_args__ = (
        Index("ix_deployment_created", "created", "id"),
        Index("ix_deployment_policy", "policy_id"),
        Index("ix_deployment_content", "content_id", "policy_id"),
        Index("ix_deployment_live", "id", postgresql_where=text("live"), sqlite_where=text("live")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    content_id: Mapped[str] = mapped_column(ForeignKey("content.id"))
    policy_id: Mapped[str] = mapped_column(ForeignKey("policy.id"))
    created: Mapped[datetime]
    created_by: Mapped[str]
    starts: Mapped[datetime]
    requested: Mapped[str]
    paused_since: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    effective: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    since: Mapped[datetime]
    """Of the effective state."""
    ring: Mapped[int]
    ring_since: Mapped[datetime | None]
    first_offer: Mapped[datetime | None]
    """When its first ring was opened."""
    accepted: Mapped[list[int]] = mapped_column()
    """Per ring: bad outcomes that a person saw and accepted by resuming."""
    expedite: Mapped[bool]
    audience: Mapped[dict[str, Any] | None]
    rings: Mapped[list[dict[str, Any]]]
    """As the policy had them when the deployment was made: later edits do not move devices between rings."""
    live: Mapped[bool]
    """Background work looks at it."""
    populated: Mapped[datetime | None]
    """When its devices were looked for; newcomers come by themselves (at their check-in)."""
    version: Mapped[int] = mapped_column(default=1)


class DeploymentRing(Base):
    """How a ring stands, as background work saw it last (the truth is in ``membership``)."""

    __tablename__ = "deployment_ring"

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"), primary_key=True)
    ring: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    tally: Mapped[dict[str, Any]]
    """Number of devices by state."""
    sampled: Mapped[datetime | None]
    """When the success came that completed the gate's sample."""
    opened: Mapped[datetime | None]
    passed: Mapped[datetime | None]
    gate: Mapped[str]
    """What the gate says: a Reason."""
    counted: Mapped[datetime]


class Membership(Base):
    """One device in one deployment."""

    __tablename__ = "membership"
    __table_args__ = (
        Index("ix_membership_device", "device_id"),
        Index("ix_membership_state", "deployment_id", "ring", "state", "since"),
        {"postgresql_with": {"fillfactor": "85"}},
    )

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    ring: Mapped[int | None]
    """None: not (yet) eligible, so in no ring."""
    state: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    since: Mapped[datetime]
    offered: Mapped[datetime | None]


class ApprovalRow(Base):
    """A person's word on a deployment, or on one of its rings."""

    __tablename__ = "approval"

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"), primary_key=True)
    person: Mapped[str] = mapped_column(primary_key=True)
    ring: Mapped[int] = mapped_column(primary_key=True)
    """-1: the deployment as a whole."""
    approved: Mapped[bool]
    comment: Mapped[str]
    at: Mapped[datetime]


class Hold(Base):
    """A safeguard (midflight.server.domain.safeguards); an empty field fits everything."""

    __tablename__ = "safeguard"

    id: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    content: Mapped[str]
    package: Mapped[str]
    package_version: Mapped[str]
    baseline: Mapped[str]
    kernel: Mapped[str]
    platform: Mapped[str]
    agent: Mapped[str]
    source: Mapped[str]
    created: Mapped[datetime]
    created_by: Mapped[str]
    expires: Mapped[datetime | None]
    lifted: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=1)


class Compliance(Base):
    """What a device's compliance is now."""

    __tablename__ = "compliance"
    __table_args__ = (
        Index("ix_compliance_state", "state", "policy_id"),
        Index("ix_compliance_policy", "policy_id", "device_id"),
        Index("ix_compliance_until", "until"),
        Index("ix_compliance_due", "due"),
    )

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    policy_id: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    hotpatched: Mapped[bool]
    """Some required fix runs by hotpatch alone."""
    since: Mapped[datetime]
    until: Mapped[datetime | None]
    """When time alone will make it worse."""
    due: Mapped[datetime | None]
    """Since when it is to be judged anew, because something else changed; until that is done, the last word holds."""
    evaluated: Mapped[datetime]


class ComplianceChange(Base):
    """A change of a device's compliance: the history."""

    __tablename__ = "compliance_change"
    __table_args__ = (Index("ix_compliance_change_at", "at"),)

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    state: Mapped[str]
    before: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    policy_id: Mapped[str | None]


class IdempotencyKey(Base):
    """The answer to a POST that had an Idempotency-Key: the same request again gets the same answer, and does
    nothing."""

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_key_at", "at"),)

    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]
    """sha256 of method, path and body."""
    status: Mapped[int]
    body: Mapped[bytes]
    at: Mapped[datetime]
