"""Writes and reads the audit log.

An entry is written when the transaction it belongs to is committed, in that transaction: what was done and the record
of it are both there or neither. Writers take turns from then until the commit ends (on PostgreSQL by an advisory lock;
on SQLite there is one writer anyhow), so the chain never forks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from midflight.server.access.auditchain import GENESIS, AuditBroken, Entry, Head, verify
from midflight.server.access.tables import AuditEntry

MAX_DETAIL = 4096
"""Characters of an entry's detail; what is longer is cut, and says so."""
_LOCK = 0x6D666175  # pg_advisory_xact_lock: one writer at a time
_WAITING = "audit_waiting"
_HIDDEN = ("password", "secret", "token", "csr", "private", "cookie")


@dataclass(frozen=True, slots=True)
class Act:
    """What is going to be recorded."""

    actor_kind: str
    """``user``, ``token``, ``bootstrap``, ``console`` (the machine's own command line) or ``nobody``."""
    actor: str
    source: str
    """The address that the request came from, or empty."""
    action: str
    """Dotted name of what was done: ``account.create``, or method and path of a route."""
    target: str = ""
    outcome: str = "done"
    """``done`` or ``refused``."""
    detail: Mapping[str, Any] | None = None


def record(session: Session, act: Act) -> None:
    """Let the entry be written when this session commits; rolled back, there is none."""
    session.info.setdefault(_WAITING, []).append(act)


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    acts: list[Act] = session.info.pop(_WAITING, [])
    if acts:
        session.flush()
        _append(session, acts)


@event.listens_for(Session, "after_soft_rollback")
def _forget(session: Session, _previous: Any) -> None:
    session.info.pop(_WAITING, None)


def _append(session: Session, acts: Iterable[Act]) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    last = head(session)
    for act in acts:
        entry = Entry(
            sequence=last.sequence + 1,
            at=datetime.now(UTC),
            actor_kind=act.actor_kind,
            actor=act.actor,
            source=act.source,
            action=act.action,
            target=_short(act.target),
            outcome=act.outcome,
            detail=_detail(act.detail),
            previous=last.hash,
        )
        last = Head(entry.sequence, entry.hash())
        session.add(_row(entry, last.hash))
    session.flush()


def head(session: Session) -> Head:
    """Where the log stands."""
    row = session.execute(
        select(AuditEntry.sequence, AuditEntry.hash).order_by(AuditEntry.sequence.desc()).limit(1)
    ).one_or_none()
    return Head(row.sequence, row.hash) if row else Head(0, GENESIS)


def check(session: Session, known: Iterable[Head] = ()) -> Head:
    """Verify the whole log; returns its head.

    Raises:
        AuditBroken: see :func:`midflight.server.access.auditchain.verify`.
    """
    return verify(_entries(session), known)


def _entries(session: Session) -> Iterator[tuple[Entry, str]]:
    statement = select(AuditEntry).order_by(AuditEntry.sequence).execution_options(yield_per=1000)
    for row in session.scalars(statement):
        yield entry_of(row), row.hash


def entry_of(row: AuditEntry) -> Entry:
    """The entry of a row."""
    return Entry(
        row.sequence,
        row.at,
        row.actor_kind,
        row.actor,
        row.source,
        row.action,
        row.target,
        row.outcome,
        row.detail,
        row.previous,
    )


def _row(entry: Entry, own: str) -> AuditEntry:
    return AuditEntry(
        sequence=entry.sequence,
        at=entry.at,
        actor_kind=entry.actor_kind,
        actor=entry.actor,
        source=entry.source,
        action=entry.action,
        target=entry.target,
        outcome=entry.outcome,
        detail=entry.detail,
        previous=entry.previous,
        hash=own,
    )


def redacted(value: Any, depth: int = 0) -> Any:
    """The value with secrets hidden (by the names of members), cut where it is too deep to be of use to a reader."""
    if depth > 8:
        return "…"
    if isinstance(value, dict):
        return {
            str(name)[:100]: "hidden" if _hides(str(name)) and item is not None else redacted(item, depth + 1)
            for name, item in list(value.items())[:200]
        }
    if isinstance(value, list):
        return [redacted(item, depth + 1) for item in value[:200]]
    return value[:1000] if isinstance(value, str) else value


def _hides(name: str) -> bool:
    lower = name.lower()
    return any(word in lower for word in _HIDDEN)


def _detail(detail: Mapping[str, Any] | None) -> str:
    if not detail:
        return ""
    whole = json.dumps(redacted(dict(detail)), sort_keys=True, default=str)
    if len(whole) <= MAX_DETAIL:
        return whole
    return json.dumps({"cut": whole[: MAX_DETAIL - 200], "length": len(whole)})


def _short(target: str) -> str:
    # PostgreSQL's text holds no NUL, and a lone surrogate is no UTF-8
    return target[:300].encode("utf-8", "replace").decode().replace("\0", "\ufffd")


__all__ = ["Act", "AuditBroken", "check", "entry_of", "head", "record", "redacted"]
