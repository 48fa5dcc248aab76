"""Small facts about this installation: its identity, the bootstrap token, the stamp of what was decided last."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, Session, mapped_column

from midflight.server.store.base import Base


class Meta(Base):
    """A named value."""

    __tablename__ = "meta"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


def read(session: Session, name: str) -> str | None:
    """The value, or None."""
    found = session.get(Meta, name)
    return found.value if found else None


def write(session: Session, name: str, value: str | None) -> None:
    """Set the value, or (None) take it away."""
    found = session.get(Meta, name)
    if value is None:
        if found is not None:
            session.delete(found)
    elif found is None:
        session.add(Meta(name=name, value=value))
    else:
        found.value = value
