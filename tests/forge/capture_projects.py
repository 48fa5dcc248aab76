"""Small real projects for the tests of capture, written into a folder of the test's own."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path

from midflight.forge.capture.capture import build_pair
from midflight.forge.model import Build, BuildPair
from midflight.image.elf import ElfFile

MAIN_C = """\
#include <stdio.h>
#include "limit.h"
int helper(int);
static int twice(int x) { return 2 * x; }
int main(int argc, char **argv)
{
    printf("%d %d %d\\n", helper(argc), twice(argc), LIMIT);
    return 0;
}
"""
LIMIT_H = "#define LIMIT 10\n"
HELPER_C = """\
static int seen;
int helper(int x)
{
    seen += x;
    return seen + 1;
}
"""
SPARE_C = "int spare(void) { return 3; }\n"

C_PROGRAM = {"main.c": MAIN_C, "limit.h": LIMIT_H, "helper.c": HELPER_C, "spare.c": SPARE_C}

HELPER_PATCH = """\
Description: count differently
Author: A. Person
--- a/helper.c
+++ b/helper.c
@@ -2,5 +2,5 @@
 int helper(int x)
 {
     seen += x;
-    return seen + 1;
+    return seen + 2;
 }
"""
LIMIT_PATCH = "--- a/limit.h\n+++ b/limit.h\n@@ -1 +1 @@\n-#define LIMIT 10\n+#define LIMIT 20\n"


def write_tree(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files (text by relative path) under a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)
    return folder


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All there is to see of a tree: modes, times, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found[str(path.relative_to(folder))] = (
            seen.st_mode,
            seen.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
    return found


class Bench:
    """One project under test: its source, a folder for work, and the lines that were told."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.folder = folder
        self.source = write_tree(folder / "source", files)
        self.work = folder / "work"
        self.told: list[str] = []

    def fix(self, text: str, name: str = "fix.patch") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def build(self, fix: Path, make: str = "make", image: str = "prog", running: Path | None = None) -> BuildPair:
        """Run the capture; the source tree must be as it was afterwards."""
        before = state(self.source)
        try:
            return build_pair(self.source, fix, make, image, self.work, running, self.told.append)
        finally:
            assert state(self.source) == before

    def left_over(self) -> list[str]:
        """What stands in the folder for work."""
        return sorted(os.listdir(self.work)) if self.work.exists() else []


def names(pair: BuildPair, paths: tuple[Path, ...]) -> list[str]:
    """Object paths relative to the tree."""
    return [os.path.relpath(path, pair.tree) for path in paths]


def compiled(work: Path, phase: str) -> list[str]:
    """Sources that were compiled in a phase, by the wrapper's own records."""
    found = []
    for record in sorted(work.glob(f"*/{phase}*/records/*")):
        fields = ast.literal_eval(record.read_text())
        if fields["what"] == "object" and "/tree/" in fields["source"]:  # config.guess compiles something in /tmp
            found.append(Path(fields["source"]).name)
    return sorted(found)


def sections(build: Build, path: Path) -> set[str]:
    with ElfFile.open(build.objects[path].saved) as elf:
        return {section.name for section in elf.sections}
