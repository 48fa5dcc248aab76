"""Functions side by side: names in place of relocations, what is marked, and which source lines stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.review.listing import Listing, SourceText, lines_of, side_by_side
from midflight.forge.review.touched import Touched, compare

from .object_pairs import compile_pair

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])

SOURCE = """
extern int puts(const char *);
extern int limit, seen;
int act(int);
int walk(int n)
{
    puts("walk");
    for (int i = 0; i < n; i++)
        seen += act(i);
    return seen > limit;
}
"""


def listing(folder: Path, before: str, after: str, compiler: str) -> Listing:
    pair = compile_pair(folder, before, after, compiler)
    return side_by_side("walk", lines_of(pair.pre, "walk"), lines_of(pair.post, "walk"))


def texts(found: Listing, side: str) -> str:
    lines = [getattr(pair, side) for pair in found.pairs]
    return "\n".join(line.text for line in lines if line is not None)


@BOTH
def test_the_same_function_is_the_same_on_both_sides(tmp_path: Path, compiler: str) -> None:
    found = listing(tmp_path, SOURCE, SOURCE, compiler)
    assert found.changed == 0
    assert texts(found, "before") == texts(found, "after")


@BOTH
def test_calls_data_and_strings_have_names(tmp_path: Path, compiler: str) -> None:
    shown = texts(listing(tmp_path, SOURCE, SOURCE, compiler), "after")
    for name in ("call puts", "call act", "seen", "limit", '"walk"'):
        assert name in shown
    assert "0x0(%rip)" not in shown


@BOTH
def test_another_immediate_is_one_line_that_differs(tmp_path: Path, compiler: str) -> None:
    before = SOURCE.replace("act(i)", "act(4096)")
    found = listing(tmp_path, before, before.replace("4096", "8192"), compiler)
    (pair,) = [pair for pair in found.pairs if not pair.same]
    assert pair.before is not None and pair.after is not None
    assert "1000" in pair.before.text and "2000" in pair.after.text


@BOTH
def test_code_that_only_moves_is_the_same_and_so_are_jumps_over_it(tmp_path: Path, compiler: str) -> None:
    found = listing(
        tmp_path, SOURCE, SOURCE.replace('    puts("walk");\n', '    puts("walk");\n    puts("on");\n'), compiler
    )
    added = [pair for pair in found.pairs if not pair.same]
    assert all(pair.before is None for pair in added), "nothing of before differs"
    assert 1 <= len(added) <= 3
    jumps = [pair for pair in found.pairs if pair.before is not None and pair.before.target is not None]
    assert jumps and all(pair.same for pair in jumps)


@BOTH
def test_source_lines_are_those_of_each_side(tmp_path: Path, compiler: str) -> None:
    after = SOURCE.replace("extern int limit", "\n\nextern int limit").replace("seen > limit", "seen >= limit")
    found = listing(tmp_path, SOURCE, after, compiler)
    source = SourceText(Touched({"unit.c": compare("unit.c", SOURCE.encode(), after.encode())}), tmp_path)
    pairs = [(pair.before, pair.after) for pair in found.pairs]
    lines = [
        {source.line(side, line.file, line.line).strip() for pair in pairs if (line := pair[side]) is not None}
        for side in (0, 1)
    ]
    assert "return seen > limit;" in lines[0] and "return seen >= limit;" in lines[1]
    assert "seen += act(i);" in lines[0] & lines[1]
