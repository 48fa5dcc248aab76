"""midflight server uninstall: take the service of the server away."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output

HELP = """\
Stops the services that midflight server install made, and removes their units. The server's folder and its database
stay as they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command: there are none."""


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.server import service

    paths = service.uninstall()
    out.result({"removed": [str(path) for path in paths]})
    for path in paths:
        out.line(f"removed: {path}")
    return 0
