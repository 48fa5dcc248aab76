"""The verdict, and the first answer from the text of a fix."""

from __future__ import annotations

from typing import Any

import pytest

from midflight.forge.model import Finding
from midflight.forge.refusals import finding
from midflight.forge.review.assessment import assess, grouped, preview, refused, unknown
from midflight.forge.review.touched import Touched, compare


def item(found: Finding, overridden: str | None = None) -> dict[str, Any]:
    fields = ("code", "kind", "file", "symbol", "reason", "remedy", "overridable")
    return {**{name: getattr(found, name) for name in fields}, "overridden": overridden}


GROWN = finding("MF111", "a.c", "struct s", what="struct s grew")
OWNER = finding("MF170", "a.c", "drop", what="the fix adds a call of free")
LOCK = finding("MF172", "a.c", "drop", what="the fix moves a lock")
NOTE = finding("MF175", "a.c", "drop", what="only main leads to it")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], "patchable"),
        ([item(LOCK), item(NOTE)], "patchable"),
        ([item(OWNER), item(NOTE)], "sign-off"),
        ([item(OWNER, "looked at")], "patchable"),
        ([item(OWNER), item(GROWN)], "refused"),
        ([item(OWNER, "looked at"), item(GROWN)], "refused"),
        ([item(OWNER), item(GROWN, "no such object lives")], "sign-off"),
    ],
)
def test_the_verdict(findings: list[dict[str, Any]], verdict: str) -> None:
    assert assess({"findings": findings}).verdict == verdict


def test_findings_of_several_images_are_told_once_and_the_gravest_first() -> None:
    images = [{"findings": [item(NOTE), item(OWNER)]}, {"findings": [item(OWNER), item(GROWN)]}]
    found = assess({"images": images, **images[0]})
    assert [entry["code"] for entry in found.findings] == ["MF111", "MF170", "MF175"]
    assert len(found.images) == 2


def test_the_same_in_many_files_is_one_for_people() -> None:
    many = [{**item(GROWN), "file": f"{name}.c"} for name in "abcde"] + [{**item(GROWN, "why"), "file": "f.c"}]
    (one, other) = grouped([*many, many[0]])
    assert one["file"] == "a.c, b.c, c.c and 2 more files"
    assert (other["file"], other["overridden"]) == ("f.c", "why")


def test_a_refusal_before_there_is_a_report() -> None:
    found = refused("refused: MF160 nothing to patch: the fix changes no code. Check that it belongs here.")
    assert found.verdict == "refused"
    assert found.findings[0]["code"] == "MF160"
    assert found.summary == "cannot be hotpatched: MF160 nothing to patch"
    assert unknown("nothing is built yet").verdict == "unknown"


HEADER = """\
struct item {
    int a;
    char *name;
};
enum mode { OFF, ON };
static const int limit = 10;
int count(struct item *i)
{
    int total = 3;
    return total + i->a;
}
"""


@pytest.mark.parametrize(
    ("old", "new", "codes"),
    [
        ("    int a;\n", "    int a;\n    int b;\n", {"MF111"}),
        ("enum mode { OFF, ON };", "enum mode { OFF, MAYBE, ON };", {"MF150"}),
        ("limit = 10", "limit = 11", {"MF110"}),
        ("    int total = 3;\n", "    int total = 4;\n", set()),
        ("    int total = 3;\n", "    int total = 3;\n    free(i->name);\n", {"MF170"}),
        ("    int total = 3;\n", "    int total = string_hash(i->name);\n", {"MF171"}),
        ("    int total = 3;\n", "    int total = 3;\n    pthread_mutex_lock(&m);\n", {"MF172"}),
        ("    int total = 3;\n", "    int total = 3;\n    if (i == 0) return 0;\n", set()),
        ("    int total = 3;\n", "    int total = 3;\n    /* free(i->name) would be wrong */\n", set()),
    ],
)
def test_the_first_answer(old: str, new: str, codes: set[str]) -> None:
    assert old in HEADER
    file = compare("a.h", HEADER.encode(), HEADER.replace(old, new).encode())
    found = preview(Touched({"a.h": file}))
    assert {hint.split()[0] for hint in found["likely"]} == codes
    assert found["files"] == [{"file": "a.h", "added": len(file.added), "removed": len(file.removed)}]
