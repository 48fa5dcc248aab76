"""Alembic's entry: runs on the connection that ``midflight.server.store.migrate`` hands over."""

from alembic import context

from midflight.server.store import tables  # noqa: F401 - all tables, known to Base
from midflight.server.store.base import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
context.run_migrations()
