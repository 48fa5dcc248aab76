"""midflight scan: list the processes that a hotpatch is meant for."""

from __future__ import annotations

import argparse

from midflight.cli import processes as shared
from midflight.cli.output import Output, Styled, Text

HELP = """\
Lists every process, in containers too, that has a baseline of the hotpatch mapped, and how it stands with it:

needs    the hole is open: it runs the baseline without this hotpatch
older    an older hotpatch of the same series is in force
applied  this hotpatch is in force
newer    a newer one is in force
unknown  its record cannot be read

A reason beside "needs" says why apply would not touch the process as it is. Reads only. The signature of the file is
verified when --trust is given."""

EXAMPLES = """\
midflight scan fix.hotpatch
midflight scan fix.hotpatch --trust release.pub --json"""

EXIT_STATUS = """\
0  no process needs it
1  some process does
2  bad usage, or the file is refused"""

_STYLES = {"needs": "bad", "older": "warn", "applied": "good", "newer": "good", "unknown": "bad"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("file", metavar="FILE", help="the hotpatch file")
    parser.add_argument(
        "--trust", metavar="KEY.pub", action="append", default=[], help="a public key that is trusted; may be repeated"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.inventory import scan
    from midflight.engine.modules import Files
    from midflight.patch.hotpatch import read_unverified

    hotpatch = shared.read_trusted(args.file, args.trust) if args.trust else read_unverified(args.file)
    with Files() as files:
        uses = list(scan(shared.chosen(None), hotpatch, files))
    out.result(
        {
            "processes": [
                {
                    "pid": use.process.pid,
                    "command": shared.command_name(use.process.pid),
                    "image": use.image,
                    "build_id": use.build_id,
                    "state": use.state,
                    "reason": use.reason,
                }
                for use in uses
            ]
        }
    )
    rows: list[list[Text]] = [
        [
            str(use.process.pid),
            shared.command_name(use.process.pid),
            Styled(use.state, _STYLES[use.state]),  # type: ignore[arg-type]
            use.image,
            use.reason,
        ]
        for use in uses
    ]
    if rows:
        out.table(["PID", "COMMAND", "STATE", "IMAGE", "REASON"], rows)
    else:
        out.line("no process runs a baseline of it")
    return 1 if any(use.state in ("needs", "older", "unknown") for use in uses) else 0
