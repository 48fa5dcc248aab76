"""Machines with systemd; each test has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.systemd import thing
from tests.fleet.systemd.machine import Booted, wheel


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> thing.Things:
    """The service that is repaired, and all that its vendor has."""
    return thing.build(tmp_path_factory.mktemp("thing"))


@pytest.fixture(scope="session")
def midflight_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Midflight, built."""
    return wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def machine(tmp_path: Path, midflight_wheel: Path, things: thing.Things) -> Iterator[Booted]:
    """One that runs, with Midflight, the vendor's key and the old ``thing``; nothing of them is started."""
    made = Booted(tmp_path / "machine")
    try:
        made.install(midflight_wheel)
        made.boot()
        made.copy(things.program, thing.PLACE)
        made.copy(things.key, "/etc/midflight/trust.d/vendor.pub")
        yield made
        journal = made.run("journalctl", "--no-pager")
        print(journal[-6000:])  # what a failure is understood by; pytest shows it with that alone
        assert "Traceback" not in journal
    finally:
        made.off()
