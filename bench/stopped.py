"""How long threads stand still: by the engine's clock, by the target's own, and beside a plain C program's least.

The reference runs right before each apply on the same process, so that the machine's noise meets both; the ratio is
what counts. All checks of the engine are on.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any

from bench.measure import PROGRAMS, WORK, Running, Subject, median, midflight, save, subject, table

THREADS = (1, 16, 64, 128, 783)
RUNS, RUNS_OF_MANY = 11, 3
GOALS = {1: 0.25, 64: 1.5, 128: 3.0}


def _address(program: str, pid: int) -> str:
    """Where the function is in the process: a place with five bytes that the reference may rewrite."""
    symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    offset = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" T answer"))
    with open(f"/proc/{pid}/maps") as maps:
        start = int(next(line for line in maps if program in line).split("-")[0], 16)
    return f"{start + offset:x}"


def main() -> None:
    """Measure and print."""
    one = subject()
    reference = WORK / "reference"
    subprocess.run(["cc", "-O2", "-o", str(reference), str(PROGRAMS / "reference.c")], check=True)
    results = []
    for mode in ("paced", "busy"):
        for threads in THREADS:
            results.append(_measure(one, str(reference), mode, threads))
            r = results[-1]
            figures = f"{r['apply_ms']:.2f} ms in, {r['revert_ms']:.2f} out, C {r['reference_ms']:.2f}"
            print(f"{threads} {mode}: {figures}", flush=True)
            save("stopped", results)
    table(
        "stopped time, medians in ms (apply and revert; C: the same steps in plain C; pause: what the target noticed)",
        ["threads", "mode", "apply", "revert", "C", "apply/C", "pause", "wall", "busy stops", "goal"],
        [
            [
                r["threads"], r["mode"], r["apply_ms"], r["revert_ms"], r["reference_ms"],
                r["apply_ms"] / r["reference_ms"] if r["reference_ms"] else 0.0,
                r["pause_ms"], r["wall_ms"], r["stops"], GOALS.get(r["threads"], "-"),
            ]
            for r in results
        ],
    )  # fmt: skip


def _measure(one: Subject, reference: str, mode: str, threads: int) -> dict[str, Any]:
    applies, reverts, references, pauses, walls, stops = [], [], [], [], [], []
    with Running(one.program, threads, mode) as running:
        at = _address(str(one.program), running.pid)
        time.sleep(0.3)
        for _ in range(RUNS if threads <= 128 else RUNS_OF_MANY):
            told = subprocess.run([reference, str(running.pid), at], capture_output=True, text=True, check=True)
            references.append(int(told.stdout) / 1e6)
            running.ask()
            begin = time.monotonic()
            done = midflight("apply", one.hotpatch, "--trust", one.trust, "--pid", running.pid)["processes"][0]
            walls.append((time.monotonic() - begin) * 1e3)
            value, pause, _ = running.ask()
            if done["outcome"] == "failed":
                # Threads that have to wait for a processor for longer than the engine is willing to stop the others.
                stops.append(done["attempts"])
                continue
            if done["outcome"] != "applied" or value != "2":
                raise SystemExit(f"apply failed: {done}")
            applies.append(done["stopped"] * 1e3)
            stops.append(done["attempts"])
            pauses.append(int(pause) / 1e6)
            done = midflight("revert", one.hotpatch, "--pid", running.pid)["processes"][0]
            if done["outcome"] != "reverted" or running.ask()[0] != "1":
                raise SystemExit(f"revert failed: {done}")
            reverts.append(done["stopped"] * 1e3)
    return {
        "threads": threads,
        "mode": mode,
        "apply_ms": median(applies),
        "apply_ms_all": applies,
        "revert_ms": median(reverts),
        "reference_ms": median(references),
        "pause_ms": median(pauses),
        "wall_ms": median(walls),
        "stops": median(stops),
    }
