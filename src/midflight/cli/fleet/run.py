"""midflight server run: serve devices, administrators and the console."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output

HELP = """\
Serves devices, the API and the console until it is stopped (SIGTERM or Ctrl-C). On SQLite, background work (rollouts,
gates, compliance, freshness of the repository) is done in the same process: nothing else has to run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder, made by midflight server init")
    parser.add_argument("--listen", metavar="HOST:PORT", help="instead of the one of the settings")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    import dataclasses

    from midflight.server.serve import serve
    from midflight.server.settings import Settings

    settings = Settings.load(args.folder)
    if args.listen:
        settings = dataclasses.replace(settings, listen=args.listen)
    return serve(settings, lambda text: out.line(text))
