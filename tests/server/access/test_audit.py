"""The audit log: what was written stays as it was written, and whoever changes it is found out."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError as SqlError

from midflight.server.access import audit
from midflight.server.access.audit import Act
from midflight.server.access.auditchain import GENESIS, AuditBroken, Entry, Head, verify
from midflight.server.store.database import Database
from midflight.server.store.migrate import upgrade


def act(number: int = 0, **detail: object) -> Act:
    return Act("user", "user:usr-1", "192.0.2.1", "policy.update", f"pol-{number}", detail=detail or None)


def test_entries_are_chained_and_an_undone_change_leaves_none(database: Database) -> None:
    with database.write() as session:
        audit.record(session, act(1, name="b", password="hunter2 hunter2", nested=[{"client_secret": "x"}]))
        audit.record(session, act(2))
    with pytest.raises(RuntimeError), database.write() as session:
        audit.record(session, act(3))
        raise RuntimeError("the change fails")
    with database.write() as session:
        audit.record(session, act(4))
    with database.read() as session:
        assert audit.check(session) == audit.head(session)
        assert audit.head(session).sequence == 3
        rows = session.execute(text("SELECT target, detail, previous FROM audit_entry ORDER BY sequence")).all()
    assert [row.target for row in rows] == ["pol-1", "pol-2", "pol-4"]
    assert rows[0].previous == GENESIS
    assert "hunter2" not in rows[0].detail and '"x"' not in rows[0].detail and '"name": "b"' in rows[0].detail


def test_writers_at_once_make_one_chain(database: Database) -> None:
    def write(number: int) -> None:
        for step in range(8):
            with database.write() as session:
                audit.record(session, act(number * 100 + step))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with database.read() as session:
        assert audit.check(session).sequence == 32


def test_the_database_refuses_to_change_it(database: Database) -> None:
    statements = [
        "UPDATE audit_entry SET actor = 'somebody else' WHERE sequence = 2",
        "DELETE FROM audit_entry WHERE sequence = 2",
        "DELETE FROM audit_entry",
        "INSERT OR REPLACE INTO audit_entry SELECT * FROM audit_entry WHERE sequence = 1"
        if database.sqlite
        else "TRUNCATE audit_entry",
    ]
    with database.write() as session:
        for number in range(3):
            audit.record(session, act(number))
    for statement in statements:
        with pytest.raises(SqlError, match="audit log cannot be changed"), database.write() as session:
            session.execute(text(statement))
    with database.read() as session:
        assert audit.check(session).sequence == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE audit_entry SET actor = 'user:usr-9' WHERE sequence = 2", "entry 2 was altered"),
        ("UPDATE audit_entry SET detail = '{}' WHERE sequence = 3", "entry 3 was altered"),
        ("DELETE FROM audit_entry WHERE sequence = 2", "missing before 3"),
        ("DELETE FROM audit_entry WHERE sequence = 1", "missing before 2"),
    ],
)
def test_who_gets_round_the_database_is_found_out(tmp_path: Path, damage: str, says: str) -> None:
    """With the triggers gone: what an intruder with the database's owner's rights can do."""
    path = tmp_path / "db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    with database.write() as session:
        for number in range(4):
            audit.record(session, act(number))
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER audit_entry_no_update")
        raw.execute("DROP TRIGGER audit_entry_no_delete")
        raw.execute(damage)
    with database.read() as session, pytest.raises(AuditBroken, match=says):
        audit.check(session)
    database.close()


def entries(count: int, actor: str = "user:usr-1") -> list[tuple[Entry, str]]:
    made: list[tuple[Entry, str]] = []
    previous = GENESIS
    for number in range(1, count + 1):
        at = datetime(2026, 1, 1, tzinfo=UTC)
        entry = Entry(number, at, "user", actor, "", "x", "", "done", "", previous)
        previous = entry.hash()
        made.append((entry, previous))
    return made


def test_a_log_cut_off_or_written_anew_does_not_fit_an_exported_head() -> None:
    log = entries(5)
    known = Head(5, log[4][1])
    assert verify(entries(5), [known]) == known
    with pytest.raises(AuditBroken, match="ends at entry 3"):
        verify(log[:3], [known])
    with pytest.raises(AuditBroken, match="written anew"):
        verify(entries(6, actor="user:intruder"), [known])
