"""midflight revert: take a hotpatch out of running processes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from midflight.cli import processes as shared
from midflight.cli.output import Output

if TYPE_CHECKING:
    from midflight.engine.ledger import Ledger
    from midflight.engine.transaction import Outcome

HELP = """\
Takes a hotpatch out of running processes: the entries get the bytes of the file on disk again. No function needs to be
idle for that; threads that are inside new code leave it when they return. Which hotpatch is named by its file, or by
its name (and sequence) as midflight status shows them; the file need not be at hand.

Memory is given back when the program cannot hold an address of it any more. Otherwise it stays, unused, until the
process ends or the same hotpatch is applied again."""

EXAMPLES = """\
midflight revert fix.hotpatch --all
midflight revert --name nginx --pid 4711"""

EXIT_STATUS = """\
0  it is in none of the processes any more
1  a process could not be reverted; the table says which and why
2  bad usage or a malformed file"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="the hotpatch file")
    what.add_argument("--name", metavar="NAME[:SEQUENCE]", help="the hotpatch's name, as midflight status shows it")
    what.add_argument("--every", action="store_true", help="every hotpatch that is in force")
    shared.add_selection(parser)
    shared.add_limits(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.inventory import find_ledgers
    from midflight.engine.modules import Files
    from midflight.engine.revert import revert
    from midflight.errors import MidflightError, ProcessGone

    wanted = _wanted(args)
    outcomes: list[Outcome] = []
    hidden = 0
    with Files() as files:
        for process in shared.chosen(args.pid):
            with process:
                if args.all:
                    try:
                        process.maps()
                    except ProcessGone:
                        continue
                    except MidflightError:
                        hidden += 1
                        continue
                    try:
                        if not any(wanted(ledger) for ledger in find_ledgers(process)):
                            continue
                    except MidflightError:
                        # A damaged ledger is reported by the revert itself.
                        pass
                out.progress(f"process {process.pid} ({len(outcomes) + 1})")
                outcomes.append(revert(process, files, shared.limits(args), wanted, args.dry_run))
    out.progress_done()
    outcomes = [o for o in outcomes if args.pid or o.outcome != "nothing"]
    out.result({"dry_run": args.dry_run, "processes": shared.plain(outcomes)})
    if outcomes:
        shared.show(out, outcomes)
    else:
        out.line("it is in no process")
    if hidden:
        out.line(f"{hidden} more could not be looked at, being other users' (run as root)")
    return 1 if any(o.outcome == "failed" for o in outcomes) else 0


class _wanted:
    """Which ledgers the options mean."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.every = args.every
        self.digest: str | None = None
        self.name, self.sequence = "", ""
        if args.file:
            from midflight.patch.hotpatch import read_unverified

            # Taking code out needs no trust: the ledger alone says what is put back.
            self.digest = read_unverified(args.file).digest
        elif args.name:
            self.name, _, self.sequence = args.name.partition(":")

    def __call__(self, ledger: Ledger) -> bool:
        if self.digest is not None:
            return ledger.record.digest == self.digest
        if self.every:
            return True
        return ledger.record.name == self.name and self.sequence in ("", str(ledger.record.sequence))
