"""Orders from a folder: what counts, what is told, and what a folder that is away means."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.agent.folder import HotpatchFolder
from midflight.agent.orders import Orders, key_of
from midflight.patch.hotpatch import encode_hotpatch
from tests.patch.examples import PAYLOAD, key, manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, beside the public key that is trusted."""
    (tmp_path / "trusted.pub").write_bytes(key().public.pem())
    (tmp_path / "hotpatches").mkdir()
    return tmp_path / "hotpatches"


def put(folder: Path, name: str, sequence: int = 1, seed: int = 1) -> Path:
    """A signed hotpatch, in the folder under its name at once."""
    made = manifest(sequence=sequence)
    data = encode_hotpatch(made, {target.payload: PAYLOAD for target in made.targets}, [key(seed)])
    (folder / "new.tmp").write_bytes(data)
    return (folder / "new.tmp").rename(folder / name)


def sequences(orders: Orders | None) -> list[int]:
    assert orders is not None
    return sorted(key_of(one)[1] for one in orders.hotpatches)


def source(folder: Path) -> HotpatchFolder:
    return HotpatchFolder(folder, [folder.parent / "trusted.pub"])


def test_what_appears_changes_and_disappears_is_noticed(folder: Path) -> None:
    found = source(folder)
    assert sequences(found.look()) == [] and found.look() is None
    put(folder, "a.hotpatch")
    put(folder, "b.hotpatch", 2)
    put(folder, ".hidden.hotpatch", 3)
    put(folder, "c.other", 4)
    assert sequences(found.look()) == [1, 2] and found.look() is None
    put(folder, "a.hotpatch", 5)
    assert sequences(found.look()) == [2, 5]
    (folder / "b.hotpatch").unlink()
    assert sequences(found.look()) == [5]


def test_what_no_trusted_key_signed_is_told(folder: Path) -> None:
    put(folder, "good.hotpatch")
    put(folder, "stranger.hotpatch", 2, seed=2)
    orders = source(folder).look()
    assert sequences(orders) == [1]
    assert orders is not None and [what for what, _ in orders.problems] == ["stranger.hotpatch"]


def test_another_key_is_used_at_once(folder: Path) -> None:
    put(folder, "one.hotpatch")
    found = source(folder)
    assert sequences(found.look()) == [1]
    (folder.parent / "trusted.pub").write_bytes(key(2).public.pem())
    assert sequences(found.look()) == []
    (folder.parent / "trusted.pub").unlink()
    orders = found.look()
    assert orders is not None and orders.problems[0][0] == "keys"


def test_a_folder_that_is_away_is_no_order_to_take_everything_out(folder: Path) -> None:
    put(folder, "one.hotpatch")
    found = source(folder)
    assert sequences(found.look()) == [1]
    folder.rename(folder.with_name("away"))
    orders = found.look()
    assert sequences(orders) == [1] and orders is not None and "stays in force" in orders.problems[0][1]
    folder.with_name("away").rename(folder)
    orders = found.look()
    assert sequences(orders) == [1] and orders is not None and not orders.problems


def test_a_folder_that_others_can_change_is_told(folder: Path) -> None:
    put(folder, "one.hotpatch")
    folder.chmod(0o777)
    found = source(folder)
    orders = found.look()
    assert sequences(orders) == [1] and orders is not None and "can be changed by others" in orders.problems[0][1]
    folder.chmod(0o755)
    orders = found.look()
    assert orders is not None and not orders.problems
