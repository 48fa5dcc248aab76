"""Many processes on one host: how long ``scan`` and ``apply --all`` take for all of them."""

from __future__ import annotations

import time

from bench.measure import Running, median, midflight, save, subject, table

COUNTS = (10, 100, 1000)
SCANS = 5


def main() -> None:
    """Measure and print."""
    # Programs that wait for input, as most processes of a host do.
    one = subject("calls", "-O2")
    results = []
    for count in COUNTS:
        running = [Running(one.program) for _ in range(count)]
        try:
            scans = []
            for _ in range(SCANS):
                begin = time.monotonic()
                found = len(midflight("scan", one.hotpatch)["processes"])
                scans.append(time.monotonic() - begin)
            begin = time.monotonic()
            done = midflight("apply", one.hotpatch, "--trust", one.trust, "--all")["processes"]
            seconds = time.monotonic() - begin
            applied = sum(d["outcome"] == "applied" for d in done)
            if found != count or applied != count:
                first = [d for d in done if d["outcome"] != "applied"][:3]
                raise SystemExit(f"{found} of {count} were found, {applied} patched: {first}")
            stopped = median([d["stopped"] * 1e3 for d in done])
        finally:
            for each in running:
                each.__exit__()
        results.append(
            {"processes": count, "scan_s": median(scans), "apply_s": seconds, "stopped_ms": stopped}
        )  # fmt: skip
    table(
        "a whole host: scan and apply --all with the start of the command, and the stopped time of each process",
        ["processes", "scan s", "goal", "apply s", "goal", "stopped ms"],
        [[r["processes"], r["scan_s"], 1, r["apply_s"], 5, r["stopped_ms"]] for r in results],
    )
    save("many", results)
