"""How a Debian patch becomes the fix that the forge is given. (Fast: no package is fetched or built.)"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.corpus.building import code_of
from tests.corpus.model import Edit
from tests.corpus.shipped import MissingError, edited

PATCH = """\
From: A maintainer
Subject: Close the hole
--- is not the head of a file here

 src/a.c | 3 +--
diff --git a/src/a.c b/src/a.c
index 123..456 100644
--- a/src/a.c\t2026-01-01 00:00:00
+++ b/src/a.c
@@ -1,4 +1,3 @@ int f(void)
 one
--- two
-+++ three
+two and three

@@ -8 +7,2 @@
-eight
+eight, at last
+nine
\\ No newline at end of file
--- a/tests/unit/a.c
+++ b/tests/unit/a.c
@@ -1 +1 @@
-old
+new
--- a/docs/a.txt
+++ b/docs/a.txt
@@ -1 +1 @@
-old
+new
--- /dev/null
+++ b/src/b.h
@@ -0,0 +1 @@
+new
--
2.39
"""


def test_only_code_of_the_program_is_kept() -> None:
    code = code_of(PATCH)
    heads = [line for line in code.splitlines() if line.startswith(("--- a", "--- /", "+++ b"))]
    assert heads == ["--- a/src/a.c", "+++ b/src/a.c", "--- /dev/null", "+++ b/src/b.h"]
    assert "-+++ three\n" in code and "eight, at last\n" in code
    assert "2.39" not in code and "maintainer" not in code


def test_the_rest_applies_as_the_whole_did(tmp_path: Path) -> None:
    source = tmp_path / "src" / "a.c"
    source.parent.mkdir()
    source.write_text("one\n-- two\n+++ three\n\nfive\nsix\nseven\neight\n")
    subprocess.run(["patch", "-p1", "-s"], input=code_of(PATCH), text=True, cwd=tmp_path, check=True)
    assert source.read_text() == "one\ntwo and three\n\nfive\nsix\nseven\neight, at last\nnine"
    assert (tmp_path / "src" / "b.h").read_text() == "new\n"


def test_a_patch_without_code_becomes_nothing() -> None:
    assert code_of("--- a/debian/changelog\n+++ b/debian/changelog\n@@ -0,0 +1 @@\n+text\n") == ""


def test_edits_become_one_patch_of_a_file(tmp_path: Path) -> None:
    source = tmp_path / "src" / "a.c"
    source.parent.mkdir()
    source.write_text("int f(int x)\n{\n\treturn g(x) + h(x);\n}\n")
    edits = (
        Edit("src/a.c", "\treturn", "\tif (x < 0)\n\t\treturn 0;\n\treturn"),
        Edit("src/b.c", "of another file", ""),
        Edit("src/a.c", "g(x)", "g(x, 1)"),
    )
    patch = edited(tmp_path, "src/a.c", edits)
    subprocess.run(["patch", "-p1", "-s"], input=patch, cwd=tmp_path, check=True)
    assert source.read_text() == "int f(int x)\n{\n\tif (x < 0)\n\t\treturn 0;\n\treturn g(x, 1) + h(x);\n}\n"


@pytest.mark.parametrize("old", ["y", "x"])
def test_an_edit_that_fits_nowhere_or_twice_is_none(tmp_path: Path, old: str) -> None:
    (tmp_path / "a.c").write_text("int x;\nint *p = &x;\n")
    with pytest.raises(MissingError, match=r"a\.c has [02] times"):
        edited(tmp_path, "a.c", (Edit("a.c", old, "z"),))
