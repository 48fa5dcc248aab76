"""Small facts about this installation: its identity, the bootstrap token, the stamp of what was decided last."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from midflight.server.store.base import Base


class Meta(Base):
    """A named value."""

    __tablename__ = "meta"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Stamp(Base):
    """How often something was changed that every process keeps in memory (see midflight.server.store.fleet)."""

    __tablename__ = "stamp"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


STAMPS = ("catalogue", "policies", "groups", "deployments", "holds")


def bump(session: Session, *names: str) -> None:
    """Say that something of these kinds was changed. Written when the transaction is committed, as the last thing of
    it: whoever changes the same kind waits for it, and must not hold anything that this one still wants."""
    unknown = set(names) - set(STAMPS)
    if unknown:
        raise ValueError(f"no stamps {unknown}")
    session.info.setdefault("stamps", set()).update(names)


def write_stamps(session: Session) -> None:
    """Write what :func:`bump` noted (called before each commit)."""
    names = sorted(session.info.pop("stamps", ()))
    if not names:
        return
    session.flush()
    for name in names:
        done = session.execute(update(Stamp).where(Stamp.name == name).values(value=Stamp.value + 1))
        if not cast("CursorResult[Any]", done).rowcount:
            session.add(Stamp(name=name, value=1))
            session.flush()


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
