"""Counts that are kept agree with counting, whatever happened to the fleet, on both databases."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from sqlalchemy import text

from midflight.server.settings import Settings
from midflight.server.store import migrate, tallies
from midflight.server.store.database import Database
from midflight.server.work import upkeep
from midflight.server.work.tasks import Context
from midflight.trust.checkin import Restart, Violation
from tests.server.device import LIBC, NGINX, Device
from tests.server.postgresql import PostgreSQL
from tests.server.publisher import Publisher
from tests.server.test_rollout import Fleet

Make = Callable[..., Device]
AT = datetime(2026, 11, 26, tzinfo=UTC)


def rows(database: Database, statement: str) -> Counter[tuple[Any, ...]]:
    with database.read() as session:
        return Counter({tuple(row[:-1]): int(row[-1]) for row in session.execute(text(statement))})


def recounted(database: Database) -> dict[str, Any]:
    """By looking at every row."""
    devices: Counter[tuple[str | None, frozenset[str]]] = Counter()
    flags = "disabled IS NOT NULL, integrity_violated, restart_pending, EXISTS (SELECT 1 FROM device_patch p WHERE"
    statement = f"SELECT policy_id, {flags} p.device_id = id), COUNT(*) FROM device GROUP BY 1, 2, 3, 4, 5"
    for (policy, *found), count in rows(database, statement).items():
        words = zip(("disabled", "violated", "restart", "hotpatched"), found, strict=True)
        devices[policy, frozenset(word for word, true in words if true)] += count
    return {
        "devices": devices,
        "compliance": rows(database, "SELECT policy_id, state, hotpatched, COUNT(*) FROM compliance GROUP BY 1, 2, 3"),
        "members": rows(
            database,
            "SELECT deployment_id, ring, state, COUNT(*) FROM membership WHERE ring IS NOT NULL GROUP BY 1, 2, 3",
        ),
        "outcomes": rows(database, "SELECT result, COUNT(*) FROM outcome GROUP BY 1"),
        "stopped": sum(rows(database, "SELECT 1, COALESCE(SUM(stopped_us), 0) FROM device_patch").values()),
    }


def kept(database: Database) -> dict[str, Any]:
    """By what is kept."""
    with database.read() as session:
        policies = [*session.scalars(text("SELECT id FROM policy")), ""]
        deployments = session.scalars(text("SELECT id FROM deployment")).all()
        assert tallies.devices(session) == sum((tallies.devices(session, each) for each in policies), Counter())
        return {
            "devices": Counter(
                {(p or None, words): n for p in policies for words, n in tallies.devices(session, p).items()}
            ),
            "compliance": Counter(
                {
                    (p or None, state, hotpatched): n
                    for p in policies
                    for (state, hotpatched), n in tallies.compliance(session, p).items()
                }
            ),
            "members": Counter(
                {(d, ring, state): n for d in deployments for (ring, state), n in tallies.members(session, d).items()}
            ),
            "outcomes": Counter({(result,): n for result, n in tallies.outcomes(session).items()}),
            "stopped": tallies.stopped_us(session),
        }


class History:
    """A fleet to which things happen at random, each by a real request or by real background work."""

    def __init__(self, fleet: Fleet, new_device: Make, seed: int) -> None:
        self.fleet, self.new_device, self.draw = fleet, new_device, random.Random(seed)
        self.devices = [new_device() for _ in range(4)]
        self.policy = fleet.policy()
        self.deployment, self.content = fleet.deploy(self.policy)

    @property
    def any(self) -> Device:
        return self.draw.choice(self.devices)

    def step(self) -> str:
        acts = (
            self.check_in, self.carry_out, self.carry_out, self.report, self.disable, self.enable, self.work, self.work,
            self.newcomer, self.edit_policy, self.ask, self.fold, self.prune,
        )  # fmt: skip
        act = self.draw.choice(acts)
        act()
        return act.__name__

    def check_in(self) -> None:
        self.any.check_in()

    def carry_out(self) -> None:
        device = self.any
        device.check_in()
        if not device.orders:
            return
        result = "reverted" if device.orders[0][0] == "revert" else self.draw.choice(("applied", "applied", "failed"))
        outcome = device.outcome(result, processes=4, stopped_us=self.draw.randrange(1, 500))  # type: ignore[arg-type]
        device.runs_nothing()
        if result == "applied":
            device.runs("nginx", 1, self.content.sha256)
        device.check_in([outcome])

    def report(self) -> None:
        device = self.any
        violations = (Violation(NGINX.build_id, NGINX.path, "nginx 7", "text differs", AT),)
        device.state = replace(
            device.state,
            violations=self.draw.choice(((), violations)),
            restart=Restart(self.draw.random() < 0.5, ""),
        )
        device.inventory = self.draw.choice(((NGINX, LIBC), (LIBC,)))
        device.check_in()

    def disable(self) -> None:
        self.fleet.post(f"/devices/{self.any.id}/disable", 204, reason="test")

    def enable(self) -> None:
        self.fleet.post(f"/devices/{self.any.id}/enable", 204)

    def work(self) -> None:
        self.fleet.ahead += timedelta(seconds=self.draw.choice((1, 3600, 90_000)))
        self.fleet.work()

    def newcomer(self) -> None:
        if len(self.devices) < 8:
            self.devices.append(self.new_device(self.draw.choice(("web-x", "db-x"))))

    def edit_policy(self) -> None:
        answer = self.fleet.admin.get(f"/api/v1/policies/{self.policy}")
        document = answer.json()["document"]
        group = self.fleet.get("/groups")["items"][0]["id"]
        document["audience"] = {"groups": [group], "excluded": self.draw.choice(([], [group]))}
        body = {"name": "web", "document": document}
        headers = {"If-Match": answer.headers["etag"]}
        assert self.fleet.admin.put(f"/api/v1/policies/{self.policy}", json=body, headers=headers).status_code == 200

    def ask(self) -> None:
        word = self.draw.choice(("pause", "resume", "resume", "revert"))
        self.fleet.admin.post(f"/api/v1/deployments/{self.deployment}/{word}", json={})

    def fold(self) -> None:
        upkeep.fold(self.fleet.context.database)

    def prune(self) -> None:
        upkeep.prune(self.fleet.context.database, self.fleet.context.settings, self.fleet.now)


@pytest.mark.parametrize("seed", range(4))
def test_counts_agree_with_a_recount_after_whatever_happened(
    seed: int, admin: TestClient, database: Database, settings: Settings, publisher: Publisher, new_device: Make
) -> None:
    history = History(Fleet(admin, Context(database, settings), publisher), new_device, seed)
    done = []
    for _ in range(40):
        done.append(history.step())
        assert kept(database) == recounted(database), f"seed {seed}: after {done}"
    upkeep.fold(database)
    assert kept(database) == recounted(database)
    with database.read() as session:
        key = "what, owner, ring, value"
        several = session.execute(text(f"SELECT {key} FROM tally GROUP BY {key} HAVING COUNT(*) > 1")).all()
        assert several == [], "folded into one row each"
    total = admin.get("/api/v1/compliance").json()["total"]
    assert total == len(history.devices)


def test_counts_hold_while_others_write_and_fold(database: Database, new_device: Make) -> None:
    devices = [new_device(report=False).id for _ in range(6)]
    states = ("compliant", "noncompliant", "stale")
    over = threading.Event()
    failed: list[BaseException] = []

    def write(mine: list[str], seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            with database.write() as session:
                values = {"state": draw.choice(states), "hotpatched": draw.random() < 0.5, "id": draw.choice(mine)}
                session.execute(
                    text("UPDATE compliance SET state = :state, hotpatched = :hotpatched WHERE device_id = :id"), values
                )

    def fold() -> None:
        while not over.is_set():
            upkeep.fold(database)

    def look() -> None:
        while not over.is_set():
            with database.read() as session:
                assert sum(tallies.compliance(session).values()) == len(devices), "never between two rows"

    def guarded(act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except BaseException as error:
            failed.append(error)

    others = [threading.Thread(target=guarded, args=(act,)) for act in (fold, fold, look)]
    writers = [threading.Thread(target=guarded, args=(write, devices[n::3], n)) for n in range(3)]
    for thread in (*others, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    assert not failed
    assert kept(database)["compliance"] == recounted(database)["compliance"]


@pytest.fixture(params=["sqlite", "postgresql"])
def before(request: pytest.FixtureRequest, tmp_path: Path, postgresql: PostgreSQL) -> Iterator[Database]:
    """A database as the version before left it."""
    url = f"sqlite:///{tmp_path}/before.db" if request.param == "sqlite" else postgresql.create()
    database = Database(url)
    config = migrate._config()
    with database.engine.connect().execution_options(writing=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    yield database
    database.close()


def test_an_upgrade_counts_what_is_there(before: Database) -> None:
    now = int(datetime.now(UTC).timestamp() * 1e6)
    same = {
        "machine_id": "m", "token_id": "t", "platform": "linux-x86_64", "kernel": "6", "agent": "1", "timezone": "UTC",
        "boot_id": "b", "memory_free_mib": 1, "tags": "{}", "state_digest": "", "inventory_digest": "", "sequence": 1,
        "restart_pending": False, "enrolled": now, "lifted": "[]", "disabled_reason": "", "governance": "",
        "governance_detail": "", "version": 1,
    }  # fmt: skip

    def insert(session: Any, table: str, **values: Any) -> None:
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        session.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)

    with before.write() as session:
        for n in range(10):
            id = f"dev-{n}"
            disabled = now if n == 9 else None
            insert(session, "device", id=id, hostname=f"web-{n}", integrity_violated=n < 2, disabled=disabled, **same)
            insert(
                session, "compliance", device_id=id, state="compliant" if n % 2 else "stale", reason="", detail="",
                hotpatched=n % 3 == 0, since=now, evaluated=now,
            )  # fmt: skip
            insert(session, "compliance_change", device_id=id, at=now, state="stale", before="", reason="", detail="")
        for n in range(3):
            insert(
                session, "device_patch", device_id=f"dev-{n}", sha256="ab", build_id="b", name="n", sequence=1,
                processes=1, missing=0, stopped_us=100 + n,
            )  # fmt: skip
        insert(
            session, "outcome", device_id="dev-1", action="a", result="applied", reason="", detail="", processes=1,
            stopped_us=1, at=now, received=now,
        )  # fmt: skip
    assert migrate.upgrade(before) == ("0002", migrate.newest())
    assert kept(before) == recounted(before)
    found = kept(before)
    assert found["devices"][None, frozenset({"violated", "hotpatched"})] == 2
    assert found["devices"][None, frozenset({"hotpatched"})] == 1
    assert found["devices"][None, frozenset({"disabled"})] == 1
    assert found["stopped"] == 303
    with before.write() as session:
        session.execute(text("UPDATE compliance SET state = 'unknown' WHERE device_id = 'dev-0'"))
        session.execute(text("DELETE FROM device_patch WHERE device_id = 'dev-2'"))
        session.execute(text("UPDATE device SET hotpatched = false WHERE id = 'dev-2'"))
    assert kept(before) == recounted(before)


def test_an_empty_database_is_upgraded_to_no_counts(before: Database) -> None:
    migrate.upgrade(before)
    with before.read() as session:
        assert session.scalar(text("SELECT COUNT(*) FROM tally")) == 0
