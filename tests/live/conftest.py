"""One signing key and work folder for a module of scenarios."""

from __future__ import annotations

import pytest

from tests.live.harness import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab for the whole run; scenarios use names of their own in it."""
    return Lab.create(tmp_path_factory.mktemp("lab"))
