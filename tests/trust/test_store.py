"""The keys of this machine: made once, trusted here, and not trusted when others can change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.errors import InputError
from midflight.trust.keys import create_key_pair
from midflight.trust.store import default_signer, folder, trusted_keys


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of keys of our own."""
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("MIDFLIGHT_KEY_PASSPHRASE", raising=False)
    return tmp_path / "config"


def test_the_key_is_made_once_and_trusted(config: Path) -> None:
    assert trusted_keys() == ()
    key, path, made = default_signer()
    again, same, made_again = default_signer()
    assert (path, made, same, made_again) == (config / "signing.key", True, path, False)
    assert key.key_id == again.key_id
    assert trusted_keys() == (key.public,)
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_public_key_in_the_folder_counts(config: Path) -> None:
    default_signer()
    other = create_key_pair(config / "other.key", config / "trust.d" / "other.pub")
    assert other in trusted_keys() and len(trusted_keys()) == 2


@pytest.mark.parametrize("name", [".", "local.pub"])
def test_a_folder_or_key_that_others_can_write_is_not_trusted(config: Path, name: str) -> None:
    default_signer()
    (config / "trust.d" / name).chmod(0o777)
    with pytest.raises(InputError, match=r"can be changed by others.*--trust"):
        trusted_keys()


def test_where_the_keys_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIDFLIGHT_CONFIG")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert folder() == Path("/etc/midflight")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "midflight"
