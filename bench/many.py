"""Many processes of one image on one host: how long ``apply --all`` takes for all of them."""

from __future__ import annotations

import time

from bench.measure import Running, midflight, save, subject, table

COUNTS = (10, 100, 1000)


def main() -> None:
    """Measure and print."""
    # Programs that wait for input, as most processes of a host do.
    one = subject("calls", "-O2")
    rows = []
    for count in COUNTS:
        running = [Running(one.program) for _ in range(count)]
        try:
            begin = time.monotonic()
            done = midflight("apply", one.hotpatch, "--trust", one.trust, "--all")["processes"]
            seconds = time.monotonic() - begin
            applied = sum(d["outcome"] == "applied" for d in done)
            if applied != count:
                raise
                SystemExit(f"{applied} of {count} were patched: {[d for d in done if d['outcome'] != 'applied'][:3]}")
            rows.append([count, seconds, seconds / count * 1e3, "5 s at 1000"])
        finally:
            for one_running in running:
                one_running.__exit__()
    table("apply --all", ["processes", "seconds", "ms each", "goal"], rows)
    save("many", [{"processes": c, "seconds": s} for c, s, *_ in rows])
