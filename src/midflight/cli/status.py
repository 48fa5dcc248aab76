"""midflight status: show which hotpatches run in which processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli import processes as shared
from midflight.cli.output import Output, Styled

if TYPE_CHECKING:
    from midflight.engine.ledger import Ledger, PatchedFunction
    from midflight.process.model import Process

HELP = """\
Shows, per process, the hotpatches that its memory carries, as the record inside the process says: image and baseline
(build-id), state, functions, memory added, how long threads stood still, when it was applied and by whom.

States: applied (in force, and its jumps are really there); lost (its library was unloaded); retired (taken out or
replaced, memory kept); prepared, committing, reverting (left by a run that was killed: use midflight recover).

--perf-map prints the symbols of new code in the form that perf reads from /tmp/perf-PID.map. --gdb DIR writes, for
each hotpatch in a process, an ELF file with the symbols and the unwind data of new code, and a file of commands that
makes gdb read them."""

EXAMPLES = """\
midflight status
midflight status --pid 4711 --json
midflight status --pid 4711 --perf-map > /tmp/perf-4711.map
midflight status --pid 4711 --gdb /tmp/symbols && gdb -p 4711 -x /tmp/symbols/4711.gdb"""

EXIT_STATUS = """\
0  shown
1  a process's record is damaged, or left half-done by a killed run
2  bad usage"""


_PASSING = ("PREPARED", "COMMITTING", "REVERTING")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_selection(parser, required=False)
    parser.add_argument("--perf-map", action="store_true", help="print symbols of new code for perf, and nothing else")
    parser.add_argument("--gdb", type=Path, metavar="DIR", help="write symbols and unwind data of new code for gdb")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.inventory import find_ledgers
    from midflight.engine.journal import held
    from midflight.engine.plan import lost
    from midflight.errors import MidflightError, ProcessGone

    found: list[tuple[int, Ledger]] = []
    half = False
    errors: dict[int, str] = {}
    gone: set[tuple[int, int]] = set()
    scripts: list[str] = []
    for process in shared.chosen(args.pid):
        with process:
            try:
                ledgers = find_ledgers(process)
                found += [(process.pid, ledger) for ledger in ledgers]
                # What another run is at right now is nothing that was left half-done.
                passing = any(i.state.name in _PASSING for i in ledgers)
                half = half or (passing and not held(process.pid, process.start_time))
                gone |= {(process.pid, i.base) for i in ledgers if i.in_force and lost(process, i, ledgers)}
                if args.gdb and ledgers:
                    scripts.append(str(_write_for_gdb(process, ledgers, args.gdb)))
            except ProcessGone:
                continue
            except MidflightError as error:
                # Somebody else's process is no failure unless it was asked for.
                if args.pid or "ledger" in str(error):
                    errors[process.pid] = str(error)
    if args.perf_map:
        return _perf_map(found, out)
    out.result({"processes": _plain(found, gone), "errors": errors, **({"gdb": scripts} if args.gdb else {})})
    _show(out, found, gone, bool(args.pid))
    for pid, text in errors.items():
        out.line(f"{pid}: ", Styled(text, "bad"))
    for script in scripts:
        out.line(f"for gdb: -x {script}")
    if not found and not errors:
        out.line("no process carries a hotpatch")
    return 1 if errors or half else 0


def _write_for_gdb(process: Process, ledgers: Sequence[Ledger], folder: Path) -> Path:
    from midflight.cli.symbolfile import write_symbol_files
    from midflight.errors import InputError

    try:
        return write_symbol_files(process, ledgers, folder)
    except OSError as error:
        raise InputError(f"symbols cannot be written to {folder}: {error.strerror}; give another folder") from error


def _when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds / 1e9)) if nanoseconds else ""


def _state(pid: int, ledger: Ledger, gone: set[tuple[int, int]]) -> str:
    return "lost" if (pid, ledger.base) in gone else ledger.state.name.lower()


def _plain(found: list[tuple[int, Ledger]], gone: set[tuple[int, int]]) -> list[dict[str, Any]]:
    by_pid: dict[int, list[dict[str, Any]]] = {}
    for pid, ledger in found:
        record = ledger.record
        by_pid.setdefault(pid, []).append(
            {
                "name": record.name,
                "sequence": record.sequence,
                "sha256": record.digest,
                "cves": record.cves,
                "description": record.description,
                "image": record.image_name,
                "build_id": record.build_id,
                "state": _state(pid, ledger, gone),
                "functions": [
                    {
                        "name": f.name,
                        "old": [{"address": a, "size": s} for a, s in f.old],
                        "new": {"address": f.new[0], "size": f.new[1]},
                        "trampoline": _trampoline(f),
                    }
                    for f in record.functions
                ],
                "address": ledger.base,
                "memory": ledger.size,
                "unwind_registered": bool(ledger.flags & 1),
                "policy": record.policy,
                "applied_at": _when(ledger.applied_at),
                "stopped_seconds": ledger.stopped / 1e9,
                "reverted_at": _when(ledger.reverted_at),
                "revert_stopped_seconds": ledger.revert_stopped / 1e9,
                "by": record.by,
                "engine": record.engine,
            }
        )
    return [{"pid": pid, "command": shared.command_name(pid), "hotpatches": list(rows)} for pid, rows in by_pid.items()]


def _show(out: Output, found: list[tuple[int, Ledger]], gone: set[tuple[int, int]], detailed: bool) -> None:
    styles = {"applied": "good", "retired": "dim"}
    if found:
        out.table(
            ["PID", "COMMAND", "IMAGE", "HOTPATCH", "STATE", "FUNCS", "KIB", "STOPPED MS"],
            [
                [
                    str(pid),
                    shared.command_name(pid),
                    ledger.record.image_name,
                    f"{ledger.record.name} {ledger.record.sequence}",
                    Styled(_state(pid, ledger, gone), styles.get(_state(pid, ledger, gone), "bad")),  # type: ignore[arg-type]
                    str(len(ledger.record.functions)),
                    shared.kib(ledger.size),
                    shared.milliseconds(ledger.stopped / 1e9),
                ]
                for pid, ledger in found
            ],
        )
    for pid, ledger in found if detailed else ():
        record = ledger.record
        out.line("")
        out.line(Styled(f"{record.name} {record.sequence}", "bold"), f" in {pid}")
        out.line(f"  CVEs       {', '.join(record.cves) or 'none named'}")
        out.line(f"  baseline   {record.build_id}")
        out.line(f"  file       sha256 {record.digest}")
        out.line(f"  applied    {_when(ledger.applied_at) or 'never'} by {record.by} (midflight {record.engine})")
        if ledger.reverted_at:
            out.line(f"  reverted   {_when(ledger.reverted_at)}")
        unwinding = "registered" if ledger.flags & 1 else "not registered"
        out.line(f"  memory     {ledger.size // 1024} KiB at {ledger.base:#x}, unwind data {unwinding}")
        if ledger.applied_at and not ledger.stopped:
            out.line("  stopped    not at all: every entry could be switched while the threads ran")
        for f in record.functions:
            old = ", ".join(f"{a:#x}+{s}" for a, s in f.old)
            out.line(f"  function   {f.name}: {old} -> {f.new[0]:#x}+{f.new[1]} ({_trampoline(f)})")


def _trampoline(function: PatchedFunction) -> str:
    """The kind of a trampoline, as inspect names it."""
    jump = next((w for w in function.writes if len(w.after) != 5), None)
    long = next((w for w in function.writes if len(w.after) == 5), None)
    if jump is None or long is None:
        return "near" if function.writes else "none"
    return "hotpatch" if long.address + 5 == jump.address else "short"


def _perf_map(found: list[tuple[int, Ledger]], out: Output) -> int:
    for _, ledger in found:
        record = ledger.record
        for name, address, size in record.symbols:
            out.line(f"{address:x} {size:x} {name}[{record.name}]".replace(" [", "["))
    return 0
