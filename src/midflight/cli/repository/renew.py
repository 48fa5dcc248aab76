"""midflight repo renew: stage metadata again that will be over soon."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Stages targets (with --root: root too) unchanged, but with a later end, to be signed and published. Snapshot and
timestamp are not meant: the server signs them anew by itself, and midflight repo publish does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    parser.add_argument("--root", action="store_true", help="root too")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    repository = shared.opened(args)
    repository.extend(["root", "targets"] if args.root else ["targets"], shared.now())
    out.result({"staged": shared.show_staged(repository, out)})
    return 0
