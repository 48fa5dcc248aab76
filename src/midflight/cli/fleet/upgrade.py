"""midflight server upgrade: bring the database to the version of this program."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output

HELP = """\
Brings the tables of the database to the version that this program needs, in one transaction: all of it is done, or
nothing. Stop the server's processes first; back up the database before a new major version."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.server.outputs import keys as output_keys
    from midflight.server.settings import Settings
    from midflight.server.store.database import Database
    from midflight.server.store.migrate import upgrade

    settings = Settings.load(args.folder)
    output_keys.create(settings)  # those that an older version did not have
    database = Database(settings.database_url)
    try:
        database.check()
        before, after = upgrade(database)
        if not database.sqlite:
            from midflight.server.work.queue import ensure_schema

            ensure_schema(database)
    finally:
        database.close()
    out.line(f"database at version {after}" + ("" if before == after else f", was {before or 'empty'}"))
    out.result({"before": before, "after": after})
    return 0
