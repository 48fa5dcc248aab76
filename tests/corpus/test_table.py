"""The table and its sum: what a reader relies on. (Fast: nothing is built.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpus.table import Row, render, summary, write_json

pytestmark = pytest.mark.quick

ROWS = [
    Row("libtasn1-6/CVE-2024-12133", "plain", "refused", "refused", "MF111", matched=(20, 20), build_seconds=31.4),
    Row("nginx/CVE-1", "plain", "patched", "patched", "live", 1, (99999, 100000), 123.4, 0.123, 99999, 0, True),
    Row("nginx/CVE-2", "+syms", "patched", "FAILED", reason="VULNERABLE after the apply", accepted=True),
]


def test_fits_80_columns_and_rounds_nothing_up() -> None:
    lines = render(ROWS).splitlines()
    assert max(map(len, lines)) <= 80
    assert "99.9%" in lines[2] and "99999/0" in lines[2]
    assert "- nginx/CVE-2: VULNERABLE after the apply" in lines


def test_sum_counts_what_works_and_what_was_accepted_wrongly() -> None:
    assert summary(ROWS)[0].startswith("1 of 2 hot-patchable cases work (50%)")
    assert summary(ROWS)[1] == "1 of 1 others are answered as they must be; wrong acceptances: 0."
    wrong = Row("x/CVE-3", "plain", "refused", accepted=True)
    assert summary([*ROWS, wrong])[1] == "1 of 2 others are answered as they must be; wrong acceptances: 1."


def test_json_has_every_row(tmp_path: Path) -> None:
    write_json(ROWS, tmp_path / "below" / "corpus.json")
    document = json.loads((tmp_path / "below" / "corpus.json").read_text())
    assert [(case["case"], case["good"]) for case in document["cases"]] == [
        ("libtasn1-6/CVE-2024-12133", True),
        ("nginx/CVE-1", True),
        ("nginx/CVE-2", False),
    ]
