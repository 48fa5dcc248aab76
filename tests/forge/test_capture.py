"""Capture of real builds: which objects changed, how they were compiled, what stays untouched."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from midflight.errors import ForgeError, InputError, Refused
from midflight.forge.capture.buildtree import locked
from midflight.forge.model import BuildPair
from tests.forge.capture_projects import (
    C_PROGRAM,
    HELPER_PATCH,
    LIMIT_H,
    LIMIT_PATCH,
    Bench,
    compiled,
    names,
    sections,
    write_tree,
)

MAKEFILE = """\
CFLAGS = -O2
OBJS = main.o helper.o
prog: $(OBJS)
	$(CC) $(CFLAGS) -o $@ $(OBJS)
"""


@pytest.fixture
def project(tmp_path: Path) -> Bench:
    return Bench(tmp_path, {**C_PROGRAM, "Makefile": MAKEFILE})


def output(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def test_a_patch_changes_the_one_object_it_touches(project: Bench) -> None:
    pair = project.build(project.fix(HELPER_PATCH))

    assert names(pair, pair.changed) == ["helper.o"]
    assert names(pair, pair.pre.inputs) == names(pair, pair.post.inputs) == ["main.o", "helper.o"]
    assert compiled(project.work, "pre") == ["helper.c", "main.c"]
    assert compiled(project.work, "post") == ["helper.c"]
    assert output(pair.pre.image) == "2 2 10\n"
    assert output(pair.post.image) == "3 2 10\n"


def test_objects_have_sections_of_their_own_and_debug_information(project: Bench) -> None:
    pair = project.build(project.fix(HELPER_PATCH))

    helper = pair.changed[0]
    for build in (pair.pre, pair.post):
        assert {".text.helper", ".bss.seen", ".debug_info"} <= sections(build, helper)
        made = build.objects[helper]
        assert made.source == pair.tree / "helper.c"
        assert made.directory == pair.tree
        assert made.compiler.startswith("GCC: (")
        assert "-O2" in made.arguments


def test_the_plain_image_is_built_without_added_flags(project: Bench) -> None:
    pair = project.build(project.fix(HELPER_PATCH))

    assert pair.plain_image is not None
    assert output(pair.plain_image) == "2 2 10\n"
    names_in_plain = subprocess.run(
        ["readelf", "-SW", pair.plain_image], capture_output=True, text=True, check=True
    ).stdout
    assert ".debug_info" not in names_in_plain


def test_no_plain_build_when_the_running_binary_is_given(project: Bench) -> None:
    pair = project.build(project.fix(HELPER_PATCH), running=Path("/bin/true"))

    assert pair.plain_image is None
    assert not any(line.startswith("plain") for line in project.told)


def test_every_build_runs_at_the_same_path(tmp_path: Path) -> None:
    makefile = "prog: main.c\n\t$(CC) -O2 -o $@ $(CURDIR)/main.c\n"
    where = "#include <stdio.h>\nint main(void) { puts(__FILE__); puts(__DATE__ __TIME__); return 0; }\n"
    bench = Bench(tmp_path, {"main.c": where, "Makefile": makefile})
    fixed = where.replace("return 0", "return 0 * 1 + (int)sizeof(char) - 1")
    (tmp_path / "fixed").mkdir()
    write_tree(
        tmp_path / "fixed",
        {"main.c": fixed.replace("puts(__FILE__)", 'printf("%s\\n", __FILE__)'), "Makefile": makefile},
    )
    pair = bench.build(tmp_path / "fixed")

    assert pair.plain_image is not None
    assert output(pair.plain_image) == output(pair.pre.image) == output(pair.post.image)
    assert output(pair.pre.image).splitlines()[0] == str(pair.tree / "main.c")


def test_a_second_tree_as_fix(project: Bench, tmp_path: Path) -> None:
    fixed = write_tree(tmp_path / "fixed", {**C_PROGRAM, "Makefile": MAKEFILE.replace("helper.o", "helper.o more.o")})
    (fixed / "helper.c").write_text(
        C_PROGRAM["helper.c"].replace("seen + 1", "seen + more()").replace("static", "int more(void);\nstatic")
    )
    (fixed / "more.c").write_text("int more(void) { return 40; }\n")
    (fixed / "spare.c").unlink()
    pair = project.build(fixed)

    assert sorted(names(pair, pair.changed)) == ["helper.o", "more.o"]
    assert pair.tree / "more.o" not in pair.pre.inputs
    assert not (pair.tree / "spare.c").exists()
    assert output(pair.post.image) == "41 2 10\n"


def test_a_changed_header_reaches_objects_whose_dependencies_the_makefile_does_not_know(project: Bench) -> None:
    pair = project.build(project.fix(LIMIT_PATCH))

    assert names(pair, pair.changed) == ["main.o"]
    assert output(pair.post.image) == "2 2 20\n"


def test_a_generated_header_reaches_its_includers_too(tmp_path: Path) -> None:
    makefile = MAKEFILE + "\nhelper.o: limit.h\nlimit.h: limit.in\n\tsed 's/@/#define/' $< > $@\n"
    files = {k: v for k, v in C_PROGRAM.items() if k != "limit.h"}
    bench = Bench(tmp_path, {**files, "limit.in": LIMIT_H.replace("#define", "@"), "Makefile": makefile})
    patch = LIMIT_PATCH.replace("limit.h", "limit.in").replace("#define", "@")
    pair = bench.build(bench.fix(patch), "make limit.h prog")

    assert names(pair, pair.changed) == ["main.o"]
    assert output(pair.post.image) == "2 2 20\n"


def test_a_second_run_takes_what_exists_and_another_fix_starts_from_pre(project: Bench) -> None:
    first = project.build(project.fix(HELPER_PATCH))
    project.told.clear()
    again = project.build(project.fix(HELPER_PATCH))

    assert again == first
    assert [line for line in project.told if "cache" in line] == [
        f"{x}: taken from the cache" for x in ("plain", "pre", "post")
    ]

    other = project.build(project.fix(LIMIT_PATCH, "other.patch"))
    assert names(other, other.changed) == ["main.o"]
    assert other.pre == first.pre
    assert output(other.post.image) == "2 2 20\n"


def test_fuzz_is_tolerated_and_told(project: Bench) -> None:
    (project.source / "helper.c").write_text(
        "/* moved down */\n" + C_PROGRAM["helper.c"].replace("(int x)", "( int x )")
    )
    pair = project.build(project.fix(HELPER_PATCH))

    assert names(pair, pair.changed) == ["helper.o"]
    assert any("hunk 1 of helper.c applied at line 3 with fuzz" in line for line in project.told)


def test_a_patch_without_leading_folder(project: Bench) -> None:
    pair = project.build(
        project.fix(HELPER_PATCH.replace("a/helper.c", "helper.c.orig").replace("b/helper.c", "helper.c"))
    )

    assert names(pair, pair.changed) == ["helper.o"]


def test_a_patch_that_adds_and_removes_files(project: Bench) -> None:
    added = "--- /dev/null\n+++ b/limit2.h\n@@ -0,0 +1 @@\n+#define LIMIT 30\n"
    removed = "--- a/limit.h\n+++ /dev/null\n@@ -1 +0,0 @@\n-#define LIMIT 10\n"
    used = (
        "--- a/main.c\n+++ b/main.c\n@@ -1,3 +1,3 @@\n #include <stdio.h>\n"
        '-#include "limit.h"\n+#include "limit2.h"\n int helper(int);\n'
    )
    pair = project.build(project.fix(added + removed + used))

    assert names(pair, pair.changed) == ["main.o"]
    assert output(pair.post.image) == "2 2 30\n"
    assert not (pair.tree / "limit.h").exists()


# --- what cannot be done -------------------------------------------------------------------------------------------


def test_a_fix_that_does_not_apply_names_file_and_hunk_and_builds_nothing(project: Bench) -> None:
    patch = (
        HELPER_PATCH.replace("seen + 1", "seen + 7")
        .replace("seen += x", "seen -= x")
        .replace(" int helper", " long helper")
    )
    with pytest.raises(InputError, match=r"fix.patch does not apply: hunk 1 of helper.c \(at line 2\)"):
        project.build(project.fix(patch))
    assert project.left_over() == []


def test_a_fix_that_is_there_already(project: Bench) -> None:
    (project.source / "helper.c").write_text(C_PROGRAM["helper.c"].replace("seen + 1", "seen + 2"))
    with pytest.raises(InputError, match=r"the changes of helper.c seem to be there already"):
        project.build(project.fix(HELPER_PATCH))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "is no patch"),
        (HELPER_PATCH.replace("helper.c", "gone.c"), "gone.c"),
        (
            HELPER_PATCH.replace("a/helper.c", "a/../../etc/x").replace("b/helper.c", "b/../../etc/x"),
            "outside of the tree",
        ),
    ],
)
def test_unusable_fixes(project: Bench, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        project.build(project.fix(text))
    assert project.left_over() == []


def test_a_fix_that_changes_no_compiled_file(project: Bench) -> None:
    patch = (
        "--- a/spare.c\n+++ b/spare.c\n@@ -1 +1 @@\n-int spare(void) { return 3; }\n+int spare(void) { return 4; }\n"
    )
    with pytest.raises(ForgeError, match=r"changes no compiled file of prog \(it touches spare.c\)"):
        project.build(project.fix(patch))


def test_a_fix_that_changes_another_image_only(tmp_path: Path) -> None:
    makefile = MAKEFILE + "spare: spare.o\n\t$(CC) -shared -o $@ spare.o\n"
    bench = Bench(tmp_path, {**C_PROGRAM, "Makefile": makefile})
    patch = (
        "--- a/spare.c\n+++ b/spare.c\n@@ -1 +1 @@\n-int spare(void) { return 3; }\n+int spare(void) { return 4; }\n"
    )
    with pytest.raises(ForgeError, match=r"changes no object of prog, only others \(spare.o\)"):
        bench.build(bench.fix(patch), "make CFLAGS=-fPIC prog spare")


def test_a_failing_build_shows_the_compilers_message_and_leaves_nothing(project: Bench) -> None:
    (project.source / "spare.c").write_text("int spare(void) { return missing; }\n")
    with pytest.raises(ForgeError, match=r"(?s)failed with status 2.*spare.c:1:26: error: .missing. undeclared"):
        project.build(project.fix(HELPER_PATCH), "make -k OBJS='main.o helper.o spare.o'")
    assert project.left_over() == []


def test_a_fix_that_breaks_the_build_leaves_the_good_pre_build_alone(project: Bench) -> None:
    with pytest.raises(ForgeError, match=r"(?s)helper.c.*error"):
        project.build(project.fix(HELPER_PATCH.replace("+    return seen + 2;", "+    return seen + two;")))
    assert not list(project.work.glob("*/post-*"))
    assert not list(project.work.glob("*/tree"))

    pair = project.build(project.fix(HELPER_PATCH))
    assert names(pair, pair.changed) == ["helper.o"]
    assert "pre: taken from the cache" in project.told


def test_an_image_that_the_build_does_not_make(project: Bench) -> None:
    with pytest.raises(ForgeError, match=r"server is not there after 'make'"):
        project.build(project.fix(HELPER_PATCH), image="server")
    assert project.left_over() == []


def test_a_source_that_is_built_already(project: Bench, tmp_path: Path) -> None:
    subprocess.run(["make"], cwd=project.source, check=True, capture_output=True)
    with pytest.raises(ForgeError, match="no compiler was seen at work"):
        project.build(project.fix(HELPER_PATCH))


def test_work_inside_of_the_source_is_refused(project: Bench) -> None:
    project.work = project.source / "work"
    with pytest.raises(InputError, match="lies in the source tree"):
        project.build(project.fix(HELPER_PATCH))


@pytest.mark.parametrize("image", ["../prog", "/bin/true", "."])
def test_an_image_outside_of_the_tree(project: Bench, image: str) -> None:
    with pytest.raises(InputError, match="--image"):
        project.build(project.fix(HELPER_PATCH), image=image)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_link_time_optimisation_is_refused_by_name(project: Bench, compiler: str) -> None:
    link = f"{compiler} -flto " + ("-fuse-ld=lld " if compiler == "clang" else "")
    make = f"{compiler} -O2 -flto -c main.c && {compiler} -O2 -flto -c helper.c && {link} -o prog main.o helper.o"
    with pytest.raises(Refused, match=r"^MF101 main.o: "):
        project.build(project.fix(HELPER_PATCH), make)


def test_an_object_that_no_recorded_compiler_made_must_not_change(project: Bench) -> None:
    make = "as -o helper.o helper.s && cc -c main.c && cc -o prog main.o helper.o"
    shutil.copy(project.source / "helper.c", project.source / "in.c")
    subprocess.run(["gcc", "-O2", "-S", "-o", "helper.s", "in.c"], cwd=project.source, check=True)
    text = (project.source / "helper.s").read_text().splitlines()
    at = next(i for i, line in enumerate(text) if line.strip() == "ret")
    patch = f"--- a/helper.s\n+++ b/helper.s\n@@ -{at + 1} +{at + 1},2 @@\n+\tnop\n {text[at]}\n"
    with pytest.raises(Refused, match=r"MF105 helper.o: the fix changes this object of prog"):
        project.build(project.fix(patch), make)


def test_unchanged_object_of_another_maker_is_no_obstacle(project: Bench) -> None:
    make = "as -o spare.o spare.s && cc -c main.c && cc -c helper.c && cc -o prog main.o helper.o spare.o"
    (project.source / "spare.s").write_text(".globl spare\nspare: ret\n")
    pair: BuildPair = project.build(project.fix(HELPER_PATCH), make)

    assert names(pair, pair.pre.inputs) == ["main.o", "helper.o"]
    assert names(pair, pair.changed) == ["helper.o"]


def test_builds_that_nobody_used_for_a_month_are_removed(tmp_path: Path) -> None:
    names_of = {"old": "a" * 24, "new": "b" * 24, "busy": "c" * 24, "half": "d" * 24, "else": "my notes"}
    for what, name in names_of.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
        if what != "half":
            (tmp_path / name / "complete").touch()
        if what != "new":
            os.utime(tmp_path / name, (0, time.time() - 31 * 24 * 3600))
    descriptor = os.open(tmp_path / names_of["busy"], os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with locked(tmp_path / ("e" * 24), lambda line: None) as base:
            (base / "complete").touch()
    finally:
        os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {*names_of.values(), "e" * 24} - {names_of["old"]}
    with locked(tmp_path / names_of["busy"], lambda line: None):
        pass  # who uses one keeps it
    assert (tmp_path / names_of["busy"]).stat().st_mtime > time.time() - 60
