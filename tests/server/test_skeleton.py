"""A server from nothing: made by init, upgraded, and answering only those it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi.testclient import TestClient
from sqlalchemy import select

from midflight.cli.main import main
from midflight.server.api.app import create_app
from midflight.server.settings import Settings
from midflight.server.store import events
from midflight.server.store.base import Base
from midflight.server.store.database import Database


def test_migrations_make_the_tables_that_the_code_has(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_an_event_exists_if_and_only_if_its_transaction_is_committed(database: Database) -> None:
    with database.write() as session:
        events.publish(session, "test.kept", {"n": 1}, subject="a")
    with pytest.raises(RuntimeError), database.write() as session:
        events.publish(session, "test.lost", {})
        session.flush()
        raise RuntimeError("the change fails")
    with database.read() as session:
        assert [event.kind for event in session.scalars(select(events.Event))] == ["test.kept"]


def test_init_makes_a_server_that_serves_its_administrator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "server"
    assert main(["server", "init", str(folder), "--json"]) == 0
    token = json.loads(capsys.readouterr().out)["bootstrap_token"]
    assert (folder / "server.toml").stat().st_mode & 0o777 == 0o600
    assert token not in "".join(p.read_bytes().decode("latin-1") for p in folder.glob("*") if p.is_file())
    with TestClient(create_app(Settings.load(folder))) as client:
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/readyz").json() == {"status": "ready"}
    assert main(["server", "init", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_setting_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.toml").write_text("intervall = 5\n")
    assert main(["server", "upgrade", str(tmp_path)]) == 2
    assert "intervall" in capsys.readouterr().err
