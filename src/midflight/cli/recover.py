"""midflight recover: finish or undo what an interrupted run left behind."""

from __future__ import annotations

import argparse

from midflight.cli import processes as shared
from midflight.cli.output import Output

HELP = """\
Finishes or undoes what an apply or revert left that was killed on its way. The record in each process says how far it
got: memory that was only prepared is given back; a hotpatch whose entries are all written is completed, one that is
half-way in is undone; a revert that was begun is finished. Processes are safe until then: each function runs its old
or its new code.

apply and revert do this by themselves for the processes that they work on."""

EXAMPLES = """\
midflight recover --all"""

EXIT_STATUS = """\
0  nothing is left half-done
1  a process holds something that no run of ours would have left; it was not touched
2  bad usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_selection(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.everywhere import recover_everywhere
    from midflight.engine.modules import Files
    from midflight.engine.recover import recover
    from midflight.engine.transaction import Limits

    found = shared.chosen(args.pid)
    with Files() as files:
        if args.all:
            outcomes = recover_everywhere(found, files, Limits())
        else:
            outcomes = [recover(process, files, Limits()) for process in found]
    out.result({"processes": shared.plain(outcomes)})
    for o in outcomes:
        out.line(f"{o.pid} {shared.command_name(o.pid)}: {o.reason}")
    if not outcomes:
        out.line("nothing was left half-done")
    return 1 if any(o.outcome == "failed" for o in outcomes) else 0
