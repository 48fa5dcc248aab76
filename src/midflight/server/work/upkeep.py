"""Keeping house: the repository fresh and taken over, what is old thrown away."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import text

from midflight.server import catalogue, deployments
from midflight.server.repository import published_catalog, renew
from midflight.server.settings import Settings
from midflight.server.store import meta, tallies
from midflight.server.store.base import to_micros
from midflight.server.store.database import Database
from midflight.server.store.fleet import FleetCache

CHUNK = 5000
_IDEMPOTENCY = timedelta(days=2)
_TOKENS = timedelta(days=30)

_OLD = (
    ("event", "id IN (SELECT id FROM event WHERE at < :before AND dispatched IS NOT NULL LIMIT :limit)"),
    (
        "outcome",
        "(device_id, action, result) IN (SELECT device_id, action, result FROM outcome WHERE received < :before"
        " LIMIT :limit)",
    ),
    (
        "idempotency_key",
        "(actor, key) IN (SELECT actor, key FROM idempotency_key WHERE at < :before LIMIT :limit)",
    ),
    ("enroll_token", "id IN (SELECT id FROM enroll_token WHERE expires < :before LIMIT :limit)"),
    (
        "certificate",
        "fingerprint IN (SELECT fingerprint FROM certificate WHERE not_after < :before LIMIT :limit)",
    ),
)


def take_catalogue(database: Database, settings: Settings, now: datetime) -> catalogue.Taken:
    """Take over what was published to the repository since the last look."""
    catalog = published_catalog(settings)
    if catalog is None:
        return catalogue.Taken()
    with database.write() as session:
        return catalogue.take(session, catalog, now)


def propose(database: Database, cache: FleetCache, now: datetime) -> list[str]:
    """Make the deployments that approval rules ask for."""
    with database.write() as session:
        if not claim_task(session, "propose", now, timedelta(seconds=1)):
            return []
        return deployments.propose(session, cache.get(session), now)


def claim_task(session: object, name: str, now: datetime, every: timedelta) -> bool:
    """Whether this process is to do a task now that one of all shall do: by a row that is locked and has the last
    time."""
    from sqlalchemy.orm import Session

    assert isinstance(session, Session)
    key = f"task:{name}"
    session.execute(
        text("INSERT INTO meta (name, value) VALUES (:name, '0') ON CONFLICT (name) DO NOTHING"), {"name": key}
    )
    row = session.get(meta.Meta, key, with_for_update={"skip_locked": True})
    if row is None or to_micros(now) - int(row.value) < every / timedelta(microseconds=1):
        return False
    row.value = str(to_micros(now))
    return True


def renew_repository(settings: Settings, now: datetime) -> datetime | None:
    """Sign the repository's timestamp and snapshot anew where that is due. Returns when to call again."""
    return renew(settings, now)


def fold(database: Database) -> int:
    """Bring the counts that are kept into few rows; returns how many rows went."""
    count = 0
    while True:
        with database.write() as session:
            done = tallies.fold(session)
        count += done
        if done < tallies.FOLDED_AT_ONCE:
            return count


def prune(database: Database, settings: Settings, now: datetime) -> int:
    """Throw away what is old, some thousand rows at a time; returns how many rows."""
    ages = {
        "event": timedelta(days=settings.keep_events_days),
        "outcome": timedelta(days=settings.keep_outcomes_days),
        "idempotency_key": _IDEMPOTENCY,
        "enroll_token": _TOKENS,
        "certificate": _TOKENS,
    }
    count = 0
    for table, which in _OLD:
        while True:
            with database.write() as session:
                where = {"before": to_micros(now - ages[table]), "limit": CHUNK}
                done = session.connection().execute(text(f"DELETE FROM {table} WHERE {which}"), where).rowcount
            count += done
            if done < CHUNK:
                break
    return count
