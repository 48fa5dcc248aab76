"""Devices: who they are, what they reported last, and what was said to them last.

The row of ``answer`` is the lock of a device: whoever changes what a device is to be told takes it first
(docs/adr/0076)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, false, text
from sqlalchemy.orm import Mapped, mapped_column

from midflight.server.store.base import Base


class EnrollToken(Base):
    """An invitation; only the hash of the token is kept."""

    __tablename__ = "enroll_token"

    id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    label: Mapped[str]
    tags: Mapped[dict[str, Any]]
    """Tags that a device gets that enrolls with it."""
    created: Mapped[datetime]
    created_by: Mapped[str]
    expires: Mapped[datetime]
    uses_left: Mapped[int]
    revoked: Mapped[datetime | None]


class Device(Base):
    """A device and its state as it was reported last."""

    __tablename__ = "device"
    __table_args__ = (
        Index("ix_device_hostname", "hostname", "id"),
        Index("ix_device_machine", "machine_id"),
        Index("ix_device_policy", "policy_id", "id"),
        Index("ix_device_enrolled", "enrolled"),
        Index(
            "ix_device_disabled",
            "hostname",
            "id",
            postgresql_where=text("disabled IS NOT NULL"),
            sqlite_where=text("disabled IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    machine_id: Mapped[str]
    token_id: Mapped[str]
    """The invitation that it came with."""
    hostname: Mapped[str]
    platform: Mapped[str]
    kernel: Mapped[str]
    agent: Mapped[str]
    timezone: Mapped[str]
    boot_id: Mapped[str]
    memory_free_mib: Mapped[int | None]
    tags: Mapped[dict[str, Any]]
    state: Mapped[dict[str, Any] | None]
    """The last state document (midflight.trust.checkin)."""
    state_digest: Mapped[str]
    inventory_digest: Mapped[str]
    sequence: Mapped[int]
    """Highest sequence of a request that changed something."""
    reported: Mapped[datetime | None]
    """When state or inventory changed last."""
    integrity_violated: Mapped[bool]
    restart_pending: Mapped[bool]
    hotpatched: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Some hotpatch runs on it."""
    enrolled: Mapped[datetime]
    lifted: Mapped[list[str]]
    """sha256 of content whose bar on this device a person lifted; the device hears of it and forgets the bar."""
    disabled: Mapped[datetime | None]
    disabled_reason: Mapped[str]
    policy_id: Mapped[str | None] = mapped_column(ForeignKey("policy.id"))
    """The policy that governs it, when exactly one does."""
    governance: Mapped[str]
    """Why none does: a Reason, or empty."""
    governance_detail: Mapped[str]
    version: Mapped[int] = mapped_column(default=1)
    """Of what administrators edit (tags, disabled), for If-Match."""


class Certificate(Base):
    """A certificate that was issued; requests name it by its fingerprint."""

    __tablename__ = "certificate"
    __table_args__ = (Index("ix_certificate_device", "device_id"),)

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    public_key: Mapped[bytes]
    not_before: Mapped[datetime]
    not_after: Mapped[datetime]
    pem: Mapped[str]
    revoked: Mapped[datetime | None]
    revoked_reason: Mapped[str | None]


class Presence(Base):
    """When a device was seen last; written in batches, a few seconds late, and narrow so that this costs little."""

    __tablename__ = "presence"
    __table_args__ = {"postgresql_with": {"fillfactor": "70"}}  # noqa: RUF012 - read by SQLAlchemy

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    last_seen: Mapped[datetime]


class Answer(Base):
    """What a device was told last, and until when that needs no second thought."""

    __tablename__ = "answer"
    __table_args__ = (
        Index("ix_answer_regroup", "device_id", postgresql_where=text("regroup"), sqlite_where=text("regroup")),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    sequence: Mapped[int]
    """Of the instructions that were signed last; 0: none."""
    digest: Mapped[str]
    """Of their content but for times of issue and expiry."""
    expires: Mapped[int]
    """When those instructions end (microseconds)."""
    until: Mapped[int]
    """From then on (microseconds) they are decided anew; 0: at the next check-in."""
    interval_s: Mapped[int]
    regroup: Mapped[bool]
    """Its groups and its policy must be looked for again."""


class Image(Base):
    """An image that some device reported: the dictionary that keeps the inventories narrow."""

    __tablename__ = "image"
    __table_args__ = (
        Index("ix_image_identity", "build_id", "path", "package", "version", unique=True),
        Index("ix_image_package", "package", "version"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    build_id: Mapped[str]
    path: Mapped[str]
    package: Mapped[str]
    version: Mapped[str]


class DeviceImage(Base):
    """An image in a device's inventory."""

    __tablename__ = "device_image"
    __table_args__ = (Index("ix_device_image_image", "image_id", "device_id"),)

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True)
    processes: Mapped[int]


class DevicePatch(Base):
    """A hotpatch that runs on a device, as read from process memory."""

    __tablename__ = "device_patch"
    __table_args__ = (Index("ix_device_patch_sha256", "sha256", "device_id"),)

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    build_id: Mapped[str] = mapped_column(primary_key=True)
    content_id: Mapped[str | None]
    name: Mapped[str]
    sequence: Mapped[int]
    processes: Mapped[int]
    missing: Mapped[int]
    stopped_us: Mapped[int]


class Outcome(Base):
    """What came of an action on a device; one row for each action and result, however often it was reported."""

    __tablename__ = "outcome"
    __table_args__ = (Index("ix_outcome_deployment", "deployment_id", "result"), Index("ix_outcome_at", "at"))

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    action: Mapped[str] = mapped_column(primary_key=True)
    result: Mapped[str] = mapped_column(primary_key=True)
    deployment_id: Mapped[str | None]
    content_id: Mapped[str | None]
    reason: Mapped[str]
    detail: Mapped[str]
    processes: Mapped[int]
    stopped_us: Mapped[int]
    at: Mapped[datetime]
    """By the device's clock."""
    received: Mapped[datetime]


class Group(Base):
    """A group of devices, by list or by rule."""

    __tablename__ = "device_group"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    rule: Mapped[str]
    """Expression of midflight.server.domain.audience; empty for a list."""
    created: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class GroupMember(Base):
    """A device in a group: listed by a person, or found by the rule."""

    __tablename__ = "group_member"
    __table_args__ = (Index("ix_group_member_device", "device_id"),)

    group_id: Mapped[str] = mapped_column(ForeignKey("device_group.id", ondelete="CASCADE"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    listed: Mapped[bool]
