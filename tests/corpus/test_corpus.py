"""Real fixes of real programs: the hole is seen from outside, closed in the live process, and opened again by revert.

``make corpus`` runs all of them and prints a table, ``make corpus CASE=package/CVE`` one, ``make corpus-quick`` those
that build in seconds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.commands import midflight
from tests.corpus.model import AnyCase
from tests.corpus.run import new_row, run
from tests.corpus.table import Row

pytestmark = [pytest.mark.corpus, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key pair made by the command: (private, public)."""
    base = tmp_path_factory.mktemp("keys") / "corpus"
    report = midflight("keygen", base)
    assert report.status == 0, str(report)
    return base.with_suffix(".key"), base.with_suffix(".pub")


def test_case(case: AnyCase, rows: list[Row], keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Everything must be as the case expects."""
    row = new_row(case)
    rows.append(row)
    try:
        run(case, row, keys, tmp_path)
    except Exception as error:
        row.reason = str(error).partition("\n")[0] or type(error).__name__
        raise
