"""The units of the server. That they run is shown under a real systemd, in tests/fleet/systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from midflight.errors import InputError
from midflight.machine import units
from midflight.server import service
from midflight.server.install import install
from midflight.server.settings import Settings

MIDFLIGHT = ["/usr/bin/python3", "-m", "midflight"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a server in a folder with an awkward name; units go below ``tmp_path``."""
    monkeypatch.setattr(units, "FOLDER", tmp_path / "units")
    monkeypatch.setattr(units, "runs", lambda: False)
    return install(tmp_path / "50% $HOME").settings


def test_systemd_takes_the_units(settings: Settings) -> None:
    (path,) = service.install(settings, MIDFLIGHT, 1, True)
    text = path.read_text()
    assert "50%% $$HOME'" in text and "User=root\n" in text and "@" not in text.replace("@system-service", "")
    if shutil.which("systemd-analyze"):  # is not everywhere where these tests run
        checked = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stderr
    assert service.uninstall() == [path] and not path.exists()
    with pytest.raises(InputError, match="nothing to remove"):
        service.uninstall()


def test_more_processes_need_postgresql_and_that_a_worker(settings: Settings) -> None:
    with pytest.raises(InputError, match="PostgreSQL"):
        service.units_of(settings, MIDFLIGHT, 2)
    environment = {
        "MIDFLIGHT_SERVER_DATABASE": "postgresql://db/midflight",
        "MIDFLIGHT_SERVER_EMBEDDED_WORKER": "false",
    }
    larger = Settings.load(settings.folder, environment)
    found = service.units_of(larger, MIDFLIGHT, 2)
    assert "--processes 2 -q\n" in found[service.SERVER] and " server worker " in found[service.WORKER]
