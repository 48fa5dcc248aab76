"""What making a hotpatch costs beside the plain build: a generated C project of many files, one function changed."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from bench.measure import WORK, median, midflight, save, table

FILES, FUNCTIONS = 60, 40
RUNS = 3
_MAKE = "make -j2"


def _project(root: Path, changed: bool) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        lines = ["#include <stdio.h>", "#include <string.h>", "#include <stdlib.h>"]
        for f in range(FUNCTIONS):
            add = 2 if changed and number == 7 and f == 3 else 1
            lines.append(
                f"int f{number}_{f}(const char *s, int n) {{ int t = {add}; for (int i = 0; i < n; i++) "
                f't += s[i % 7] * {f + 3}; if (t % 11 == 3) printf("{number} %d\\n", t); return t; }}'
            )
        (root / f"file{number}.c").write_text("\n".join(lines) + "\n")
    calls = "\n".join(f"  t += f{n}_{f}(v[0], c);" for n in range(FILES) for f in range(0, FUNCTIONS, 8))
    declarations = "\n".join(
        f"int f{n}_{f}(const char *, int);" for n in range(FILES) for f in range(0, FUNCTIONS, 8)
    )
    (root /
    "main.c").write_text(f"{declarations}\nint main(int c, char **v) {{ int t = 0;\n{calls}\n
    
    
    
     return t & 1; }}\n") objects = "
     ".join(f"file{n}.o" for n in range(FILES))
    (root / "Makefile").write_text(f"CFLAGS = -O2\nprog: main.o {objects}\n\t$(CC) -o $@ $^\n")


def _seconds(run: object) -> float:
    begin = time.monotonic()
    assert callable(run)
    run()
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
        tree = work / f"plain{run}"
        shutil.copytree(work / "source", tree)
        plain.append(_seconds(lambda tree=tree: subprocess.run(["sh", "-c", _MAKE], cwd=tree, check=True, capture_output=True)))
        for times, cache in ((first, work / f"cache{run}"), (again, work / f"cache{run}")):
            out = work / "x.hotpatch"
            out.unlink(missing_ok=True)
            times.append(
                _seconds(
                    lambda cache=cache, out=out, tree=tree: midflight(
                        "build", "--source", work / "source", "--fix", work / "fixed", "--make", _MAKE, "--image", "prog",
                        "--running", tree / "prog", "--key", work / "key.key", "--cache", cache, "-o", out,
                    )  # fmt: skip
                )
            )
    base = median(plain)
    rows = [
        ["plain build", base, 1.0],
        ["midflight build, first", median(first), median(first) / base],
        ["midflight build, again", median(again), median(again) / base],
    ]
    table(f"building, {FILES} files of {FUNCTIONS} functions, medians", ["what", "seconds", "ratio"], rows)
    save("build", [{"what": w, "seconds": s, "ratio": r} for w, s, r in rows])
