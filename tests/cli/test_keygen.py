"""midflight keygen, as a person calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from midflight.trust.keys import PASSPHRASE_VARIABLE, load_private_key, load_public_key


def midflight(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    clean = {name: value for name, value in os.environ.items() if name != PASSPHRASE_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "midflight.cli.main", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**clean, **environment},
    )


def test_makes_a_pair_that_works(tmp_path: Path) -> None:
    done = midflight("keygen", tmp_path / "release.v2")
    assert (done.returncode, done.stderr) == (0, "")
    public = load_public_key(tmp_path / "release.v2.pub")
    assert load_private_key(tmp_path / "release.v2.key").public == public
    assert public.key_id in done.stdout and "release.v2.key" in done.stdout and "not encrypted" in done.stdout
    assert "PRIVATE KEY" not in done.stdout


def test_json(tmp_path: Path) -> None:
    done = midflight("keygen", tmp_path / "a", "--json")
    assert json.loads(done.stdout) == {
        "key_id": load_public_key(tmp_path / "a.pub").key_id,
        "private_key": str(tmp_path / "a.key"),
        "public_key": str(tmp_path / "a.pub"),
        "encrypted": False,
    }


def test_passphrase_from_the_environment(tmp_path: Path) -> None:
    done = midflight("keygen", tmp_path / "a", **{PASSPHRASE_VARIABLE: "open sesame"})
    assert done.returncode == 0 and "  encrypted" in done.stdout
    assert load_private_key(tmp_path / "a.key", "open sesame").public == load_public_key(tmp_path / "a.pub")


def test_a_passphrase_that_nobody_can_give(tmp_path: Path) -> None:
    done = midflight("keygen", "--passphrase", tmp_path / "a")
    assert done.returncode == 2 and PASSPHRASE_VARIABLE in done.stderr
    assert os.listdir(tmp_path) == []


def test_never_overwrites(tmp_path: Path) -> None:
    assert midflight("keygen", tmp_path / "a").returncode == 0
    before = (tmp_path / "a.key").read_bytes()
    again = midflight("keygen", tmp_path / "a")
    assert again.returncode == 2 and "never overwritten" in again.stderr and again.stdout == ""
    assert (tmp_path / "a.key").read_bytes() == before


def test_a_name_that_is_none() -> None:
    done = midflight("keygen", "/")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
