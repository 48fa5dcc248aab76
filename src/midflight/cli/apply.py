"""midflight apply: put a hotpatch into running processes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from midflight.cli import processes as shared
from midflight.cli.output import Output, Styled

if TYPE_CHECKING:
    from midflight.engine.modules import Files
    from midflight.engine.transaction import Limits, Outcome
    from midflight.patch.hotpatch import Hotpatch

HELP = """\
Puts a hotpatch into running processes. Its signature is verified first: by the keys given with --trust, otherwise by
those in the trusted folder of this machine, where midflight build puts its own. Processes are found by the build-id of
the code that they really have mapped, whatever the file is called now, deleted or replaced, inside containers or not.

In each process everything is prepared while it runs; then all its threads stand still for a fraction of a
millisecond, in which it is proven that none of them is in code that is being replaced and that the bytes to be replaced
are the expected ones. On any surprise the process keeps (or gets back) the bytes that it had, and the reason is told.
Files on disk are not changed.

Probes (--probe) are shell commands that run when all processes are patched, with their ids in MIDFLIGHT_PIDS. If one
fails or takes too long, the hotpatch is taken out of all of them again."""

EXAMPLES = """\
midflight apply fix.hotpatch --all
midflight apply fix.hotpatch --all --trust release.pub
midflight apply fix.hotpatch --pid 4711 --trust release.pub --dry-run
midflight apply fix.hotpatch --all --trust release.pub --probe 'curl -fsS localhost/health'"""

EXIT_STATUS = """\
0  in force in every process that was meant (with --all: in every process that runs a baseline of it)
1  a process could not be patched, or a probe failed; the table says which and why
2  bad usage, or the hotpatch file is refused; no process was touched"""

_PASSES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("file", metavar="FILE", help="the hotpatch file")
    shared.add_selection(parser)
    shared.add_trust(parser)
    shared.add_limits(parser)
    parser.add_argument("--probe", action="append", default=[], metavar="CMD", help="check afterwards; may be repeated")
    parser.add_argument(
        "--probe-timeout", type=float, default=10.0, metavar="SECONDS", help="time for each probe (default 10)"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.engine.modules import Files

    hotpatch = shared.read_trusted(args.file, args.trust)
    limits = shared.limits(args)
    with Files() as files:
        outcomes = _apply(args, hotpatch, files, limits, out)
        probe = _probe(args, outcomes) if not args.dry_run else None
        if probe is not None:
            _take_out(hotpatch, outcomes, files, limits, probe)
    manifest = hotpatch.manifest
    out.result(
        {
            "hotpatch": {"name": manifest.name, "sequence": manifest.sequence, "sha256": hotpatch.digest},
            "dry_run": args.dry_run,
            "probe_failed": probe,
            "processes": shared.plain(outcomes),
        }
    )
    title = f"{manifest.name} {manifest.sequence}"
    if not outcomes:
        out.line(f"{title}: no process runs a baseline of it")
    else:
        out.line(Styled(title, "bold"), f"  {', '.join(manifest.cves) or manifest.description}")
        shared.show(out, outcomes)
    if probe is not None:
        out.line(Styled("probe failed: ", "bad"), probe)
    good = ("applied", "already", "would-apply")
    gone_is_fine = ("skipped",) if args.all else ()
    return 0 if probe is None and all(o.outcome in good + gone_is_fine for o in outcomes) else 1


def _apply(args: argparse.Namespace, hotpatch: Hotpatch, files: Files, limits: Limits, out: Output) -> list[Outcome]:
    from midflight.engine.apply import apply
    from midflight.engine.inventory import users

    wanted = {target.build_id for target in hotpatch.manifest.targets}
    outcomes: dict[tuple[int, int], Outcome] = {}
    # Processes that start meanwhile are found by looking again until nothing is new.
    for _ in range(1 if args.pid or args.dry_run else _PASSES):
        candidates = shared.chosen(args.pid)
        if not args.pid:
            candidates = [process for process, _ in users(candidates, wanted, files)]
        fresh = [p for p in candidates if (p.pid, p.start_time) not in outcomes]
        if not fresh:
            break
        for process in fresh:
            out.progress(f"process {process.pid} ({len(outcomes) + 1})")
            with process:
                outcomes[process.pid, process.start_time] = apply(process, hotpatch, files, limits, args.dry_run)
    out.progress_done()
    return list(outcomes.values())


def _probe(args: argparse.Namespace, outcomes: list[Outcome]) -> str | None:
    """Run the probes; why one failed, or None."""
    if not args.probe:
        return None
    from midflight.agent.probes import run_probes

    pids = [o.pid for o in outcomes if o.outcome == "applied"]
    return run_probes(args.probe, pids, args.probe_timeout) if pids else None


def _take_out(hotpatch: Hotpatch, outcomes: list[Outcome], files: Files, limits: Limits, why: str) -> None:
    """Revert what this run applied; a process that the probe's failure took with it is not there any more."""
    from midflight.engine.revert import revert
    from midflight.errors import MidflightError

    for number, done in enumerate(outcomes):
        if done.outcome != "applied":
            continue
        try:
            with shared.chosen([done.pid])[0] as process:
                if process.start_time != done.start_time:
                    continue
                back = revert(process, files, limits, lambda ledger: ledger.record.digest == hotpatch.digest)
        except MidflightError as error:
            done.outcome, done.reason = "failed", str(error)
            continue
        if back.outcome == "reverted":
            back.reason = "taken out again, since a probe failed"
        outcomes[number] = back
