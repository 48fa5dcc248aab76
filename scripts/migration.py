"""``python -m scripts.migration NAME``: write the migration from the newest revision to the tables as they are in the
code.

A fresh SQLite database is brought to the newest revision and compared with ``Base.metadata``. The file must be read
and mended by hand: what moves data cannot be guessed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext

from midflight.server.store import migrate, tables
from midflight.server.store.base import Base, Instant
from midflight.server.store.database import Database

FOLDER = Path(tables.__file__).parent / "migrations" / "versions"

HEAD = '''"""{text}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "{revision}"
down_revision = {down}
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """To this version."""
'''


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    if kind == "type" and isinstance(item, Instant):
        return "sa.BigInteger()"
    if kind == "type" and str(item) == "JSON":
        return "JSON"
    return False


def main(name: str) -> int:
    """Write the file; returns the exit status."""
    down = migrate.newest()
    revision = f"{int(down or 0) + 1:04d}"
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/new.db")
        if down:
            migrate.upgrade(database)
        with database.engine.connect() as connection:
            options = {"target_metadata": Base.metadata, "render_item": _render, "render_as_batch": True}
            context = MigrationContext.configure(connection, opts=options)
            operations = produce_migrations(context, Base.metadata).upgrade_ops
            if operations is None or operations.is_empty():
                print("the tables are as the newest revision makes them")
                return 1
            body = render_python_code(operations, migration_context=context, render_item=_render, render_as_batch=True)
        database.close()
    lines = [line for line in body.splitlines() if "commands auto generated" not in line and "end Alembic" not in line]
    text = name.replace("-", " ").replace("_", " ").capitalize()
    path = FOLDER / f"{revision}_{name.replace('-', '_')}.py"
    head = HEAD.format(text=text, revision=revision, down=f'"{down}"' if down else None)
    path.write_text(head + "\n".join("    " + line.removeprefix("    ") for line in lines) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
