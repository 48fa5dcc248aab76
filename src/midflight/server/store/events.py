"""The outbox: what happened, written in the same transaction as the change itself, so that neither is without the
other.

Whoever delivers events (webhooks, CAEP, SIEM, live pages) takes rows with ``dispatched`` unset, oldest first, under
:func:`midflight.server.store.database.claimed`, hands them to its own queue and sets ``dispatched``. Ids are not a
cursor: on PostgreSQL a smaller id may become visible after a larger one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from midflight.server.store.base import Base


class Event(Base):
    """One thing that happened."""

    __tablename__ = "event"
    __table_args__ = (
        Index(
            "ix_event_waiting",
            "id",
            postgresql_where=text("dispatched IS NULL"),
            sqlite_where=text("dispatched IS NULL"),
        ),
        Index("ix_event_subject", "subject", "id"),
        Index("ix_event_kind", "kind", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    uid: Mapped[str]
    """Globally unique; the same in every delivery."""
    kind: Mapped[str]
    """Dotted, past tense: ``device.enrolled``, ``deployment.paused``, ``patch.applied``."""
    at: Mapped[datetime]
    subject: Mapped[str]
    """The id of what it is about (a device, a deployment, a policy, …); empty when it is about the server."""
    actor: Mapped[str]
    """Who did it: an actor's id, or ``midflight`` when the server did it by itself."""
    data: Mapped[dict[str, Any]]
    dispatched: Mapped[datetime | None]


def publish(
    session: Session,
    kind: str,
    data: Mapping[str, Any],
    *,
    subject: str = "",
    actor: str = "midflight",
    at: datetime | None = None,
) -> Event:
    """Write an event in this transaction; it exists if and only if the transaction is committed."""
    event = Event(
        uid=str(uuid.uuid4()), kind=kind, at=at or datetime.now(UTC), subject=subject, actor=actor, data=dict(data)
    )
    session.add(event)
    return event
