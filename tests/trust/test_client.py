"""The client against honest servers, bad lines, folders, proxies, and every attack that TUF is there for."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from midflight.errors import InputError
from midflight.trust import errors
from midflight.trust.client import ContentClient, Limits
from midflight.trust.content import describe
from midflight.trust.mirror import mirror
from midflight.trust.pinning import Timeouts
from midflight.trust.publishing import publish, renew_online
from midflight.trust.signers import open_signer
from midflight.trust.signing import sign
from tests.trust.repositories import ABOUT, DAY, NOW, World, serving
from tests.trust.tls import Handler, certificate, connect_proxy

FIRST = "hotpatch/nginx/1.hotpatch"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A published repository."""
    return World.make(tmp_path)


def online(world: World) -> Signer:
    """The key that a thief of the server has."""
    return open_signer(str(world.keys.online))


def test_content_comes_over_http_and_is_not_fetched_twice(world: World, tmp_path: Path) -> None:
    asked: list[str] = []

    def count(request: Handler, data: bytes) -> bool:
        asked.append(request.path)
        return False

    with serving(world.repository.public, count) as url:
        client = world.client(url)
        content = client.refresh().contents[FIRST]
        file = client.download(content, tmp_path / "content")
        assert file.read_bytes() == b"hotpatch 1 " * 1000
        assert file.name == f"{content.sha256}.1.hotpatch"
        before = list(asked)
        assert client.download(content, tmp_path / "content") == file
        assert asked == before
        file.write_bytes(b"damaged")
        assert client.download(content, tmp_path / "content").read_bytes() == b"hotpatch 1 " * 1000
    assert client.forget_partial() == 0


def test_what_was_believed_before_is_there_without_the_source(world: World) -> None:
    with serving(world.repository.public) as url:
        fresh = world.client(url).refresh()
    again = world.client(url)
    assert again.cached() == fresh
    with pytest.raises(errors.SourceUnreachable):
        again.refresh()
    assert again.cached() == fresh


def test_a_folder_is_a_source(world: World, tmp_path: Path) -> None:
    client = world.client(world.repository.public)
    content = client.refresh().contents[FIRST]
    assert client.download(content, tmp_path / "content").read_bytes() == b"hotpatch 1 " * 1000
    with pytest.raises(InputError, match="no folder metadata"):
        world.client(tmp_path)
    with pytest.raises(InputError, match="no source"):
        world.client("ftp://host/x")


def test_the_proxy_is_used(world: World, tmp_path: Path) -> None:
    with serving(world.repository.public) as url, connect_proxy() as (proxy, asked):
        client = world.client(url, proxy=proxy)
        client.download(client.refresh().contents[FIRST], tmp_path / "content")
    assert any(place == f"{url}/metadata/timestamp.json" for place in asked)
    assert any(place.endswith(".1.hotpatch") for place in asked)


def cut_after(size: int, times: list[int]) -> Callable[[Handler, bytes], bool]:
    """Break the connection after some bytes of a target, so often as there are entries to take from ``times``."""

    def answer(request: Handler, data: bytes) -> bool:
        if not times or not request.path.endswith(".hotpatch"):
            return False
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        times.pop()
        request.send_response(206 if start else 200)
        if start:
            request.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("content-length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : start + size])
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)
        request.close_connection = True
        return True

    return answer


def test_a_broken_download_goes_on_where_it_stopped_even_in_a_new_process(world: World, tmp_path: Path) -> None:
    breaks = [0] * 6
    with serving(world.repository.public, cut_after(1000, breaks)) as url:
        client = world.client(url)
        content = client.refresh().contents[FIRST]
        with pytest.raises(errors.SourceUnreachable):
            client.download(content, tmp_path / "content")
        assert len(breaks) == 2, "it tried four times, each of which brought something"
        (partial,) = (tmp_path / "client/partial").iterdir()
        assert partial.stat().st_size == 4000
        again = world.client(url)
        assert again.download(content, tmp_path / "content").read_bytes() == b"hotpatch 1 " * 1000
        assert breaks == [] and list((tmp_path / "client/partial").iterdir()) == []


def test_a_server_without_ranges_is_asked_from_the_beginning(world: World, tmp_path: Path) -> None:
    def whole(request: Handler, data: bytes) -> bool:
        request.answer(200, data)
        return True

    with serving(world.repository.public, whole) as url:
        client = world.client(url)
        content = client.refresh().contents[FIRST]
        (client.folder / "partial").mkdir(exist_ok=True)
        client.download(content, tmp_path / "content")
        (tmp_path / "content").joinpath(f"{content.sha256}.1.hotpatch").unlink()
    breaks = [0] * 4
    with serving(world.repository.public, cut_after(10, breaks)) as url, pytest.raises(errors.SourceUnreachable):
        world.client(url).download(content, tmp_path / "content")
    with serving(world.repository.public, whole) as url:
        file = world.client(url).download(content, tmp_path / "content")
        assert file.read_bytes() == b"hotpatch 1 " * 1000


def test_altered_and_endless_files_are_not_taken(world: World, tmp_path: Path) -> None:
    answers: list[Callable[[bytes], bytes]] = [lambda data: data[:-1] + b"!", lambda data: data * 2]

    def alter(request: Handler, data: bytes) -> bool:
        if not request.path.endswith(".hotpatch"):
            return False
        request.answer(200, answers[0](data))
        return True

    with serving(world.repository.public, alter) as url:
        client = world.client(url)
        content = client.refresh().contents[FIRST]
        with pytest.raises(errors.ContentAltered):
            client.download(content, tmp_path / "content")
        answers.pop(0)
        with pytest.raises(errors.EndlessData):
            client.download(content, tmp_path / "content")
    assert not list((tmp_path / "content").iterdir())
    assert client.forget_partial() == 0


def test_a_source_that_trickles_or_says_nothing_is_given_up(world: World) -> None:
    def trickle(request: Handler, data: bytes) -> bool:
        request.send_response(200)
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        for byte in data:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(0.02)
        return True

    def nothing(request: Handler, data: bytes) -> bool:
        time.sleep(0.5)
        return False

    for behave, timeouts in ((trickle, Timeouts(total=0.2)), (nothing, Timeouts(read=0.1))):
        with serving(world.repository.public, behave) as url, pytest.raises(errors.SourceSlow):
            world.client(url, timeouts=timeouts).refresh()


def test_an_endless_stream_of_metadata_is_cut(world: World) -> None:
    sent = 0

    def endless(request: Handler, data: bytes) -> bool:
        nonlocal sent
        request.send_response(200)
        request.send_header("transfer-encoding", "chunked")
        request.end_headers()
        while True:
            request.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            sent += 0x1000

    with serving(world.repository.public, endless) as url, pytest.raises(errors.EndlessData):
        world.client(url, limits=Limits(timestamp=16 << 10)).refresh()
    assert sent < 8 << 20


def test_old_metadata_is_refused_as_over_and_as_rolled_back(tmp_path: Path) -> None:
    long_ago = NOW - 3 * DAY
    world = World.make(tmp_path, long_ago)
    with pytest.raises(errors.MetadataExpired):
        world.client().refresh()
    renew_online(world.repository, NOW - DAY / 2)
    world.client().refresh()
    old = (world.repository.public / "metadata/timestamp.json").read_bytes()
    world.add(2)
    world.release()
    client = world.client()
    newest = client.refresh()
    assert FIRST.replace("1.", "2.") in newest.contents
    stamp = world.repository.public / "metadata/timestamp.json"
    stamp.unlink()
    stamp.write_bytes(old)
    with pytest.raises(errors.MetadataRollback):
        client.refresh()
    assert client.cached() == newest


def test_with_all_online_keys_nothing_new_is_accepted(world: World, tmp_path: Path) -> None:
    """Whoever has the server can put any bytes anywhere and sign snapshot and timestamp. It does not help."""
    world.add(2)
    world.release()
    client = world.client()
    honest = client.refresh()
    thief, stranger = online(world), CryptoSigner.generate_ed25519()
    evil = tmp_path / "evil"
    evil.write_bytes(b"evil")

    def add(metadata: Metadata) -> None:  # type: ignore[type-arg]
        target = TargetFile.from_file("hotpatch/evil.hotpatch", str(evil), ["sha256"])
        describe(target, ABOUT)
        metadata.signed.targets[target.path] = target
        metadata.signed.version += 1

    def point(metadata: Metadata) -> None:  # type: ignore[type-arg]
        metadata.signed.version += 1
        if metadata.signed.type == "snapshot":
            metadata.signed.meta["targets.json"] = MetaFile(3)
        else:
            metadata.signed.snapshot_meta = MetaFile(3)

    public = world.repository.public
    for signers in ([thief], [thief, stranger], [], [world.keys.holders[0], thief]):
        attack = World(world.repository, world.keys, world.folder)
        keep = {path: path.read_bytes() for path in (public / "metadata").iterdir()}
        attack.forge("2.targets.json", add, list(signers))
        (public / "metadata/2.targets.json").rename(public / "metadata/3.targets.json")
        attack.forge("2.snapshot.json", point, [thief])
        (public / "metadata/2.snapshot.json").rename(public / "metadata/3.snapshot.json")
        attack.forge("timestamp.json", point, [thief])
        device = world.client(name=f"device{len(signers)}{bool(signers)}")
        with pytest.raises(errors.MetadataUnsigned):
            device.refresh()
        with pytest.raises(errors.ContentError):
            device.find("hotpatch/evil.hotpatch")
        for path, content in keep.items():
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        (public / "metadata/3.targets.json").unlink()
        (public / "metadata/3.snapshot.json").unlink()
    assert client.refresh() == honest

    # a root of its own is not taken either
    root = Metadata.from_bytes(world.first_root)
    root.signed.version = 2
    root.signed.add_key(thief.public_key, "targets")
    root.signed.roles["targets"].threshold = 1
    root.signatures.clear()
    root.sign(thief)
    (public / "metadata/2.root.json").write_bytes(root.to_bytes())
    with pytest.raises(errors.MetadataUnsigned):
        client.refresh()


def test_mixed_versions_are_refused(world: World) -> None:
    """Targets of one version, and a snapshot that says another: mix and match."""
    world.add(2)
    world.release()
    metadata = world.repository.public / "metadata"
    old = (metadata / "1.targets.json").read_bytes()
    (metadata / "2.targets.json").unlink()
    (metadata / "2.targets.json").write_bytes(old)
    with pytest.raises(errors.MetadataRollback):
        world.client().refresh()


def test_missing_and_unreadable_metadata_has_its_own_error(world: World) -> None:
    stamp = world.repository.public / "metadata/timestamp.json"
    stamp.unlink()
    with pytest.raises(errors.ContentMissing):
        world.client().refresh()
    for junk in (b"", b"{", b'{"signed": {}, "signatures": []}', b"\xff\xfe", b"[" * 5000):
        stamp.write_bytes(junk)
        with pytest.raises(errors.MetadataMalformed):
            world.client().refresh()


def test_content_that_was_revoked_cannot_be_had(world: World, tmp_path: Path) -> None:
    client = world.client()
    content = client.refresh().contents[FIRST]
    world.repository.revoke(FIRST, "unsafe", True, NOW)
    world.release()
    client.refresh()
    with pytest.raises(errors.ContentMissing, match="revoked"):
        client.download(content, tmp_path / "content")


def test_the_root_of_trust_is_pinned_once(world: World, tmp_path: Path) -> None:
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    stranger = World.make(other_folder)
    ContentClient.bootstrap(tmp_path / "device", world.first_root)
    ContentClient.bootstrap(tmp_path / "device", world.first_root)
    with pytest.raises(InputError, match="another root"):
        ContentClient.bootstrap(tmp_path / "device", stranger.first_root)
    with pytest.raises(errors.ContentAltered):
        ContentClient.bootstrap(tmp_path / "new", world.first_root, "00" * 32)
    for junk in (b"", b"{}", (world.repository.public / "metadata/timestamp.json").read_bytes()):
        with pytest.raises(errors.MetadataMalformed):
            ContentClient.bootstrap(tmp_path / "new", junk)
    device = ContentClient(tmp_path / "device", stranger.repository.public)
    with pytest.raises(errors.MetadataUnsigned):
        device.refresh()
    with pytest.raises(InputError, match="enroll"):
        ContentClient(tmp_path / "new", world.repository.public)


def test_a_client_from_far_behind_follows_all_roots(world: World) -> None:
    client = world.client()
    client.refresh()
    for _ in range(3):
        world.repository.extend(["root"], NOW)
        world.release()
    assert client.refresh().version == 1
    assert (client.folder / "metadata/root_history/4.root.json").exists()


def test_a_mirror_is_verified_complete_and_brought_up_to_date(world: World, tmp_path: Path) -> None:
    world.add(2)
    world.release()
    target = tmp_path / "mirror"
    with serving(world.repository.public) as url:
        with pytest.raises(InputError, match="--root"):
            mirror(url, target)
        done = mirror(url, target, world.first_root)
        assert (done.files, done.fetched) == (2, 2)
        again = mirror(url, target)
        assert (again.files, again.fetched) == (2, 0)
        world.repository.revoke(FIRST, "unsafe", False, NOW)
        world.repository.extend(["root"], NOW)
        world.add(3)
        world.release()
        third = mirror(url, target)
        assert (third.files, third.fetched) == (2, 1)
    device = world.client(target)
    catalog = device.refresh()
    assert catalog == third.catalog
    for content in catalog.contents.values():
        assert device.download(content, tmp_path / "content").stat().st_size == content.length
    names = {path.name for path in (target / "metadata").iterdir()}
    assert {"1.root.json", "2.root.json", "timestamp.json"} < names and len(names) == 5
    assert len([path for path in (target / "targets").rglob("*") if path.is_file()]) == 2
    with serving(target) as url:
        assert world.client(url, name="far").refresh() == catalog


def test_a_mirror_of_a_server_with_a_certificate_of_its_own_asks_for_its_pin(world: World, tmp_path: Path) -> None:
    context, pin, _ = certificate()
    with serving(world.repository.public, context=context) as url:
        for wrong in ((), (certificate()[1],)):
            with pytest.raises(errors.TrustError, match=r"CERTIFICATE_VERIFY_FAILED|is not pinned"):
                mirror(url, tmp_path / "mirror", world.first_root, pins=wrong)
        assert mirror(url, tmp_path / "mirror", world.first_root, pins=(pin,)).files == 1


def test_a_mirror_of_an_attacker_changes_nothing(world: World, tmp_path: Path) -> None:
    target = tmp_path / "mirror"
    mirror(world.repository.public, target, world.first_root)
    before = {path: path.read_bytes() for path in (target / "metadata").iterdir()}
    world.add(2)
    world.release()
    world.forge("2.targets.json", lambda metadata: None, [online(world)])
    with pytest.raises(errors.MetadataUnsigned):
        mirror(world.repository.public, target)
    assert {path: path.read_bytes() for path in (target / "metadata").iterdir()} == before


def test_ranges_of_the_test_server_are_as_http_has_them(world: World) -> None:
    """The server that the tests above rely on."""
    with serving(world.repository.public) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/metadata/timestamp.json", headers={"range": "bytes=10-"})
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 206
        assert data == (world.repository.public / "metadata/timestamp.json").read_bytes()[10:]
        connection.close()


def test_metadata_lives_as_long_as_it_says(world: World) -> None:
    world.add(2, now=NOW - timedelta(days=89))
    for holder in world.keys.holders[:2]:
        sign(world.repository, holder)
    publish(world.repository, NOW)
    assert world.client().refresh().expires == NOW + DAY
