"""What the fleet's tests share: programs and hotpatches, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.fleet import daemon


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> daemon.Builds:
    """webd: vulnerable, its two hotpatches, and the release with the fix."""
    return daemon.build(tmp_path_factory.mktemp("webd"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is here is run by ``make test-fleet``, and not among the fast tests."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fleet)
