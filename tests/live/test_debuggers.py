"""Debuggers and profilers on new code: gdb's backtraces, and names in perf."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.commands import midflight
from tests.live.harness import Fix, Lab, Target
from tests.live.story import versions

pytestmark = pytest.mark.live

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static volatile int spinning;
__attribute__((noinline)) int inner(int n) {
  volatile char space[@{100@|300@}];
  char line[64];
  memset((void *)space, n, sizeof space);
  if (spinning) for (volatile long i = 0; i < 3000000000; i++) n ^= i @{@|+ 1@};
  if (!fgets(line, sizeof line, stdin)) return -1;
  spinning = *line == 's';
  printf("%d\n", space[5] @{+@|*@} n);
  return space[n] + space[1];
}
__attribute__((noinline)) int outer(int n) { volatile long a[@{7@|33@}]; a[n] = inner(n); return (int)a[n] + 1; }
int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (outer(3) > 0) {}
  return 0;
}
"""


@pytest.fixture(scope="module")
def fix(lab: Lab) -> Fix:
    before, after = versions(PROGRAM)
    policy = ("--policy", "entry", "--policy-reason", "they share no state")
    return lab.fix("debuggers", {"target.c": before}, {"target.c": after}, options=policy)


def backtrace(pid: int, *options: str) -> list[str]:
    """The functions on the stack of the only thread, as gdb says, the innermost first."""
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-p", str(pid), *options, "-ex", "bt"], capture_output=True, text=True, timeout=120
    )
    return re.findall(r"^#\d+\s+(?:0x[0-9a-f]+ in )?([^\s(]+)", done.stdout, re.MULTILINE)


def test_gdb_unwinds_through_new_code(fix: Fix, tmp_path: Path) -> None:
    with Target.start(fix.image) as target:
        fix.apply(target.pid)
        assert [target.ask(), target.ask()] == ["6", "9"]
        (script,) = midflight("status", "--pid", str(target.pid), "--gdb", tmp_path, "--json").json["gdb"]
        stack = backtrace(target.pid, "-x", script)
        assert stack[stack.index("inner") :] == ["inner", "outer", "main"]
        assert target.ask() == "9"


def test_perf_names_new_code(fix: Fix, tmp_path: Path) -> None:
    with Target.start(fix.image) as target:
        fix.apply(target.pid)
        assert target.ask() == "6"
        names = Path(f"/tmp/perf-{target.pid}.map")
        names.write_text(midflight("status", "--pid", str(target.pid), "--perf-map").out)
        try:
            assert target.ask("spin") == "9"
            data = tmp_path / "perf.data"
            record = ["perf", "record", "-e", "cpu-clock", "-o", str(data), "-p", str(target.pid), "--", "sleep", "0.3"]
            subprocess.run(record, check=True, capture_output=True, timeout=60)
            script = ["perf", "script", "-i", str(data), "-F", "ip,sym"]
            said = subprocess.run(script, check=True, capture_output=True, text=True, timeout=60).stdout
            assert "inner[debuggers]" in said.split()
        finally:
            names.unlink()
