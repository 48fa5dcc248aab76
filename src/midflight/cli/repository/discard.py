"""midflight repo discard: forget what is staged."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Forgets everything that is staged, signatures and new files included. What is published stays as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    shared.opened(args).discard()
    out.line("nothing is staged any more")
    out.result({"discarded": True})
    return 0
