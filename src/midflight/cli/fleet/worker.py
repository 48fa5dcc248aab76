"""midflight server worker: do background work, with PostgreSQL."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output
from midflight.errors import InputError

HELP = """\
Does the background work of a server on PostgreSQL (rollouts, gates, silence, compliance, deliveries, freshness of the
repository) until it is stopped. Run as many as you like, on any machine that has the server's folder: each task is
done by one of them at a time, and one that is killed leaves nothing that another does not take up.

On SQLite there is no worker: midflight server run does all in one process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    import asyncio

    from midflight.server.settings import Settings
    from midflight.server.store import tables  # noqa: F401 - all tables, before the first session
    from midflight.server.store.database import Database
    from midflight.server.store.migrate import require_newest
    from midflight.server.work.queue import work
    from midflight.server.work.tasks import Context

    settings = Settings.load(args.folder)
    if settings.sqlite:
        raise InputError("a worker needs PostgreSQL; on SQLite, midflight server run does the background work itself")
    database = Database(settings.database_url)
    try:
        require_newest(database)
        out.line("working, stop with Ctrl-C")
        asyncio.run(work(Context(database, settings)))
    finally:
        database.close()
    return 0
