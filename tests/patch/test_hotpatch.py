"""Hotpatch files as a whole: what is accepted, and what is refused before it is interpreted."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer._key import SSlibKey

from midflight.errors import PatchFileError
from midflight.patch import container, signature
from midflight.patch.encoding import encode_manifest
from midflight.patch.hotpatch import (
    STATEMENT,
    add_signature,
    encode_hotpatch,
    read_hotpatch,
    read_unverified,
    write_hotpatch,
)
from tests.patch.examples import BUILD_ID, KEY, PAYLOAD, PAYLOADS, forged, hotpatch_bytes, key, manifest, put, target

OTHER = key(2)
HERE = [KEY.public]
no_reset = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path, data: bytes) -> str:
    """The message with which a file is refused; both readers must refuse, unless only the signature is at fault."""
    put(path, data)
    with pytest.raises(PatchFileError) as caught:
        read_hotpatch(path, HERE)
    message = str(caught.value)
    assert message.count("\n") == 0 and message.isprintable() and str(path) in message and "; " in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.hotpatch"


# --- good files ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(path: Path) -> None:
    digest = write_hotpatch(path, manifest(), PAYLOADS, KEY, {BUILD_ID: b"\x7fELF"})
    hotpatch = read_hotpatch(path, [OTHER.public, KEY.public])
    assert hotpatch.manifest == manifest()
    assert hotpatch.payload(hotpatch.manifest.targets[0]) == PAYLOAD
    assert hotpatch.symbols == {BUILD_ID: b"\x7fELF"}
    assert hotpatch.signers == (KEY.key_id,)
    assert hotpatch.digest == digest == sha256(path.read_bytes()).hexdigest()


def test_several_targets(path: Path) -> None:
    second = "cd" * 16
    other = target(build_id=second, payload=f"payload/{second}.bin")
    both = manifest(targets=(other, target()))
    write_hotpatch(path, both, {**PAYLOADS, other.payload: PAYLOAD}, KEY, {BUILD_ID: b"b", second: b"a"})
    hotpatch = read_hotpatch(path, HERE)
    assert hotpatch.manifest == both and hotpatch.symbols == {BUILD_ID: b"b", second: b"a"}


def test_same_input_gives_same_bytes(path: Path) -> None:
    write_hotpatch(path, manifest(), PAYLOADS, KEY)
    assert path.read_bytes() == hotpatch_bytes()
    code = "import sys; from tests.patch.examples import hotpatch_bytes; sys.stdout.buffer.write(hotpatch_bytes())"
    environment = {**os.environ, "PYTHONHASHSEED": "17", "TZ": "Asia/Tokyo"}
    other = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment)
    assert other.stdout == path.read_bytes()


def test_securesystemslib_verifies_the_envelope() -> None:
    envelope = Envelope.from_dict(json.loads(container.unpack(hotpatch_bytes())[STATEMENT]))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(KEY.public.raw))
    assert envelope.verify([public], 1).keys() == {KEY.key_id}


def test_two_signatures(path: Path) -> None:
    write_hotpatch(path, manifest(), PAYLOADS, KEY)
    assert add_signature(path, OTHER) == sha256(path.read_bytes()).hexdigest()
    assert read_hotpatch(path, [OTHER.public]).signers == (OTHER.key_id,)
    assert read_hotpatch(path, [KEY.public, OTHER.public]).signers == tuple(sorted([KEY.key_id, OTHER.key_id]))
    assert path.read_bytes() == encode_hotpatch(manifest(), PAYLOADS, [OTHER, KEY])


def test_signing_twice_with_one_key_changes_nothing(path: Path) -> None:
    write_hotpatch(path, manifest(), PAYLOADS, KEY)
    add_signature(path, KEY)
    assert path.read_bytes() == hotpatch_bytes()


def test_reading_unverified_says_who_claims_to_have_signed(path: Path) -> None:
    put(path, forged(signers=(OTHER,)))
    hotpatch = read_unverified(path)
    assert hotpatch.manifest == manifest() and hotpatch.claimed_signers == (OTHER.key_id,)
    assert not hasattr(hotpatch, "signers")


# --- signatures ----------------------------------------------------------------------------------------------------


def test_another_key(path: Path) -> None:
    assert "no key that is trusted here" in refusal(path, forged(signers=(OTHER,)))


def test_no_key_at_all(path: Path) -> None:
    assert "is not signed" in refusal(path, forged(signers=()))
    assert read_unverified(path).claimed_signers == ()


def test_nobody_is_trusted(path: Path) -> None:
    put(path, hotpatch_bytes())
    with pytest.raises(PatchFileError, match="no key that is trusted"):
        read_hotpatch(path, [])


def test_a_foreign_signature_under_a_trusted_name(path: Path) -> None:
    members = container.unpack(forged(signers=(OTHER,)))
    members[STATEMENT] = members[STATEMENT].replace(OTHER.key_id.encode(), KEY.key_id.encode())
    assert "does not fit" in refusal(path, container.pack(members))


def test_one_bad_signature_of_a_trusted_key_is_enough_to_refuse(path: Path) -> None:
    members = container.unpack(encode_hotpatch(manifest(), PAYLOADS, [KEY, OTHER]))
    envelope = json.loads(members[STATEMENT])
    good, bad = envelope["signatures"]
    bad["sig"] = good["sig"]
    members[STATEMENT] = json.dumps(envelope, separators=(",", ":")).encode() + b"\n"
    put(path, container.pack(members))
    with pytest.raises(PatchFileError, match="does not fit"):
        read_hotpatch(path, [KEY.public, OTHER.public])


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 30_000,
        b'{"payload":"","payloadType":"text/plain","signatures":[]}',
        b'{"payload":"!","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b'{"payload":1,"payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[1]}',
        b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"x","sig":""}]}',
        b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"'
        + b"0" * 64
        + b'","sig":"AAAA"}]}',
        b'{"payload":"","payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]} ',
        b" " * (65 << 10),
    ],
)
def test_malformed_envelopes(path: Path, envelope: bytes) -> None:
    refusal(path, container.pack({STATEMENT: envelope, "manifest.json": encode_manifest(manifest()), **PAYLOADS}))
    with pytest.raises(PatchFileError):
        read_unverified(path)


def test_the_envelope_has_one_spelling(path: Path) -> None:
    members = container.unpack(encode_hotpatch(manifest(), PAYLOADS, [KEY, OTHER]))
    envelope = json.loads(members[STATEMENT])
    for spelling in (
        json.dumps(envelope).encode(),
        json.dumps({**envelope, "signatures": envelope["signatures"][::-1]}, separators=(",", ":")).encode() + b"\n",
        json.dumps({**envelope, "signatures": envelope["signatures"] * 2}, separators=(",", ":")).encode() + b"\n",
    ):
        assert "form" in refusal(path, container.pack({**members, STATEMENT: spelling}))


# --- what is signed ------------------------------------------------------------------------------------------------


def test_a_changed_member_in_a_well_formed_container(path: Path) -> None:
    for name in ("manifest.json", target().payload):
        members = container.unpack(hotpatch_bytes())
        members[name] = members[name][:-1] + b" "
        assert "was altered" in refusal(path, container.pack(members))


def test_members_may_not_come_go_or_change_places(path: Path) -> None:
    members = container.unpack(hotpatch_bytes())
    payload = target().payload
    without = {name: data for name, data in members.items() if name != payload}
    assert "other members" in refusal(path, container.pack(without))
    assert "other members" in refusal(path, container.pack({**members, "more.txt": b""}))
    assert "other members" in refusal(path, container.pack({**without, "payload/00.bin": PAYLOAD}))
    swapped = {name: members[name] for name in (STATEMENT, payload, "manifest.json")}
    assert "other members" in refusal(path, container.pack(swapped))
    late = {name: members[name] for name in ("manifest.json", STATEMENT, payload)}
    assert "first member" in refusal(path, container.pack(late))


def test_an_honest_signature_over_something_else(path: Path) -> None:
    good = {"manifest.json": encode_manifest(manifest()), **PAYLOADS}
    assert "belong to no target" in refusal(path, forged({**good, "more.txt": b"x"}))
    assert "belong to no target" in refusal(path, forged({"manifest.json": good["manifest.json"]}))
    assert "second member" in refusal(path, forged({**PAYLOADS, "manifest.json": good["manifest.json"]}))
    assert "second member" in refusal(path, forged({}))
    wrong = {"manifest.json": good["manifest.json"], target().payload: PAYLOAD[::-1]}
    assert "not the payload" in refusal(path, forged(wrong))
    renamed = encode_manifest(manifest(name="something-else"))
    assert "another name or sequence" in refusal(path, forged({"manifest.json": renamed, **PAYLOADS}))


def test_statement_and_predicate_must_be_ours(path: Path) -> None:
    assert "format version" in refusal(path, forged(predicate={}))
    assert "format version" in refusal(path, forged(predicate={"formatVersion": True}))
    assert "predicate" in refusal(path, forged(predicate={"formatVersion": 1}))
    assert "other members" in refusal(path, forged(subjects=[]))


@pytest.mark.parametrize("name", ["STATEMENT_TYPE", "PREDICATE_TYPE"])
def test_a_trusted_statement_about_something_else_is_no_hotpatch(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A key may sign other things than hotpatches; none of them may pass for one."""
    with monkeypatch.context() as changed:
        changed.setattr(signature, name, "https://slsa.dev/provenance/v1")
        data = forged()
    assert "something else than a hotpatch" in refusal(path, data)


def test_a_future_format_says_what_it_needs_before_anything_is_interpreted(path: Path) -> None:
    predicate = {"formatVersion": 2, "requires": "0.9", "builder": "midflight 1.2\x1b[31m", "news": [1, {}]}
    message = refusal(path, forged({"whatever": b"not even json"}, predicate=predicate))
    assert "needs Midflight >= 0.9: made by midflight 1.2\\x1b[31m in format 2" in message
    assert "update Midflight" in message


def test_a_future_format_is_believed_only_when_it_is_signed(path: Path) -> None:
    message = refusal(path, forged(signers=(OTHER,), predicate={"formatVersion": 2, "requires": "9"}))
    assert "no key that is trusted" in message


def test_a_malformed_manifest_is_named_with_its_field(path: Path) -> None:
    document = json.loads(encode_manifest(manifest()))
    document["targets"][0]["functions"][1]["entry"]["before"] = "90"
    message = refusal(path, forged({"manifest.json": json.dumps(document).encode(), **PAYLOADS}))
    assert "manifest.json field targets[0].functions[1].entry.before must be 5 or 2 bytes, has 1" in message


# --- damage --------------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(path: Path) -> None:
    data = hotpatch_bytes()
    for size in range(len(data)):
        put(path, data[:size])
        with pytest.raises(PatchFileError):
            read_hotpatch(path, HERE)


@pytest.mark.parametrize("flip", [0x01, 0x20])
def test_every_changed_byte_is_refused(path: Path, flip: int) -> None:
    data = hotpatch_bytes()
    for position in range(len(data)):
        put(path, data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
        with pytest.raises(PatchFileError):
            read_hotpatch(path, HERE)


@no_reset
@given(st.data())
def test_no_damage_causes_another_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(hotpatch_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(begin, min(begin + 40, len(whole))))
        whole[begin:end] = data.draw(st.binary(max_size=40))
    path = put(tmp_path / "fuzzed", bytes(whole))
    if bytes(whole) == hotpatch_bytes():
        return
    with pytest.raises(PatchFileError):
        read_hotpatch(path, HERE)


@no_reset
@given(st.binary(max_size=600))
def test_no_signed_nonsense_causes_another_error(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "fuzzed", forged({"manifest.json": content, **PAYLOADS}))
    with pytest.raises(PatchFileError):
        read_hotpatch(path, HERE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@no_reset
@given(st.data())
def test_no_signed_manifest_with_a_strange_value_causes_another_error(tmp_path: Path, data: st.DataObject) -> None:
    document = json.loads(encode_manifest(manifest()))
    place, step = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(place[step], dict | list) and place[step] and data.draw(st.integers(0, 4)):
        place = place[step]
        step = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[step] = data.draw(json_values)
    path = put(tmp_path / "fuzzed", forged({"manifest.json": json.dumps(document).encode(), **PAYLOADS}))
    try:
        hotpatch = read_hotpatch(path, HERE)
    except PatchFileError as error:
        assert str(error).isprintable()
    else:
        assert json.loads(encode_manifest(hotpatch.manifest)) == document


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["nothing", "directory", "fifo", "empty", "text"])
def test_what_is_no_hotpatch_file(path: Path, make: str) -> None:
    match make:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "text":
            path.write_text("hello\n")
    for read in (lambda: read_hotpatch(path, HERE), lambda: read_unverified(path)):
        with pytest.raises(PatchFileError, match=str(path)):
            read()


def test_what_is_no_regular_file_says_so(path: Path) -> None:
    os.mkfifo(path)
    for special in (path, Path("/dev/zero")):
        with pytest.raises(PatchFileError, match="not a regular file"):
            read_hotpatch(special, HERE)


def test_an_oversized_file_is_refused_without_reading_it_all(path: Path) -> None:
    put(path, hotpatch_bytes())
    os.truncate(path, 1 << 40)  # sparse: more than fits into memory
    with pytest.raises(PatchFileError, match="larger than"):
        read_hotpatch(path, HERE)


def test_an_impossible_file_name() -> None:
    with pytest.raises(PatchFileError, match="cannot read"):
        read_hotpatch("a\0b", HERE)


def test_writing_replaces_the_file_as_a_whole(path: Path, tmp_path: Path) -> None:
    path.write_text("old")
    with open(path) as old:
        write_hotpatch(path, manifest(), PAYLOADS, KEY)
        assert old.read() == "old"
    assert os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "inner").mkdir(parents=True)
    with pytest.raises(PatchFileError, match="cannot write"):
        write_hotpatch(taken, manifest(), PAYLOADS, KEY)
    assert os.listdir(tmp_path) == ["taken"]
    with pytest.raises(PatchFileError, match="cannot write"):
        write_hotpatch(tmp_path / "no" / "a.hotpatch", manifest(), PAYLOADS, KEY)


def test_what_would_be_refused_is_never_written(path: Path) -> None:
    path.write_text("old")
    bad = manifest(targets=(target(policy_reason=None),))
    for wrong, payloads, symbols in (
        (bad, PAYLOADS, None),
        (manifest(), {}, None),
        (manifest(), {target().payload: b"short"}, None),
        (manifest(), {**PAYLOADS, "payload/00.bin": b""}, None),
        (manifest(), PAYLOADS, {"00" * 20: b""}),
        (manifest(sequence=-1), PAYLOADS, None),
        (manifest(targets=()), PAYLOADS, None),
        (manifest(description="\ud800"), PAYLOADS, None),
    ):
        with pytest.raises(PatchFileError):
            write_hotpatch(path, wrong, payloads, KEY, symbols)
    assert path.read_text() == "old"


def test_add_signature_refuses_what_cannot_be_read(path: Path) -> None:
    put(path, hotpatch_bytes()[:-1])
    with pytest.raises(PatchFileError, match="truncated"):
        add_signature(path, OTHER)


def test_at_most_sixteen_signatures(path: Path) -> None:
    put(path, encode_hotpatch(manifest(), PAYLOADS, [key(seed) for seed in range(1, 17)]))
    assert len(read_hotpatch(path, [key(seed).public for seed in range(1, 17)]).signers) == 16
    with pytest.raises(PatchFileError, match="cannot take more"):
        add_signature(path, key(17))


def test_reading_needs_no_heavy_library(path: Path) -> None:
    """The engine's start-up time depends on it (a whole apply in 150 ms)."""
    put(path, hotpatch_bytes())
    code = (
        "import sys\n"
        "from midflight.patch.hotpatch import read_unverified\n"
        f"read_unverified({str(path)!r})\n"
        "heavy = {'cryptography', 'securesystemslib', 'jsonschema', 'zipfile', 'tempfile', 'argparse'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[]\n"
