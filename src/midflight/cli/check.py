"""midflight check: compare the code in memory with disk and ledger."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from midflight.cli import processes as shared
from midflight.cli.output import Output, Styled

HELP = """\
Compares all executable memory of processes with the files that they were mapped from, plus what the hotpatches in force
account for. Every byte range that is left is named: a debugger's breakpoint, an inline hook, injected or generated
code.
Reads only; the process goes on.

Without --pid, all processes that carry a hotpatch are checked; with --all, every process."""

EXAMPLES = """\
midflight check
midflight check --pid 4711 --json"""

EXIT_STATUS = """\
0  everything is explained
1  something is not, or could not be compared; it is listed
2  bad usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_selection(parser, required=False)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.integrity import Report, check
    from midflight.engine.inventory import find_ledgers
    from midflight.errors import MidflightError, ProcessGone

    reports: list[Report] = []
    errors: dict[int, str] = {}
    for process in shared.chosen(args.pid):
        with process:
            try:
                if not args.pid and not args.all and not find_ledgers(process):
                    continue
                out.progress(f"process {process.pid}")
                reports.append(check(process))
            except ProcessGone as error:
                if args.pid:
                    errors[process.pid] = str(error)
            except MidflightError as error:
                errors[process.pid] = str(error)
    out.progress_done()
    out.result({"processes": [_plain(r) for r in reports], "errors": errors})
    _show(out, reports)
    for pid, text in errors.items():
        out.line(f"{pid}: ", Styled("not checked: ", "bad"), text)
    if not reports and not errors:
        out.line("no process carries a hotpatch")
    return 1 if errors or any(not r.clean for r in reports) else 0


def _plain(report: Any) -> dict[str, Any]:
    return {"command": shared.command_name(report.pid), "clean": report.clean, **asdict(report)}


def _show(out: Output, reports: list[Any]) -> None:
    if reports:
        out.table(
            ["PID", "COMMAND", "VERDICT", "CODE KIB", "PATCHED BYTES", "UNEXPLAINED"],
            [
                [
                    str(r.pid),
                    shared.command_name(r.pid),
                    Styled("clean", "good") if r.clean else Styled("UNEXPLAINED", "bad"),
                    shared.kib(r.compared),
                    str(r.explained),
                    str(len(r.differences) + len(r.unreadable)),
                ]
                for r in reports
            ],
        )
    for report in reports:
        for d in report.differences:
            out.line(f"{report.pid}: {d.start:#x} +{d.size} in {d.where}: ", Styled(d.guess, "bad"))
            if d.expected:
                out.line(f"    on disk   {d.expected}")
            if d.found:
                out.line(f"    in memory {d.found}")
        for text in report.unreadable:
            out.line(f"{report.pid}: ", Styled("not compared: ", "bad"), text)
