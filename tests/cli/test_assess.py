"""midflight assess as authors and reviewers use it: verdict, exit status, document, page, and sign-off."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

MIDFLIGHT = Path(sys.executable).with_name("midflight")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "assessment-1.json").read_text())
PROGRAM = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct item { char *name; int price; };
int limit = 10;

__attribute__((noinline)) static int string_hash(const char *text)
{
    int h = 5381;
    while (*text)
        h = h * 33 + *text++;
    return h & 0xff;
}

__attribute__((noinline)) int price(struct item *item, int pieces)
{
    printf("<b>%s & co</b>\\n", item->name);
    return item->price * pieces + string_hash(item->name);
}

__attribute__((noinline)) void drop(struct item *item)
{
    item->price = 0;
}

int main(int argc, char **argv)
{
    struct item *item = calloc(1, sizeof *item);
    while (getchar() != EOF) {
        item->name = argv[0];
        printf("%d\\n", price(item, argc));
        drop(item);
    }
    return 0;
}
"""
MAKEFILE = "prog: prog.o\n\tgcc -o prog prog.o\nprog.o: prog.c\n\tgcc -O2 -g -c prog.c\n"

CHECK = ('    printf("<b>', '    if (pieces < 0 || pieces > limit)\n        return -1;\n    printf("<b>')
FREE = ("    item->price = 0;", "    free(item->name);\n    item->price = 0;")
HASH = ("h * 33 +", "h * 31 +")
GROWN = ("int price; };", "int price; int tax; };")
REVIEWER = "Jo Doe <jo@example.org>"
FREED = "MF170:drop=every name is from argv here, <sic>"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source tree, a key pair, and a cache that the tests share."""
    folder = tmp_path_factory.mktemp("assess")
    (folder / "tree").mkdir()
    (folder / "tree" / "prog.c").write_text(PROGRAM)
    (folder / "tree" / "Makefile").write_text(MAKEFILE)
    subprocess.run(["make", "-s", "-C", folder / "tree"], check=True)
    (folder / "tree" / "prog").rename(folder / "running")
    (folder / "tree" / "prog.o").unlink()
    subprocess.run([MIDFLIGHT, "keygen", folder / "k"], check=True, capture_output=True)
    return folder


WORDS = "--source tree --make make --image prog --running running --cache cache".split()  # noqa: SIM905
Done = subprocess.CompletedProcess[str]


def run(project: Path, command: str, *more: str | Path, fix: tuple[tuple[str, str], ...]) -> Done:
    """Run a command that takes a fix, for one that replaces pieces of text."""
    text = PROGRAM
    for old, new in fix:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    name = f"fix{abs(hash(text))}"
    (project / name).mkdir(exist_ok=True)
    (project / name / "prog.c").write_text(text)
    (project / name / "Makefile").write_text(MAKEFILE)
    return subprocess.run(
        [MIDFLIGHT, command, *WORDS, "--fix", name, *map(str, more)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def document(done: Done) -> Any:
    found = json.loads(done.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_a_bounds_check_can_be_hotpatched(project: Path) -> None:
    done = run(project, "assess", fix=(CHECK,))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("can be hotpatched\n")
    assert "price" in done.stdout and "What this cannot know" in done.stdout
    assert done.stderr.startswith("first answer: 1 source file, 2 lines: nothing")
    found = document(run(project, "assess", "--json", fix=(CHECK,)))
    assert (found["verdict"], found["findings"]) == ("patchable", [])
    assert [item["name"] for item in found["images"][0]["functions"]] == ["price"]
    assert not list(project.glob("*.hotpatch"))


def test_another_owner_needs_a_sign_off(project: Path) -> None:
    done = run(project, "assess", fix=(CHECK, FREE))
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("can be hotpatched after sign-off of one finding\n")
    assert "MF170  prog.c: drop" in done.stdout
    answered = run(project, "assess", "--override", FREED, "--reviewer", REVIEWER, fix=(CHECK, FREE))
    assert answered.returncode == 0, answered.stderr
    assert "every name is from argv here" in answered.stdout


def test_a_grown_struct_is_refused_and_the_gravest_comes_first(project: Path) -> None:
    done = run(project, "assess", "--json", fix=(FREE, HASH, GROWN))
    assert done.returncode == 3, done.stderr
    found = document(done)
    assert found["verdict"] == "refused"
    assert "cannot be hotpatched: MF111 layout of a type changed" in found["summary"]
    assert [item["code"] for item in found["findings"]] == ["MF111", "MF170", "MF171", "MF176"]
    assert any(hint.startswith("MF111 prog.c: struct item") for hint in found["preview"]["likely"])
    shown = run(project, "assess", fix=(FREE, HASH, GROWN)).stdout
    assert shown.index("Forbids it") < shown.index("MF111  ") < shown.index("Needs a person's sign-off")


def test_without_a_build_the_answer_is_unknown_or_what_is_built_already(project: Path) -> None:
    fix = (CHECK, ("h & 0xff", "h & 0xfe"))
    done = run(project, "assess", "--no-build", "--json", fix=fix)
    assert done.returncode == 5, done.stdout + done.stderr
    found = document(done)
    assert (found["verdict"], found["images"]) == ("unknown", [])
    assert found["preview"]["files"] == [{"file": "prog.c", "added": 3, "removed": 1}]
    assert run(project, "assess", fix=fix).returncode == 4
    assert run(project, "assess", "--no-build", fix=fix).returncode == 4, "now it is built"


def test_a_fix_that_does_not_apply_is_an_error(project: Path) -> None:
    (project / "bad.patch").write_text("--- a/prog.c\n+++ b/prog.c\n@@ -1 +1 @@\n-nothing\n+like it\n")
    done = subprocess.run(
        [MIDFLIGHT, "assess", *WORDS, "--fix", "bad.patch"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "does not apply" in done.stderr


# --- sign-off -------------------------------------------------------------------------------------------------------


def test_nothing_is_signed_before_a_person_has_signed_off(project: Path) -> None:
    fix = (CHECK, FREE)
    out = project / "signed.hotpatch"
    write = ("-o", out, "--key", "k.key")
    refused = run(project, "build", *write, fix=fix)
    assert refused.returncode == 3 and "MF170  prog.c: drop" in refused.stdout
    nobody = run(project, "build", *write, "--override", FREED, fix=fix)
    assert nobody.returncode == 2 and "--reviewer" in nobody.stderr
    nameless = run(project, "build", *write, "--override", FREED, "--reviewer", "Jo", fix=fix)
    assert nameless.returncode == 2 and "--reviewer" in nameless.stderr
    assert not out.exists()

    made = run(project, "build", *write, "--override", FREED, "--reviewer", REVIEWER, fix=fix)
    assert made.returncode == 0, made.stderr
    inspected = [str(MIDFLIGHT), "inspect", str(out), "--trust", str(project / "k.pub")]
    shown = subprocess.run(inspected, capture_output=True, text=True, check=True).stdout
    assert REVIEWER in shown and "every name is from argv here" in shown
    manifest = json.loads(subprocess.run([*inspected, "--json"], capture_output=True, text=True, check=True).stdout)
    review = manifest["manifest"]["review"]
    assessed = document(run(project, "assess", "--json", "--override", FREED, "--reviewer", REVIEWER, fix=fix))
    before = document(run(project, "assess", "--json", fix=fix))
    digests = {item["digest"] for item in (assessed, before)}
    assert digests == {review["digest"]}, "what is signed off is the same before and after it is"
    other = document(run(project, "assess", "--json", fix=(CHECK, FREE, HASH)))
    assert other["digest"] not in digests


def test_a_hotpatch_without_sign_offs_needs_no_reviewer(project: Path) -> None:
    made = run(project, "build", "-o", project / "plain.hotpatch", "--key", "k.key", fix=(CHECK,))
    assert made.returncode == 0, made.stderr
    shown = subprocess.run(
        [MIDFLIGHT, "inspect", project / "plain.hotpatch", "--json"], capture_output=True, text=True, check=True
    ).stdout
    assert "review" not in json.loads(shown)["manifest"]


# --- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads a page, and complains about what is not well-formed."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_shows_everything_and_needs_nothing(project: Path) -> None:
    fix = (CHECK, FREE, HASH)
    html = project / "page.html"
    done = run(project, "assess", "--html", html, "--override", FREED, "--reviewer", REVIEWER, "--json", fix=fix)
    assert done.returncode == 4, done.stderr
    found = document(done)
    page = Page(html.read_text())
    for item in found["findings"]:
        assert item["code"] in page.words and item["symbol"] in page.words
        assert item["reason"][1:] in page.words
    names = [item["name"] for item in found["images"][0]["functions"]]
    assert set(names) == {"price", "drop", "string_hash"}
    heads = html.read_text().split('<section class="function">')[1:]
    assert sorted(Page(head.partition("</section>")[0]).words.split()[0] for head in heads) == sorted(names)
    for wanted in (found["images"][0]["build_id"], found["images"][0]["review"]["digest"], REVIEWER, "call free"):
        assert wanted in page.words, wanted
    assert "every name is from argv here, <sic>" in page.words, "the reason, escaped"
    assert '"<b>%s & co</b>' in page.words, "a string of the program, escaped"
    assert "free(item->name);" in page.words, "source lines"

    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "form", "b>%s"})
    assert not [a for _, attributes in page.tags for a in attributes if a in ("src", "href") or a.startswith("on")]
    text = html.read_text()
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "size: A4" in text


def test_a_page_about_nothing_built_says_so(project: Path) -> None:
    html = project / "unknown.html"
    done = run(project, "assess", "--no-build", "--html", html, fix=(("h & 0xff", "h & 0x7f"), FREE))
    assert done.returncode == 5
    page = Page(html.read_text())
    assert "Unknown: nothing is built yet" in page.words and "calls of free" in page.words
    assert "Signature" not in page.words
