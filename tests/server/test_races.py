"""Two writers that lock each other up on a real PostgreSQL: the one that loses is carried out again, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from midflight.server.access.tables import AuditEntry
from midflight.server.api.retry import ATTEMPTS
from midflight.server.store.database import Database
from midflight.server.store.devices import GroupMember
from midflight.server.store.events import Event
from tests.server.device import Device

on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
LOCK = text("SELECT device_id FROM answer WHERE device_id = :id FOR UPDATE")
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :query")


class Rival:
    """Another writer, who takes the locks of two devices the wrong way round, so that the server's request loses."""

    def __init__(self, database: Database, first: str, second: str) -> None:
        self._database, self._first, self._second = database, first, second

    def collide(self, request: Callable[[], Any]) -> Any:
        """Let the request wait for what is held here, then wait for what it holds; what the request returns."""
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(request()))
        with self._database.engine.connect() as connection, connection.begin():
            # whoever finds the deadlock first gives way: this one looks later
            connection.execute(text("SET LOCAL deadlock_timeout = '30s'"))
            connection.execute(LOCK, {"id": self._second})
            thread.start()
            self._wait_for_another()
            connection.execute(LOCK, {"id": self._first})
        thread.join()
        return answers[0]

    def _wait_for_another(self) -> None:
        deadline = time.monotonic() + 30
        with self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.scalar(WAITING, {"query": "%answer%"}):
                assert time.monotonic() < deadline, "the request never waited"
                time.sleep(0.01)


@on_postgresql
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "a-key-of-the-test"}])
def test_a_request_that_loses_a_deadlock_is_carried_out_once_all_the_same(
    key: dict[str, str], admin: TestClient, database: Database, new_device: Callable[..., Device]
) -> None:
    first, second = sorted(new_device(report=False).id for _ in range(2))
    group = admin.post("/api/v1/groups", json={"name": "both"}).json()["id"]

    def request() -> Any:
        return admin.post(f"/api/v1/groups/{group}/members", json={"devices": [first, second]}, headers=key)

    answer = Rival(database, first, second).collide(request)
    assert (answer.status_code, answer.json()) == (200, {"changed": 2})
    with database.read() as session:
        assert sorted(session.scalars(select(GroupMember.device_id))) == [first, second]
        assert len(session.scalars(select(Event).where(Event.kind == "group.listed")).all()) == 1
        acts = session.scalars(select(AuditEntry).where(AuditEntry.action.like("%/members"))).all()
        assert [act.outcome for act in acts] == ["done"]
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        session.execute(text("SELECT pg_stat_clear_snapshot()"))
        deadline = time.monotonic() + 30
        while not session.scalar(deadlocks):  # statistics come a moment later
            assert time.monotonic() < deadline, "there was no deadlock: this test tests nothing"
            time.sleep(0.05)
            session.rollback()


@on_postgresql
def test_who_loses_again_and_again_is_told_to_come_later(
    admin: TestClient, database: Database, new_device: Callable[..., Device]
) -> None:
    device = new_device(report=False).id
    group = admin.post("/api/v1/groups", json={"name": "both"}).json()["id"]
    with database.engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE tries"))
        connection.execute(
            text(
                "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('tries');"
                " RAISE EXCEPTION 'lost' USING ERRCODE = 'serialization_failure'; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON group_member DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION lose()"
            )
        )
    answer = admin.post(f"/api/v1/groups/{group}/members", json={"devices": [device]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    with database.read() as session:
        assert session.scalar(text("SELECT last_value FROM tries")) == ATTEMPTS
        assert session.scalars(select(GroupMember)).all() == []
