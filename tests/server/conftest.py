"""A server's database for tests, on SQLite and on a real PostgreSQL, and the app on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from midflight.server.api.app import create_app
from midflight.server.api.deps import make_bootstrap_token
from midflight.server.outputs import keys as output_keys
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.migrate import upgrade
from tests.server.postgresql import PostgreSQL


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL for the session."""
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def _template(postgresql: PostgreSQL) -> str:
    """A database with all tables, to copy: faster than to migrate each."""
    url = postgresql.create()
    database = Database(url)
    upgrade(database)
    database.close()
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with all tables and no rows; the test runs once for each kind."""
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path}/midflight.db")
        upgrade(made)
    else:
        template = request.getfixturevalue("_template")
        made = Database(request.getfixturevalue("postgresql").create(template))
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path, database: Database) -> Settings:
    """Settings of a server on that database."""
    made = Settings.of(
        tmp_path, {"database": database.url.render_as_string(hide_password=False), "embedded_worker": False}
    )
    output_keys.create(made)
    return made


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    """The application."""
    return create_app(settings, database)


@pytest.fixture
def admin_token(database: Database) -> str:
    """A token that may do everything."""
    with database.write() as session:
        return make_bootstrap_token(session)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Somebody that nobody knows."""
    with TestClient(app) as client:
        yield client


@pytest.fixture
def admin(app: FastAPI, admin_token: str) -> Iterator[TestClient]:
    """The administrator."""
    with TestClient(app, headers={"Authorization": f"Bearer {admin_token}"}) as client:
        yield client
