"""A server's database for tests, on SQLite and on a real PostgreSQL, and the app on top of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from midflight.server import keys
from midflight.server.api.app import create_app
from midflight.server.api.deps import make_bootstrap_token
from midflight.server.enrollment import invite
from midflight.server.outputs import keys as output_keys
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.migrate import upgrade
from midflight.trust.keys import load_public_key
from tests.server.device import Device
from tests.server.postgresql import PostgreSQL
from tests.server.publisher import Publisher


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


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables, to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "midflight.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For tests of what does not depend on the database: SQLite is enough."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with all tables and no rows; the test runs once for each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_template"), tmp_path / "midflight.db")
        made = Database(f"sqlite:///{tmp_path}/midflight.db")
    else:
        template = request.getfixturevalue("_template")
        made = Database(request.getfixturevalue("postgresql").create(template))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that name one set of keys, made once."""
    folder = tmp_path_factory.mktemp("keys")
    names = ("ca_key", "ca_certificate", "instruction_key", "tls_key", "tls_certificate")
    values = {name: str(folder / name) for name in names}
    keys.create(Settings.of(folder, values))
    return values


@pytest.fixture
def settings(tmp_path: Path, database: Database, server_keys: dict[str, str]) -> Settings:
    """Settings of a server on that database."""
    made = Settings.of(
        tmp_path,
        {"database": database.url.render_as_string(hide_password=False), "embedded_worker": False, **server_keys},
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


@pytest.fixture
def publisher(settings: Settings) -> Publisher:
    """A published repository, and who publishes to it."""
    return Publisher(settings.path(settings.repository))


@pytest.fixture
def new_device(
    client: TestClient, database: Database, settings: Settings, tmp_path: Path, publisher: Publisher
) -> Callable[..., Device]:
    """Makes devices that are enrolled and have reported."""
    key = load_public_key(settings.path(settings.instruction_key).with_suffix(".pub"))
    count = iter(range(1000))

    def make(name: str | None = None, report: bool = True, tags: dict[str, str] | None = None) -> Device:
        number = next(count)
        with database.write() as session:
            _, token = invite(session, "test", datetime.now(UTC), tags=tags)
        device = Device(client, tmp_path / f"device-{number}", key, name or f"web-{number}")
        assert device.enroll(token).status_code == 200
        if report:
            device.check_in()
        return device

    return make
