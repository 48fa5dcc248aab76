"""What the commands share that administer a server from its own machine."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@contextmanager
def administering(
    folder: Path, action: str = "", target: str = "", detail: Mapping[str, Any] | None = None
) -> Iterator[tuple[Session, datetime]]:
    """A session on the server's database, and the time; with an action it writes, and the audit log says so.

    Raises:
        InputError: there is no server in the folder.
        DatabaseError: its database does not answer, or is of another version.
    """
    from midflight.server.access import audit
    from midflight.server.settings import Settings
    from midflight.server.store import tables
    from midflight.server.store.database import Database
    from midflight.server.store.migrate import require_newest

    assert tables.ALL
    database = Database(Settings.load(folder).database_url, 1)
    try:
        require_newest(database)
        with database.write() if action else database.read() as session:
            if action:
                who = f"console:{operator_name()}"
                audit.record(session, audit.Act("console", who, "", action, target, detail=detail))
            yield session, datetime.now(UTC)
    finally:
        database.close()


def operator_name() -> str:
    """Who sits at this machine, for the audit log: the login's name, through sudo too."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
