"""What making a hotpatch costs beside the plain build: a generated C project of many files, one function changed."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from bench.measure import WORK, median, midflight, save, table

FILES, FUNCTIONS, CALLED = 60, 40, 8
RUNS = 3
MAKE = "make -j2"

_FUNCTION = """\
int f{file}_{number}(const char *s, int n) {{
  int t = {start};
  for (int i = 0; i < n; i++) t += s[i % 7] * {factor};
  if (t % 11 == 3) printf("{file} %d\\n", t);
  return t;
}}
"""
_MAIN = "{declarations}\nint main(int c, char **v) {{\n  int t = 0;\n{calls}\n  return t & 1;\n}}\n"


def _project(root: Path, changed: bool) -> None:
    root.mkdir(parents=True, exist_ok=True)
    called = [(file, number) for file in range(FILES) for number in range(0, FUNCTIONS, CALLED)]
    for file in range(FILES):
        functions = [
            _FUNCTION.format(
                file=file, number=number, start=2 if changed and (file, number) == (7, 3) else 1, factor=number + 3
            )
            for number in range(FUNCTIONS)
        ]
        (root / f"file{file}.c").write_text("#include <stdio.h>\n" + "\n".join(functions))
    declarations = "\n".join(f"int f{file}_{number}(const char *, int);" for file, number in called)
    calls = "\n".join(f"  t += f{file}_{number}(v[0], c);" for file, number in called)
    (root / "main.c").write_text(_MAIN.format(declarations=declarations, calls=calls))
    objects = " ".join(f"file{file}.o" for file in range(FILES))
    (root / "Makefile").write_text(f"CFLAGS = -O2\nprog: main.o {objects}\n\t$(CC) -o $@ $^\n")


def _plain(source: Path, tree: Path) -> float:
    shutil.copytree(source, tree)
    begin = time.monotonic()
    subprocess.run(["sh", "-c", MAKE], cwd=tree, check=True, capture_output=True)
    return time.monotonic() - begin


def _forged(work: Path, tree: Path, cache: Path) -> float:
    out = work / "x.hotpatch"
    out.unlink(missing_ok=True)
    begin = time.monotonic()
    midflight(
        "build", "--source", work / "source", "--fix", work / "fixed", "--make", MAKE, "--image", "prog",
        "--running", tree / "prog", "--name", "bench", "--key", work / "key.key", "--cache", cache, "-o", out,
    )  # fmt: skip
    return time.monotonic() - begin


def main() -> None:
    """Measure and print."""
    work = WORK / "build"
    shutil.rmtree(work, ignore_errors=True)
    _project(work / "source", False)
    _project(work / "fixed", True)
    midflight("keygen", work / "key")
    plain, first, again = [], [], []
    for run in range(RUNS):
        tree, cache = work / f"plain{run}", work / f"cache{run}"
        plain.append(_plain(work / "source", tree))
        first.append(_forged(work, tree, cache))
        again.append(_forged(work, tree, cache))
    base = median(plain)
    rows = [
        ["plain build", base, 1.0],
        ["midflight build, first", median(first), median(first) / base],
        ["midflight build, again", median(again), median(again) / base],
    ]
    table(f"building, {FILES} files of {FUNCTIONS} functions, medians", ["what", "seconds", "ratio"], rows)
    save("build", [{"what": what, "seconds": seconds, "ratio": ratio} for what, seconds, ratio in rows])
