"""The audit log: reading it, and its head to be kept elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import select

from midflight.server.access import audit, audithead
from midflight.server.access.auditchain import stamp
from midflight.server.access.tables import AuditEntry
from midflight.server.api.deps import Actor, AppSettings, DbSession, require
from midflight.server.api.scopes import Scope
from midflight.server.outputs import keys

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@router.get("")
def list_entries(
    session: DbSession,
    _actor: Annotated[Actor, require(Scope.AUDIT_READ)],
    before: Annotated[int | None, Query(ge=1, le=2**62, description="only entries of lower sequence")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    actor: Annotated[str | None, Query(max_length=100)] = None,
    target: Annotated[str | None, Query(max_length=300)] = None,
) -> dict[str, Any]:
    """Entries, newest first. ``next`` is the ``before`` of the next page."""
    statement = select(AuditEntry).order_by(AuditEntry.sequence.desc()).limit(limit)
    if before is not None:
        statement = statement.where(AuditEntry.sequence < before)
    if actor is not None:
        statement = statement.where(AuditEntry.actor == actor.replace("\0", "\ufffd"))
    if target is not None:
        statement = statement.where(AuditEntry.target == target.replace("\0", "\ufffd"))
    rows = list(session.scalars(statement))
    return {"items": [_entry(row) for row in rows], "next": rows[-1].sequence if len(rows) == limit else None}


@router.get("/head")
def head(
    request: Request, session: DbSession, settings: AppSettings, _actor: Annotated[Actor, require(Scope.AUDIT_READ)]
) -> dict[str, Any]:
    """Where the log stands. ``signed``, kept elsewhere, proves later that nothing was cut off or written anew."""
    found = audit.head(session)
    issuer, now = settings.public_url.rstrip("/"), datetime.now(UTC)
    text = audithead.signed(keys.of_request(request).jwt, found, issuer, now)
    return {"sequence": found.sequence, "hash": found.hash, "signed": text}


@router.get("/verification")
def verification(session: DbSession, _actor: Annotated[Actor, require(Scope.AUDIT_READ)]) -> dict[str, Any]:
    """Walk the whole log: whether each entry follows from the one before it, and where it does not."""
    now = datetime.now(UTC)
    try:
        found = audit.check(session)
    except audit.AuditBroken as error:
        return {"intact": False, "detail": str(error), "sequence": None, "hash": None, "verified": now}
    return {"intact": True, "detail": "", "sequence": found.sequence, "hash": found.hash, "verified": now}


def _entry(row: AuditEntry) -> dict[str, Any]:
    return {
        "sequence": row.sequence,
        "at": stamp(row.at),
        "actor_kind": row.actor_kind,
        "actor": row.actor,
        "source": row.source,
        "action": row.action,
        "target": row.target,
        "outcome": row.outcome,
        "detail": row.detail,
        "previous": row.previous,
        "hash": row.hash,
    }
