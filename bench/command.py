"""The whole ``apply`` command: wall time warm, the engine's part of it, and the memory that it adds to a target."""

from __future__ import annotations

import subprocess
import time

from bench.measure import MIDFLIGHT, Running, Subject, median, midflight, save, subject, table

RUNS = 15


def _wall(*words: str) -> float:
    begin = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    return (time.monotonic() - begin) * 1e3


def _engine(one: Subject, pid: int) -> tuple[float, float]:
    """Milliseconds of an apply and a revert in this process, without start-up, signature and scanning."""
    from midflight.engine.apply import apply
    from midflight.engine.modules import Files
    from midflight.engine.revert import revert
    from midflight.engine.transaction import Limits
    from midflight.patch.hotpatch import read_unverified
    from midflight.process.linux import LinuxProcess

    hotpatch = read_unverified(one.hotpatch)
    begin = time.monotonic()
    with LinuxProcess(pid) as process, Files() as files:
        done = apply(process, hotpatch, files, Limits())
    middle = time.monotonic()
    with LinuxProcess(pid) as process, Files() as files:
        back = revert(process, files, Limits(), lambda ledger: True)
    end = time.monotonic()
    if done.outcome != "applied" or back.outcome != "reverted":
        raise SystemExit(f"{done} {back}")
    return (middle - begin) * 1e3, (end - middle) * 1e3


def _mapped(pid: int) -> int:
    """KiB of address space."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmSize"))


def main() -> None:
    """Measure and print."""
    one = subject()
    start = [_wall(*MIDFLIGHT, "--version") for _ in range(RUNS)]
    interpreter = [_wall(MIDFLIGHT[0], "-c", "pass") for _ in range(RUNS)]
    applies, engine, memory, payload = [], [], 0, 0
    with Running(one.program, 1, "paced") as running:
        before = _mapped(running.pid)
        for _ in range(RUNS):
            words = [str(w) for w in (*MIDFLIGHT, "apply", one.hotpatch, "--trust", one.trust, "--pid", running.pid)]
            applies.append(_wall(*words))
            memory = _mapped(running.pid) - before
            midflight("revert", one.hotpatch, "--pid", running.pid)
        engine = [_engine(one, running.pid)[0] for _ in range(RUNS)]
    inspected = midflight("inspect", one.hotpatch)
    payload = sum(t["payload_size"] for t in inspected["manifest"]["targets"])
    rows = [
        ["python -c pass, ms", median(interpreter), "-"],
        ["midflight --version, ms", median(start), "-"],
        ["midflight apply --pid N, ms", median(applies), 150],
        ["engine part of it, ms", median(engine), 20],
        ["memory added, KiB", memory, f"payload ({payload} bytes) + 16"],
    ]
    table("the apply command, medians", ["what", "measured", "goal"], rows)
    save("command", [{"what": what, "measured": measured, "goal": goal} for what, measured, goal in rows])
