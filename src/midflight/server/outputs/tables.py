"""What is kept of webhooks and of each delivery. Signing secrets are derived from a key outside the database."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from midflight.server.store.base import Base


class Webhook(Base):
    """Where events go."""

    __tablename__ = "webhook"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    format: Mapped[str]
    """``cloudevents``, ``ocsf`` or ``caep``."""
    kinds: Mapped[list[str]]
    """Kinds of events, each whole or with a ``*`` at its end."""
    audience: Mapped[str]
    """Of security event tokens (format ``caep``)."""
    enabled: Mapped[bool]
    disabled_reason: Mapped[str]
    generation: Mapped[int]
    """Which secret: each rotation counts on."""
    rotated: Mapped[datetime | None]
    created: Mapped[datetime]
    created_by: Mapped[str]
    failing_since: Mapped[datetime | None]
    quiet_until: Mapped[datetime | None] = mapped_column(default=None)
    """Until then its receiver wants nothing (Retry-After)."""
    last_success: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=1)


class WebhookDelivery(Base):
    """One event on its way to one webhook."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        Index(
            "ix_webhook_delivery_due",
            "due",
            postgresql_where=text("due IS NOT NULL"),
            sqlite_where=text("due IS NOT NULL"),
        ),
        Index("ix_webhook_delivery_event", "event_id"),
    )

    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"), primary_key=True)
    event_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True)
    attempts: Mapped[int]
    due: Mapped[datetime | None]
    """The next attempt; unset when it was delivered or given up."""
    delivered: Mapped[datetime | None]
    status: Mapped[int | None]
    """HTTP status of the last answer."""
    error: Mapped[str]
