"""The agent: from the exec of a new process to the first patched call in it, at a steady rate; idle load and memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from bench.measure import MIDFLIGHT, WORK, Running, save, subject, table

RATES = (10, 50, 100)
SECONDS = 10
IDLE = 30
CROWD = 1000
NICE = -10


class _Agent:
    """An agent with folders of its own."""

    def __init__(self, hotpatch: Path, trust: Path) -> None:
        home = WORK / "agent"
        shutil.rmtree(home, ignore_errors=True)
        (home / "hotpatches").mkdir(parents=True)
        shutil.copy(hotpatch, home / "hotpatches")
        self._log = home / "log"
        # as urgent as its unit makes it
        words = [
            "nice",
            "-n",
            str(NICE),
            *MIDFLIGHT,
            "agent",
            "run",
            "--folder",
            str(home / "hotpatches"),
            "--trust",
            str(trust),
        ]
        environment = {**os.environ, "MIDFLIGHT_STATE": str(home / "state"), "MIDFLIGHT_CONFIG": str(home / "config")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        # where sessions share the processors evenly (sched(7), autogroup), niceness counts inside of one alone
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/{self.process.pid}/autogroup").write_text(str(NICE))
        while "in force: " not in self.says():
            if self.process.poll() is not None:
                raise SystemExit(self.says())
            time.sleep(0.05)
        time.sleep(1.0)

    def says(self) -> str:
        """Its log."""
        return self._log.read_text()

    def seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def mebibytes(self) -> float:
        """The most memory that it had resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def _latencies(program: Path, rate: int) -> list[float]:
    """Milliseconds from exec to the first patched call, of each new process."""
    done = subprocess.run(
        [str(program), "start", str(rate), str(rate * SECONDS)], capture_output=True, text=True, check=True
    )
    found = sorted(int(line) / 1000 for line in done.stdout.split())
    if len(found) != rate * SECONDS or found[0] < 0:
        raise SystemExit(f"{sum(value < 0 for value in found)} of {len(found)} were not patched")
    return found


def _crowd(agent: _Agent, program: Path) -> float:
    """Megabytes of the agent after it has patched many processes that go on running."""
    words = [str(program), str(time.monotonic_ns() + (1 << 50))]  # in the future: it stays
    crowd = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(CROWD)]
    try:
        for each in crowd:
            assert each.stdout is not None
            each.stdout.readline()
    finally:
        for each in crowd:
            each.kill()
            each.communicate()
    return agent.mebibytes()


def main() -> None:
    """Measure and print."""
    one = subject("newborn", "-O2")
    agent = _Agent(one.hotpatch, one.trust)
    rows: list[list[object]] = []
    try:
        with Running(subject("calls", "-O2").program):
            before = agent.seconds()
            time.sleep(IDLE)
            idle = (agent.seconds() - before) / IDLE * 100
        rows.append(["idle, % of a processor", idle, 0.1])
        for rate in RATES:
            before = agent.seconds()
            found = _latencies(one.program, rate)
            share = (agent.seconds() - before) / SECONDS * 100
            goal = 20 if rate == 100 else "-"
            rows.append([f"exec to patched at {rate}/s, ms: p50", found[len(found) // 2], "-"])
            rows.append([f"exec to patched at {rate}/s, ms: p99", found[len(found) * 99 // 100], goal])
            rows.append([f"meanwhile, % of a processor at {rate}/s", share, "-"])
        rows.append([f"memory after {CROWD} more processes, MiB", _crowd(agent, one.program), 100])
    finally:
        agent.stop()
    table("the agent", ["what", "measured", "goal"], rows)
    save("agent", [{"what": what, "measured": measured, "goal": goal} for what, measured, goal in rows])
