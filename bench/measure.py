"""What the benchmarks share: a hotpatch for a small program, medians, tables, and where the JSON goes."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "bench"
PROGRAMS = Path(__file__).resolve().parent / "programs"
MIDFLIGHT = (sys.executable, "-m", "midflight")
# Users have compiled modules; an environment that forbids Python to keep them would be measured instead.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def midflight(*words: object) -> Any:
    """Run a command with --json; returns its document."""
    done = subprocess.run([*MIDFLIGHT, *map(str, words), "--json"], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"midflight {words[0]} failed: {done.stderr}")
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Subject:
    """A program that runs, and the hotpatch that the measurements put into it."""

    program: Path
    hotpatch: Path
    trust: Path
    build_seconds: float


def subject(name: str = "threads", flags: str = "-O2 -pthread") -> Subject:
    """Build ``programs/NAME.c`` and a hotpatch that changes what its function answers from 1 to 2."""
    work = WORK / name
    source, fixed = work / "source", work / "fixed"
    text = (PROGRAMS / f"{name}.c").read_text()
    for folder, answer in ((source, "1"), (fixed, "2")):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.c"
        wanted = f"#define ANSWER {answer}\n{text}"
        if not path.exists() or path.read_text() != wanted:
            path.write_text(wanted)
    program = work / name
    make = f"cc {flags} -o {name} {name}.c"
    subprocess.run(["sh", "-ec", f"cc {flags} -o {program} {name}.c"], cwd=source, check=True)
    key = WORK / "key"
    if not key.with_suffix(".key").exists():
        midflight("keygen", key)
    hotpatch = work / f"{name}.hotpatch"
    hotpatch.unlink(missing_ok=True)
    begin = time.monotonic()
    midflight(
        "build", "--source", source, "--fix", fixed, "--make", make, "--image", name, "--running", program,
        "--name", name, "--key", key.with_suffix(".key"), "-o", hotpatch,
    )  # fmt: skip
    return Subject(program, hotpatch, key.with_suffix(".pub"), time.monotonic() - begin)


class Running:
    """A program of ours that answers lines on its standard input."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [str(w) for w in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self._out, self._in = self.process.stdout, self.process.stdin
        if self._out.readline().strip() != "ready":
            raise SystemExit(f"{words[0]} did not start")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def ask(self, line: str = "") -> list[str]:
        """Send a line; the words of the answer."""
        self._in.write(line + "\n")
        self._in.flush()
        return self._out.readline().split()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._in.close()
        self._out.close()


def median(values: Iterable[float]) -> float:
    """The median, or 0 of nothing."""
    found = list(values)
    return statistics.median(found) if found else 0.0


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    lines = [list(map(str, headers)), *([_text(c) for c in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))))


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def save(name: str, document: Any) -> None:
    """Write the JSON of one benchmark."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.json"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
    }
    path.write_text(json.dumps({"machine": machine, "results": document}, indent=2) + "\n")
