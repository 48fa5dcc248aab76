"""Bring a database to the tables that this program needs (Alembic, shipped inside the package)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from midflight.server.store.database import Database, DatabaseError

_LOCK = 0x6D696466  # pg_advisory_lock: two that upgrade at once wait for each other


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def newest() -> str:
    """The revision that this program needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current(database: Database) -> str | None:
    """The revision of the database; None when it is empty."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database) -> tuple[str | None, str]:
    """Upgrade to the newest revision, in one transaction. Returns the revisions before and after."""
    before = current(database)
    options = {"writing": True}
    with database.engine.connect().execution_options(**options) as connection, connection.begin():
        if not database.sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        _run(connection)
    return before, newest()


def _run(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def require_newest(database: Database) -> None:
    """Refuse to work on tables of another version.

    Raises:
        DatabaseError: the database is older or newer than this program.
    """
    database.check()
    found, wanted = current(database), newest()
    if found == wanted:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is None or found in known:
        raise DatabaseError(f"the database is at version {found or 'none'}, not {wanted}; run midflight server upgrade")
    raise DatabaseError(f"the database is of a newer version ({found}) than this program ({wanted}); upgrade Midflight")
