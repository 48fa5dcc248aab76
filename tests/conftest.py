"""Rules for all tests: a test that cannot run fails, and live and corpus tests are marked by their folder."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MARKED_FOLDERS = ("live", "corpus", "wine")

if sys.platform != "win32":  # the tests that run there have no properties, and no need of Hypothesis
    from hypothesis import settings

    # an example that takes long on a busy machine is no failure
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and what we start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, so that nobody can forget to."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure: what was not tested is not known to work."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} did not run: {call.excinfo.value if call.excinfo else 'skipped'}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} did not run: {report.longreprtext}"
    return report


FIGURES = "figures of "
"""Properties with such names (record_property) hold numbers by name, which are added up and shown in the end."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests counted, over all workers."""
    sums: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name.startswith(FIGURES) and isinstance(value, dict):
                sums.setdefault(name, Counter()).update(value)
    for name, numbers in sorted(sums.items()):
        terminalreporter.write_line(f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in numbers.items()))
