"""Who can change a file or folder, and folders that others cannot change (Linux; Windows:
tests/wine/test_service.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from midflight.machine import places
from midflight.machine.ownership import changeable_by, make_closed_folder


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    assert changeable_by(path) is None
    path.chmod(0o664)
    assert changeable_by(path) == "its group"
    path.chmod(0o646)
    assert changeable_by(path) == "everybody"


def test_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
        assert changeable_by(path) == "its owner, user 4242"
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert (changeable_by(path) is None) == (path.stat().st_uid == 0)


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert changeable_by(tmp_path / "link") is None
    (tmp_path / "file").chmod(0o666)
    assert changeable_by(tmp_path / "link") == "its group"


def test_a_closed_folder_is_made_and_one_that_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    make_closed_folder(path)
    make_closed_folder(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o777)
    with pytest.raises(PermissionError, match="can change it"):
        make_closed_folder(path)
    path.chmod(0o1777)
    make_closed_folder(path)  # others can add, but not replace


def test_where_things_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MIDFLIGHT_CONFIG", "MIDFLIGHT_STATE", "MIDFLIGHT_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = (places.config_folder(), places.state_folder(), places.hotpatch_folder(), places.run_folder())
    assert [str(path) for path in found] == [
        "/etc/midflight", "/var/lib/midflight", "/var/lib/midflight/hotpatches", "/run/midflight",
    ]  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert places.state_folder() == tmp_path / "midflight"
    monkeypatch.setenv("MIDFLIGHT_STATE", str(tmp_path / "mine"))
    assert places.hotpatch_folder() == tmp_path / "mine" / "hotpatches"
