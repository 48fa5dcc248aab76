"""The registry of refusals, and the reference page that is made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from midflight.forge.refusals import REFUSALS, finding, reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "refusals.md"


def test_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference_page(), "write reference_page() to docs/reference/refusals.md"


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_each_refusal_says_why_and_what_to_do(code: str) -> None:
    row = REFUSALS[code]
    assert row.code == code
    assert re.fullmatch(r"MF1\d\d", code)
    assert row.title and not row.title.endswith(".")
    assert row.reason and not row.reason.endswith(".")
    assert row.remedy.endswith(".")


def test_finding_is_filled_in() -> None:
    found = finding("MF112", Path("src/a.o"), "f", pre="int (int)", post="int (long)", callers="g calls it")
    assert (found.code, found.file, found.symbol, found.overridable) == ("MF112", "src/a.o", "f", True)
    assert found.reason == "the signature changed from int (int) to int (long), and g calls it with the old one"
    assert found.remedy == REFUSALS["MF112"].remedy
