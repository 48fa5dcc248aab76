"""What a call through a trampoline costs more than the call did before."""

from __future__ import annotations

from bench.measure import Running, median, midflight, save, subject, table

RUNS = 11


def main() -> None:
    """Measure and print."""
    one = subject("calls", "-O2")
    with Running(one.program) as running:
        running.ask()
        plain, patched = [], []
        for _ in range(RUNS):
            plain.append(int(running.ask()[1]) / 1e3)
            midflight("apply", one.hotpatch, "--trust", one.trust, "--pid", running.pid)
            patched.append(int(running.ask()[1]) / 1e3)
            midflight("revert", one.hotpatch, "--pid", running.pid)
    extra = [b - a for a, b in zip(plain, patched, strict=True)]
    rows = [["call, ns", median(plain), median(patched), median(extra), 1.0]]
    table("a call of a replaced function, medians", ["what", "before", "through", "extra", "goal"], rows)
    save("call", {"before_ns": plain, "through_ns": patched, "extra_ns": extra})
