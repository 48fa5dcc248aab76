"""midflight server install: run the server as a service of systemd."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from midflight.cli.output import Output
from midflight.errors import InputError

HELP = """\
Writes the unit midflight-server.service, enables it and starts it; again after an upgrade, which brings the unit up to
date. It runs as the account that owns the folder, and may write to that folder alone. With PostgreSQL a second unit,
midflight-worker.service, does the background work. Drop-ins of yours stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="with PostgreSQL (default: 1)")
    parser.add_argument("--no-start", action="store_true", help="do not start it now")
    parser.add_argument("--print", action="store_true", help="print the units and change nothing")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.machine import units
    from midflight.server import service
    from midflight.server.settings import Settings

    if args.processes < 1:
        raise InputError("--processes is at least 1")
    settings = Settings.load(args.folder)
    midflight = [sys.executable, "-m", "midflight"]
    if args.print:
        found = service.units_of(settings, midflight, args.processes)
        out.result({"units": found})
        for name, text in found.items():
            out.line(f"# {name}")
            for line in text.splitlines():
                out.line(line)
        return 0
    paths = service.install(settings, midflight, args.processes, not args.no_start)
    out.result({"installed": [str(path) for path in paths]})
    for path in paths:
        out.line(f"installed: {path}")
    if not units.runs():
        out.line("systemd does not run here: it starts with the machine if enabled")
    return 0
