"""midflight repo revoke: stage that content is taken back for ever."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Stages that a piece of content is taken back. Once published, agents no longer offer or apply it, the reason is shown
wherever it was, and the same file can never be added again. With --revert, agents may take it out of the processes in
which it runs without being told so by the server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    parser.add_argument("path", metavar="PATH", help="path of the content, as midflight repo status shows it")
    parser.add_argument(
        "--reason", metavar="TEXT", required=True, help="why, in a sentence that administrators will read"
    )
    parser.add_argument("--revert", action="store_true", help="have it taken out where it runs")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    repository = shared.opened(args)
    revoked = repository.revoke(args.path, args.reason, args.revert, shared.now())
    out.line(f"revoked  {revoked.path}")
    out.result({"path": revoked.path, "sha256": revoked.sha256, "staged": shared.show_staged(repository, out)})
    return 0
