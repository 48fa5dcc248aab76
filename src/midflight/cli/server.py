"""midflight server: run the control plane of a fleet."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.subcommands import add_subcommands
from midflight.errors import InputError

PACKAGE = "fleet"
SUBCOMMANDS = {
    "init": "make a server: settings, database, keys, repository",
    "run": "serve devices, administrators and the console",
    "user": "accounts of people: add, list, password, roles, disable, enable",
    "token": "API tokens for programs: add, list, revoke",
    "audit-verify": "prove that the audit log is the one that was written",
    "enroll-token": "make a token with which devices enroll",
    "worker": "do background work, with PostgreSQL",
    "install": "run it from now on, as a service of systemd",
    "uninstall": "stop the service and take it away; its folder stays",
    "upgrade": "bring the database to the version of this program",
}

HELP = """\
The control plane: enrolls devices, tells each which hotpatch it gets and when, and keeps account of what came of it.
One command runs everything on SQLite; with PostgreSQL, any number of processes share the work."""

EXAMPLES = """\
midflight server init /srv/midflight
midflight server run /srv/midflight
midflight server install /srv/midflight"""

EXIT_STATUS = """\
0  done
1  the server or its database failed
2  bad usage or bad settings"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add_subcommands(parser, PACKAGE, SUBCOMMANDS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    try:
        return int(args.module.run(args, out))
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "midflight":
            raise
        raise InputError(
            f"the server needs Python packages that are not here ({error.name}); pip install 'midflight[server]'"
        ) from None
