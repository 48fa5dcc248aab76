"""A repository: several sign, one publishes, nobody ever sees half of it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Snapshot, Targets, Timestamp

from midflight.errors import InputError
from midflight.trust.content import Description, Package
from midflight.trust.keys import PrivateKey
from midflight.trust.pinning import Pin
from midflight.trust.publishing import publish, renew_online
from midflight.trust.repository import Repository
from midflight.trust.serverrecord import ServerRecord
from midflight.trust.signers import open_signer
from midflight.trust.signing import merge, sign
from tests.trust.repositories import ABOUT, DAY, NOW, Keys, World

HOUR = timedelta(hours=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A published repository."""
    return World.make(tmp_path)


def test_content_is_published_when_the_threshold_has_signed(world: World) -> None:
    added = world.add(2)
    assert world.client().refresh().contents.keys() == {"hotpatch/nginx/1.hotpatch"}
    with pytest.raises(InputError, match="targets is not signed by enough keys: 2 more"):
        publish(world.repository, NOW)
    assert sign(world.repository, world.keys.holders[0]) == ("targets",)
    state = world.repository.signatures("targets")
    assert state is not None and (len(state.signed), len(state.open), state.missing) == (1, 2, 1)
    with pytest.raises(InputError, match="1 more must sign"):
        publish(world.repository, NOW)
    assert sign(world.repository, world.keys.holders[0]) == (), "the same holder again counts once"
    with pytest.raises(InputError, match="1 more must sign"):
        publish(world.repository, NOW)
    sign(world.repository, world.keys.holders[2])
    publish(world.repository, NOW)
    catalog = world.client().refresh()
    assert catalog.contents[added.path] == added
    assert (catalog.version, catalog.expires) == (2, NOW + 90 * DAY)
    assert added.about.cvss == "9.8"


def test_a_change_after_signing_takes_the_signatures_away(world: World) -> None:
    world.add(2)
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    world.add(3)
    with pytest.raises(InputError, match="2 more must sign"):
        publish(world.repository, NOW)


def test_strangers_and_the_online_key_cannot_sign(world: World) -> None:
    world.add(2)
    online = CryptoSigner.from_priv_key_uri(f"file2:{world.keys.online}", _online_key(world))
    for signer in (CryptoSigner.generate_ed25519(), online):
        with pytest.raises(InputError, match="no say"):
            sign(world.repository, signer)


def test_holders_sign_copies_which_are_brought_together(world: World, tmp_path: Path) -> None:
    world.add(2)
    for number, holder in enumerate(world.keys.holders[:2]):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(world.repository.folder, copy, symlinks=True)
        sign(Repository(copy), holder)
    assert merge(world.repository, tmp_path / "copy0") == 1
    assert merge(world.repository, tmp_path / "copy1/staged/targets.json") == 1
    assert merge(world.repository, tmp_path / "copy1") == 0
    publish(world.repository, NOW)
    world.add(3)
    with pytest.raises(InputError, match="is not what is staged"):
        merge(world.repository, tmp_path / "copy1")


def test_revoked_content_is_gone_for_ever_and_says_why(world: World) -> None:
    content = world.add(2)
    world.release()
    world.repository.revoke(content.path, "crashes on resume", True, NOW)
    world.release()
    catalog = world.client().refresh()
    assert content.path not in catalog.contents
    revocation = catalog.revocation(content.sha256)
    assert revocation is not None
    assert (revocation.reason, revocation.revert, revocation.name) == ("crashes on resume", True, content.about.name)
    with pytest.raises(InputError, match="was revoked: crashes on resume"):
        world.add(2)
    world.add(3)
    world.release()
    assert world.client().refresh().revoked == catalog.revoked, "later versions remember"
    with pytest.raises(InputError, match="there is no content"):
        world.repository.revoke(content.path, "again", False, NOW)


def test_keys_rotate_with_the_consent_of_old_and_new(world: World) -> None:
    client = world.client()
    client.refresh()
    new = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
    old = world.keys.holders
    remove = [old[0].public_key.keyid, old[1].public_key.keyid]
    world.repository.change_keys("root", [key.public_key for key in new], remove, 3, NOW)
    for signer in (*new, old[2]):
        sign(world.repository, signer)
    with pytest.raises(InputError, match="root is not signed by enough keys: 1 more"):
        publish(world.repository, NOW)  # the new threshold, but only one of the old holders
    sign(world.repository, old[0])
    publish(world.repository, NOW)
    client.refresh()
    assert world.root().version == 2
    world.repository.extend(["root"], NOW)
    with pytest.raises(InputError, match="no say"):
        sign(world.repository, old[0])


def test_new_keys_for_targets_have_to_sign_the_targets_again(world: World) -> None:
    client = world.client()
    client.refresh()
    new = CryptoSigner.generate_ed25519()
    gone = [holder.public_key.keyid for holder in world.keys.holders]
    world.repository.change_keys("targets", [new.public_key], gone, 1, NOW)
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    with pytest.raises(InputError, match="not signed by the new keys"):
        publish(world.repository, NOW)
    world.repository.extend(["targets"], NOW)
    sign(world.repository, new)
    publish(world.repository, NOW)
    assert client.refresh().version == 2


def test_the_online_key_rotates(world: World, tmp_path: Path) -> None:
    client = world.client()
    client.refresh()
    (tmp_path / "new").mkdir()
    new = Keys.make(tmp_path / "new")
    fresh = open_signer(str(new.online))
    world.repository.change_keys("online", [fresh.public_key], [_online_key(world).keyid], None, NOW)
    world.repository.use_online_key(str(new.online))
    world.release()
    assert client.refresh().version == 1
    assert renew_online(Repository(world.repository.folder), NOW + 5 * DAY) > NOW + 5 * DAY


def test_thresholds_that_cannot_be_met_and_online_keys_for_content_are_refused(tmp_path: Path, world: World) -> None:
    keys = world.keys
    public = [holder.public_key for holder in keys.holders]
    for threshold in (0, 4):
        with pytest.raises(InputError, match="threshold that can be met"):
            Repository.create(tmp_path / "other", public, threshold, public, 1, str(keys.online), NOW)
    with pytest.raises(InputError, match="stolen server"):
        Repository.create(tmp_path / "other", public, 1, [*public, _online_key(world)], 1, str(keys.online), NOW)
    with pytest.raises(InputError, match="threshold that can be met"):
        world.repository.change_keys("root", [], [public[0].keyid, public[1].keyid], None, NOW)
    with pytest.raises(InputError, match="not empty"):
        Repository.create(world.repository.folder, public, 1, public, 1, str(keys.online), NOW)
    with pytest.raises(InputError, match="not a repository"):
        Repository(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "server.json", "a\\b", ".hidden", "nul.hotpatch", "a//b"])
def test_content_cannot_have_a_path_that_leads_elsewhere(world: World, path: str) -> None:
    (world.folder / "source").write_bytes(b"x")
    with pytest.raises(InputError):
        world.repository.add(world.folder / "source", path, ABOUT, NOW)
    assert world.repository.staged(Targets) is None


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"sequence": 0},
        {"images": ()},
        {"cves": ("CVE-1",)},
        {"cvss": "11.0"},
        {"severity": "bad"},
        {"description": "\x1b[2J"},
        {"kind": "baseline"},
        {"package": Package("deb", "nginx", "1", "amd64")},
    ],
)
def test_content_needs_a_right_description(world: World, change: dict[str, Any]) -> None:
    (world.folder / "source").write_bytes(b"x")
    with pytest.raises(InputError):
        world.repository.add(world.folder / "source", "a/b", replace(ABOUT, **change), NOW)


def test_baselines_and_the_servers_record_are_published_too(world: World) -> None:
    package = Package("deb", "nginx", "1.22.1-9+deb12u3", "amd64")
    about = Description("baseline", "nginx", 3, (), (), "security", "high", None, "", (ABOUT.name,), package)
    (world.folder / "source").write_bytes(b"!<arch>")
    world.repository.add(world.folder / "source", "baseline/nginx_1.22.1-9+deb12u3_amd64.deb", about, NOW)
    record = ServerRecord(
        ("https://patches.example",), (Pin(bytes(32)), Pin(b"x" * 32)), (PrivateKey.generate().public,)
    )
    world.repository.set_server_record(record, NOW)
    assert world.repository.server_record() == record
    world.release()
    client = world.client()
    assert client.refresh().contents["baseline/nginx_1.22.1-9+deb12u3_amd64.deb"].about == about
    assert client.server_record() == record


def test_online_metadata_is_renewed_when_half_of_its_time_is_over(world: World) -> None:
    def versions() -> tuple[int, int]:
        snapshot, timestamp = world.repository.published(Snapshot), world.repository.published(Timestamp)
        assert snapshot is not None and timestamp is not None
        return snapshot.signed.version, timestamp.signed.version

    assert renew_online(world.repository, NOW + HOUR) == NOW + 12 * HOUR
    assert versions() == (1, 1)
    assert renew_online(world.repository, NOW + 12 * HOUR) == NOW + 24 * HOUR
    assert versions() == (1, 2)
    assert renew_online(world.repository.folder, NOW + 4 * DAY) == NOW + 4 * DAY + 12 * HOUR
    assert versions() == (2, 3)


def test_metadata_that_is_over_is_not_published(world: World) -> None:
    world.add(2)
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    with pytest.raises(InputError, match="targets metadata is over"):
        publish(world.repository, NOW + 91 * DAY)


def test_a_damaged_or_missing_file_is_not_published(world: World) -> None:
    content = world.add(2)
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    file = world.repository.folder / f"staged/targets/hotpatch/nginx/{content.sha256}.2.hotpatch"
    good = file.read_bytes()
    file.write_bytes(good + b"!")
    with pytest.raises(InputError, match="damaged"):
        publish(world.repository, NOW)
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        publish(world.repository, NOW)
    file.write_bytes(good)
    publish(world.repository, NOW)


def test_what_is_staged_can_be_thrown_away(world: World) -> None:
    world.add(2)
    world.repository.discard()
    assert world.repository.staged(Targets) is None
    with pytest.raises(InputError, match="nothing is staged"):
        sign(world.repository, world.keys.holders[0])


def _online_key(world: World) -> Any:
    (keyid,) = world.root().roles["timestamp"].keyids
    return world.root().keys[keyid]


_STEPS = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "shutil.copyfile")


def _publish_and_die(folder: Path, step: int) -> int:
    """Publish in a child that dies at its n-th change to the file system; returns the child's exit status."""
    child = os.fork()
    if child == 0:
        count = 0

        def audit(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            reads = event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            if event in _STEPS and not reads and str(folder) in str(args[0]):
                count += 1
                if count == step:
                    os._exit(9)

        try:
            sys.addaudithook(audit)
            publish(Repository(folder), NOW)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_step_publishing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """The hardest publication: new content, content revoked, and an online key that changes with the root."""
    world = World.make(tmp_path)
    world.add(2)
    world.release()
    (tmp_path / "new").mkdir()
    new = Keys.make(tmp_path / "new")
    world.repository.revoke("hotpatch/nginx/1.hotpatch", "test", False, NOW)
    world.add(3)
    world.repository.change_keys(
        "online", [open_signer(str(new.online)).public_key], [_online_key(world).keyid], None, NOW
    )
    world.repository.use_online_key(str(new.online))
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    old, now = {"hotpatch/nginx/1.hotpatch", "hotpatch/nginx/2.hotpatch"}, {"hotpatch/nginx/2.hotpatch"}
    now |= {"hotpatch/nginx/3.hotpatch"}
    seen: list[bool] = []
    for step in range(1, 500):
        folder = tmp_path / f"try{step}"
        shutil.copytree(world.repository.folder, folder, symlinks=True)
        status = _publish_and_die(folder, step)
        client = world.client(folder / "public", name=f"client{step}")
        catalog = client.refresh()
        assert set(catalog.contents) in (old, now), step
        for content in catalog.contents.values():
            client.download(content, tmp_path / "downloads")
        seen.append(set(catalog.contents) == now)
        repository = Repository(folder)
        if repository.staged(Targets) is not None:
            publish(repository, NOW)  # whoever comes next can go on
        else:
            renew_online(repository, NOW + 5 * DAY)
        assert set(client.refresh().contents) == now
        assert sorted(entry.name for entry in (folder / "public").iterdir() if entry.name.startswith(".")) == []
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == 9
    assert status == 0 and len(seen) > 25
    assert seen == sorted(seen) and not seen[0] and seen[-1], "one step, before which it is the old one"
