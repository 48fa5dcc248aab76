"""A year of a fleet of 100,000 devices through the server's own rules, judged by an independent checker.

``python -m bench simulation``; DEVICES=, DAYS= and SEED= in the environment choose another size.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time

from bench.measure import save, table
from bench.simulation.fleet import DAY, moment
from bench.simulation.world import Published, World
from midflight.server.domain import coverage
from midflight.server.domain.model import ComplianceState


def main() -> None:
    """Simulate, and print what became of each content."""
    devices, days = int(os.environ.get("DEVICES", "100000")), int(os.environ.get("DAYS", "365"))
    # frozen data makes no cycles, and to look for some among millions of objects takes a twentieth of the time
    gc.disable()
    begin = time.process_time()
    world = World(devices, days, int(os.environ.get("SEED", "1")))

    def progress(minute: int) -> None:
        print(f"{moment(minute):%d %b}: {time.process_time() - begin:,.0f} s", file=sys.stderr)

    world.run(each_month=progress)
    seconds = time.process_time() - begin
    _contents(world)
    _compliance(world)
    _sums(world, seconds)
    save("simulation", _document(world, seconds))
    if world.checker.violations:
        raise SystemExit(f"{sum(world.checker.violations.values())} violations")


def _taken(published: Published, percent: float) -> float | None:
    """Days from publication until so many per cent of the devices that need it ran it."""
    fixed = [moment(at) for at in published.fixed]
    found = coverage.milestones(moment(published.at), coverage.in_order(fixed), published.affected, (percent,))[percent]
    return None if found is None else found.total_seconds() / 86400


def _contents(world: World) -> None:
    rows = []
    for published in world.published.values():
        days = [_taken(published, percent) for percent in coverage.MILESTONES]
        halts = ", ".join(f"{reached:,}" for _, reached in published.halts)
        rows.append(
            [
                published.content.id,
                f"{moment(published.at):%d %b}",
                f"{published.affected:,}",
                f"{published.reached:,}",
                *("-" if d is None else f"{d:.1f}" for d in days),
                halts or "-",
            ]
        )
    table(
        "each content: devices that need it, that it reached, days to 50, 90 and 99 %, devices reached at each halt",
        ["content", "on", "affected", "reached", "50 %", "90 %", "99 %", "halted at"],
        rows,
    )
    for note in world.scenario.notes:
        print(note)


def _compliance(world: World) -> None:
    states = list(ComplianceState)
    rows = []
    for minute, overview in world.compliance[3::4]:
        total = sum(overview.states.values())
        shares = [f"{100 * overview.states[state] / total:.1f}" for state in states]
        rows.append([f"{moment(minute):%d %b}", *shares, f"{overview.hotpatched:,}", f"{overview.restarted:,}"])
    heads = ["unknown", "compl.", "grace", "noncompl.", "stale", "unass.", "confl.", "error"]
    table("compliance, % of devices; hotpatched and restarted ones", ["on", *heads, "hotp.", "rest."], rows)


def _sums(world: World, seconds: float) -> None:
    checker = world.checker
    checks = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(checker.checks.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nchecked: {checks}; exposure saved {world.exposure:,.0f} device hours;")
    print(f"restarts spared {world.restarts:,}; processes stopped {world.stopped / 1000:,.1f} s in all")
    heads = ["devices", "contents", "patches", "check-ins", "decided", "violations", "seconds", "MiB"]
    applied = sum(published.reached for published in world.published.values())
    facts = (len(world.fleet), len(world.published), applied, world.checkins, world.decisions)
    row = [f"{n:,}" for n in (*facts, sum(checker.violations.values()), round(seconds), round(peak))]
    table("the run: check-ins gone through, those decided anew (the others are answered as before)", heads, [row])
    for promise, count in checker.violations.most_common():
        print(f"  {count} x {promise}: {checker.examples[promise]}")


def _document(world: World, seconds: float) -> list[dict[str, object]]:
    contents: list[dict[str, object]] = [
        {
            "content": published.content.id,
            "affected": published.affected,
            "reached": published.reached,
            "days_to": {str(percent): _taken(published, percent) for percent in coverage.MILESTONES},
            "halts": [{"day": at / DAY, "reached": reached} for at, reached in published.halts],
        }
        for published in world.published.values()
    ]
    sums: dict[str, object] = {
        "devices": len(world.fleet),
        "violations": dict(world.checker.violations),
        "exposure_hours": world.exposure,
        "patches": sum(published.reached for published in world.published.values()),
        "check_ins": world.checkins,
        "decisions": world.decisions,
        "checks": dict(world.checker.checks),
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return [*contents, sums]
