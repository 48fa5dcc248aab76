"""``--case`` picks cases, and the table is printed at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.packages import CASES
from tests.corpus.table import Row, render, write_json

ROWS = pytest.StashKey[list[Row]]()
REPORT = Path(__file__).resolve().parents[2] / "build" / "corpus" / "corpus.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addoption("--case", default="", metavar="PACKAGE[/CVE]", help="the cases of one package, or one of them")


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is known yet."""
    config.stash[ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case."""
    if "case" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("case")
    chosen = [case for case in CASES if wanted in ("", case.name, case.package.name)]
    if not chosen:
        raise pytest.UsageError(f"no case {wanted}; there are: {' '.join(case.name for case in CASES)}")
    parameters = [
        pytest.param(case, id=f"{case.name}-{case.running}", marks=[pytest.mark.quick] if case.quick else [])
        for case in chosen
    ]
    metafunc.parametrize("case", parameters)


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """Where each case leaves its row."""
    return pytestconfig.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it as JSON."""
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section("corpus")
        terminalreporter.write_line(render(rows))
        write_json(rows, REPORT)
        terminalreporter.write_line(f"JSON: {REPORT}")
