"""agent.toml: what it may say, and what is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.agent.settings import Settings, read_settings
from midflight.errors import InputError


def settings(folder: Path, text: str) -> Settings:
    path = folder / "agent.toml"
    path.write_text(text)
    return read_settings(path)


def test_everything_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(tmp_path))
    found = read_settings()
    assert found == settings(tmp_path, "") == Settings()
    assert (found.removed, found.checks, found.crash_window, found.probes) == ("keep", (60, 300, 900), 900, ())


def test_everything_can_be_said(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        'folder = "/srv/hotpatches"\ntrust = ["a.pub"]\nremoved = "revert"\ntimeout = 2\nrescan = 10\n'
        '[health]\nprobes = ["true"]\nprobe_timeout = 3\nchecks = [10, 20]\ncrash_window = 60\n',
    )
    assert found == Settings(Path("/srv/hotpatches"), ("a.pub",), "revert", 2.0, 10.0, ("true",), 3.0, (10, 20), 60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fodler = 'x'", "no setting 'fodler'"),
        ("[health]\nprobe = []", "no setting 'probe'"),
        ("removed = 'yes'", "removed must be"),
        ("rescan = 0", "rescan must be seconds"),
        ("timeout = true", "timeout must be seconds"),
        ("trust = 'a.pub'", "trust must be a list"),
        ("[health]\nchecks = [20, 10]", "checks must be"),
        ("health = 1", "health must be a table"),
        ("folder = ", "not TOML"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(tmp_path, text)


def test_what_others_can_change_is_not_believed(tmp_path: Path) -> None:
    settings(tmp_path, "")
    (tmp_path / "agent.toml").chmod(0o666)
    with pytest.raises(InputError, match="can be changed by others"):
        read_settings(tmp_path / "agent.toml")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_settings(tmp_path / "none.toml")
