"""The catalogue: content as the TUF repository describes it.

Rows of content are made from verified targets metadata alone (midflight.server.catalogue); nobody edits them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from midflight.server.store.base import Base


class Content(Base):
    """A hotpatch or a baseline. Immutable but for its revocation."""

    __tablename__ = "content"
    __table_args__ = (
        Index("ix_content_package", "package", "sequence"),
        Index("ix_content_published", "published", "id"),
        Index("ix_content_sha256", "sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """``KIND:NAME:SEQUENCE``."""
    kind: Mapped[str]
    name: Mapped[str]
    package: Mapped[str]
    sequence: Mapped[int]
    path: Mapped[str]
    sha256: Mapped[str]
    length: Mapped[int]
    classification: Mapped[str]
    severity: Mapped[str]
    cvss: Mapped[float | None]
    description: Mapped[str]
    published: Mapped[datetime]
    """When this server saw it first."""
    deployable_until: Mapped[datetime | None]
    supersedes: Mapped[list[str]]
    details: Mapped[dict[str, Any]]
    """Platforms, minimal versions, package of a baseline, whether a baseline is on the hotpatch track."""
    revoked: Mapped[datetime | None]
    revoked_reason: Mapped[str]
    revoked_revert: Mapped[bool]
    """The revocation asks for it to be taken out where it runs."""
    missing: Mapped[bool]
    """It is no longer in the repository: it is kept for history, and never offered."""
    version: Mapped[int] = mapped_column(default=1)
    """Of what administrators edit (``deployable_until``, ``details``, which CVEs are exploited)."""


class ContentImage(Base):
    """A build-id that a hotpatch patches or a baseline installs."""

    __tablename__ = "content_image"
    __table_args__ = (Index("ix_content_image_build", "build_id"),)

    content_id: Mapped[str] = mapped_column(ForeignKey("content.id"), primary_key=True)
    build_id: Mapped[str] = mapped_column(primary_key=True)


class ContentCve(Base):
    """A vulnerability that content fixes."""

    __tablename__ = "content_cve"
    __table_args__ = (Index("ix_content_cve_cve", "cve"),)

    content_id: Mapped[str] = mapped_column(ForeignKey("content.id"), primary_key=True)
    cve: Mapped[str] = mapped_column(primary_key=True)
    cvss: Mapped[float | None]
    severity: Mapped[str]
    exploited: Mapped[bool]
