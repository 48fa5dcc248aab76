"""midflight build as an author uses it: a small project, real compilers, the file that comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from midflight.cli.build import parse_overrides
from midflight.errors import InputError

MIDFLIGHT = Path(sys.executable).with_name("midflight")
PROGRAM = """\
#include <stdio.h>

int limit = 10;

__attribute__((noinline)) int price(int pieces)
{
    return pieces * limit;
}

int main(int argc, char **argv)
{
    (void)argv;
    printf("%d\\n", price(argc));
    return 0;
}
"""
MAKEFILE = "prog: prog.o\n\tgcc -o prog prog.o\nprog.o: prog.c\n\tgcc -O2 -g -c prog.c\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a source tree, a key pair, and room for the rest."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "prog.c").write_text(PROGRAM)
    (tree / "Makefile").write_text(MAKEFILE)
    subprocess.run([MIDFLIGHT, "keygen", tmp_path / "k"], check=True, capture_output=True)
    return tmp_path


def build(project: Path, fix: tuple[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command for a fix that replaces one piece of text."""
    fixed = project / "fixed"
    fixed.mkdir(exist_ok=True)
    assert fix[0] in PROGRAM
    for name, text in (("prog.c", PROGRAM.replace(*fix)), ("Makefile", MAKEFILE)):
        if not (fixed / name).exists() or (fixed / name).read_text() != text:
            (fixed / name).write_text(text)
    return run(project, *more)


def run(project: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command for the trees as they are."""
    command = ["build", "--source", "tree", "--fix", "fixed", "--make", "make", "--image", "prog", "--cache", "cache"]
    command += ["--key", "k.key", "-o", "out.hotpatch", *more]
    return subprocess.run([MIDFLIGHT, *command], cwd=project, capture_output=True, text=True, check=False, timeout=240)


GOOD = ("return pieces * limit;", "return pieces < 0 ? 0 : pieces * limit;")


def test_a_fix_becomes_a_signed_hotpatch(project: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "tree").iterdir()}
    done = build(
        project, GOOD, "--cve", "CVE-2026-1234", "--name", "shop", "--sequence", "4", "--description", "No debts"
    )
    assert done.returncode == 0, done.stderr
    assert "price" in done.stdout
    assert "prog.c" in done.stdout
    assert {path: path.read_bytes() for path in (project / "tree").iterdir()} == before
    inspect = [str(MIDFLIGHT), "inspect", "out.hotpatch", "--trust", "k.pub", "--json"]
    shown = json.loads(subprocess.run(inspect, cwd=project, capture_output=True, text=True, check=True).stdout)
    manifest = shown["manifest"]
    assert shown["verified"]
    assert (manifest["name"], manifest["sequence"], manifest["cves"]) == ("shop", 4, ["CVE-2026-1234"])
    assert [function["name"] for function in manifest["targets"][0]["functions"]] == ["price"]

    first = (project / "out.hotpatch").read_bytes()
    again = build(
        project, GOOD, "--cve", "CVE-2026-1234", "--name", "shop", "--sequence", "4", "--description", "No debts"
    )
    assert again.returncode == 0
    assert (project / "out.hotpatch").read_bytes() == first, "the same input gives the same file"


def test_what_is_built_for_programs(project: Path) -> None:
    done = build(project, GOOD, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["written"] == "out.hotpatch"
    assert [function["name"] for function in document["report"]["functions"]] == ["price"]


def test_a_refusal_shows_every_finding_and_writes_nothing(project: Path) -> None:
    fix = ("int limit = 10;", "int limit = 20;")
    done = build(project, fix)
    assert done.returncode == 3
    assert done.stdout.startswith("MF110  prog.c: limit\n")
    assert done.stderr.splitlines()[-1] == "midflight: refused: one finding (MF110); no hotpatch was written"
    assert not (project / "out.hotpatch").exists()
    document = json.loads(build(project, fix, "--json").stdout)
    assert document["written"] is None
    assert document["error"]["exit_status"] == 3
    assert [(item["code"], item["symbol"]) for item in document["report"]["findings"]] == [("MF110", "limit")]


def test_an_override_needs_a_reason_that_stays_in_the_hotpatch(project: Path) -> None:
    fix = ("int limit = 10;\n", "int limit = 20;\nint unused_before;\n")
    both = (PROGRAM, PROGRAM.replace(*fix).replace(*GOOD))
    assert build(project, both, "--override", "MF110:limit").returncode == 2
    done = build(project, both, "--override", "MF110:limit=new limit comes from the configuration")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MF110 limit: new limit comes from the configuration" in done.stdout


def test_a_build_that_fails_shows_the_compilers_words_and_leaves_nothing(project: Path) -> None:
    done = build(project, ("return pieces * limit;", "return pieces * limitless;"))
    assert done.returncode == 2
    assert done.stderr.count("midflight: ") == 1
    assert "limitless" in done.stderr
    assert not (project / "out.hotpatch").exists()
    assert sorted(path.name for path in (project / "tree").iterdir()) == ["Makefile", "prog.c"]


def test_nothing_is_built_when_the_result_could_not_be_signed_or_written(project: Path) -> None:
    for words in (
        ("--key", "absent.key"),
        ("-o", "no/such/folder/x"),
        ("--cache", "cache", "--no-cache"),
        ("--cve", "2026-1234"),
        ("--name", "two words"),
        ("--sequence", "-1"),
        ("--policy", "entry"),
    ):
        done = build(project, GOOD, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), words
        assert not (project / "cache").exists()


@pytest.mark.parametrize(
    "word",
    ["MF110", "MF110:table", "MF110:table=", "MF110:table=  ", "MF110=why", "XX110:table=why", "MF999:table=why", ""],
)
def test_overrides_of_another_form_are_refused(word: str) -> None:
    with pytest.raises(InputError, match="--override"):
        parse_overrides([word])


def test_overrides_may_say_anything_but_twice() -> None:
    words = ["MF110:table=read = written: always", "MF112:table=why"]
    assert parse_overrides(words) == {("MF110", "table"): "read = written: always", ("MF112", "table"): "why"}
    with pytest.raises(InputError, match="twice"):
        parse_overrides(["MF110:table=a", "MF110:table=b"])


def test_a_finding_in_many_objects_is_shown_once(project: Path) -> None:
    """A struct in a header concerns every object that includes it."""
    units = [f"unit{number}" for number in range(6)]
    header = "struct item { int price; };\nint all(struct item *);\n"
    makefile = (
        f"prog: {' '.join(f'{unit}.o' for unit in units)}\n\tgcc -o prog $^\n%.o: %.c item.h\n\tgcc -O2 -g -c $<\n"
    )
    for name, members in (("tree", "int price;"), ("fixed", "int price; int tax;")):
        folder = project / name
        folder.mkdir(exist_ok=True)
        (folder / "prog.c").unlink(missing_ok=True)
        (folder / "Makefile").write_text(makefile)
        (folder / "item.h").write_text(header.replace("int price;", members))
        for unit in units:
            text = f"int {unit}(struct item *i) {{ return i->price + (int)sizeof *i; }}\n"
            text += "int main(void) { struct item i = {1}; return unit0(&i); }\n" if unit == "unit1" else ""
            (folder / f"{unit}.c").write_text('#include "item.h"\nint unit0(struct item *i);\n' + text)
    done = run(project)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("MF111") == 1
    assert "unit0.c, unit1.c, unit2.c and 3 more files: " in " ".join(done.stdout.split())
