"""What the tests of the image room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.image.samples import build_all


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled samples by name."""
    return build_all(tmp_path_factory.mktemp("samples"))
