"""midflight server run: serve devices, administrators and the console."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from midflight.cli.output import Output
from midflight.errors import InputError

HELP = """\
Serves devices, the API and the console until it is stopped (SIGTERM or Ctrl-C). On SQLite, background work (rollouts,
gates, compliance, freshness of the repository) is done in the same process: nothing else has to run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder, made by midflight server init")
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="processes that serve (default: 1)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="instead of the one of the settings")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.server.serve import serve
    from midflight.server.settings import ENVIRONMENT, Settings

    if args.processes < 1:
        raise InputError("--processes is at least 1")
    if args.listen:
        os.environ[ENVIRONMENT + "LISTEN"] = args.listen  # for the processes too
    return serve(Settings.load(args.folder), lambda text: out.line(text), args.processes)
