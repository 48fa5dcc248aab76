"""How long threads of Windows programs stand still, by thread count, for both trampolines: ``make bench-wine``.

Runs inside a Windows Python, on the programs of ``tests.wine.build``. Wine answers every call by a message to its
server, so the figures say how the work grows, not how long it takes on Windows.
"""

from __future__ import annotations

import time
from typing import Any

from bench.measure import median, save, table
from midflight.engine.apply import apply
from midflight.engine.modules import Files
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits
from midflight.process.windows import WindowsProcess
from tests.wine.harness import Target, load

THREADS = (1, 8, 32, 64, 128)
RUNS = 7
KINDS = (
    ("near", "threads.exe", "both2"),
    ("hotpatch, stopped", "hotprologue.exe", "hotstrict"),
    ("hotpatch, running", "hotprologue.exe", "hotpatch2"),
)


def _measure(kind: str, program: str, name: str, threads: int) -> dict[str, Any]:
    hotpatch = load(name)
    applies, reverts, walls = [], [], []
    with Target(program, str(threads - 1)) as target, WindowsProcess(target.pid) as process, Files() as files:
        for _ in range(RUNS):
            begin = time.perf_counter()
            done = apply(process, hotpatch, files, Limits(busy=60, stop=30))
            walls.append(time.perf_counter() - begin)
            if done.outcome != "applied":
                raise SystemExit(done.reason)
            back = revert(process, files, Limits(busy=60, stop=30), lambda _: True)
            applies.append(done.stopped)
            reverts.append(back.stopped)
    return {
        "entry": kind,
        "threads": threads,
        "apply_ms": median(applies) * 1e3,
        "revert_ms": median(reverts) * 1e3,
        "wall_ms": median(walls) * 1e3,
    }


def main() -> None:
    """Measure and print."""
    results = [_measure(*kind, threads) for kind in KINDS for threads in THREADS]
    save("windows", results)
    table(
        f"stopped time under Wine, medians of {RUNS} in ms",
        ["entry", "threads", "apply", "revert", "wall"],
        [[r["entry"], r["threads"], r["apply_ms"], r["revert_ms"], r["wall_ms"]] for r in results],
    )


if __name__ == "__main__":
    main()
