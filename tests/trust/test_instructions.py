"""Instructions: what a device accepts from its server, and everything else that it refuses."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.signer import SSlibKey

from midflight.patch.signature import Envelope, encode_envelope
from midflight.trust.encoding import MAX_INTEGER
from midflight.trust.errors import InstructionsRefused, TrustError
from midflight.trust.instructions import (
    MAX_ENVELOPE,
    PAYLOAD_TYPE,
    Action,
    Instructions,
    Window,
    encode_instructions,
    sign_instructions,
    verify_instructions,
)
from midflight.trust.keys import PrivateKey

KEY = PrivateKey.generate()
STRANGER = PrivateKey.generate()
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SHA = "ab" * 32
INSTRUCTIONS = Instructions(
    device="web-1",
    issued=NOW - HOUR,
    expires=NOW + HOUR,
    sequence=7,
    interval_s=300,
    windows=(Window(NOW, NOW + HOUR),),
    actions=(
        Action("a1", "apply", "d1", "nginx/fix-1.hotpatch", SHA, 1000, NOW, NOW + HOUR, {"health": True, "n": 3}),
        Action("a2", "hold"),
    ),
    policy={"checks": [60, 300, 900], "reverts": True},
)
GOOD = sign_instructions(INSTRUCTIONS, [KEY])


def verify(envelope: bytes, device: str = "web-1", now: datetime = NOW, last: int = 6) -> Instructions:
    """As the device web-1 would, at noon."""
    return verify_instructions(envelope, [KEY.public], device, now, last)


def refused(envelope: bytes, **other: Any) -> str:
    """The reason of a refusal."""
    with pytest.raises(InstructionsRefused) as found:
        verify(envelope, **other)
    assert "\n" not in str(found.value)
    return found.value.reason


def signed(document: object, kind: str = PAYLOAD_TYPE, key: PrivateKey = KEY) -> bytes:
    """An envelope around any document, canonical or not, properly signed."""
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    return encode_envelope(Envelope(payload, {}, kind).signed_by(key))


def test_a_device_gets_what_the_server_signed() -> None:
    assert verify(GOOD) == INSTRUCTIONS
    assert verify_instructions(GOOD, [STRANGER.public, KEY.public], "web-1", NOW, 0) == INSTRUCTIONS
    assert verify_instructions(GOOD, [KEY.public], "web-1", NOW, 7, same=True) == INSTRUCTIONS
    assert NOW in INSTRUCTIONS.windows[0]
    assert NOW + HOUR not in INSTRUCTIONS.windows[0]


def test_another_implementation_of_dsse_verifies_the_envelope() -> None:
    theirs = TheirEnvelope.from_dict(json.loads(GOOD))
    key = SSlibKey(KEY.key_id, "ed25519", "ed25519", {"public": KEY.public.raw.hex()})
    assert theirs.verify([key], 1).keys() == {KEY.key_id}
    assert json.loads(theirs.payload)["device"] == "web-1"


def test_refuses_foreign_expired_early_replayed_and_older_instructions() -> None:
    assert refused(GOOD, device="web-2") == "foreign"
    assert refused(GOOD, now=NOW + HOUR) == "expired"
    assert refused(GOOD, now=NOW - 2 * HOUR) == "early"
    assert refused(GOOD, last=7) == "replayed"
    assert refused(GOOD, last=8) == "older"


def test_refuses_what_the_server_did_not_sign() -> None:
    assert refused(sign_instructions(INSTRUCTIONS, [STRANGER])) == "untrusted"
    assert refused(sign_instructions(INSTRUCTIONS, [])) == "unsigned"
    document = json.loads(GOOD)
    payload = base64.b64decode(document["payload"]).replace(b"web-1", b"web-2")
    altered = document | {"payload": base64.b64encode(payload).decode()}
    assert refused(json.dumps(altered, separators=(",", ":")).encode() + b"\n", device="web-2") == "altered"


def test_refuses_another_type_format_and_size() -> None:
    payload = encode_instructions(INSTRUCTIONS)
    assert refused(signed(payload, "application/vnd.in-toto+json")) == "malformed"
    assert refused(signed(payload.replace(b'"version":1', b'"version":0'))) == "downgraded"
    assert refused(signed(payload.replace(b'"version":1', b'"version":2'))) == "future"
    assert refused(bytes(MAX_ENVELOPE + 1)) == "oversized"
    with pytest.raises(InstructionsRefused) as found:
        sign_instructions(replace(INSTRUCTIONS, policy={"x": "y" * MAX_ENVELOPE}), [KEY])
    assert found.value.reason == "oversized"


@pytest.mark.parametrize(
    "change",
    [
        {"device": "../web"},
        {"sequence": 0},
        {"sequence": MAX_INTEGER + 1},
        {"sequence": True},
        {"interval_s": 0},
        {"expires": "2026-06-01 13:00:00"},
        {"expires": "2026-13-01T13:00:00Z"},
        {"expires": "2026-08-01T13:00:00Z"},
        {"expires": "2026-06-01T11:00:00Z"},
        {"window": [{"start": "2026-06-01T11:00:00Z", "end": "2026-06-01T11:00:00Z"}]},
        {"policy": None},
        {"more": 1},
    ],
)
def test_refuses_instructions_with_a_fault_though_they_are_signed(change: dict[str, Any]) -> None:
    document = json.loads(encode_instructions(INSTRUCTIONS)) | change
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert refused(signed(payload)) == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"target": path}
            for path in ("../a", "a/../b", "/a", "a//b", "a/", ".a", "-rf", "a\\b", "a b", "nul", "COM1.x")
        ),
        *({"target": path} for path in ("COM1.x", "C:x", "a%2f", "a.", "ä", "a" * 201, "\n", "")),
        {"sha256": "AB" * 32},
        {"sha256": None},
        {"length": 0},
        {"kind": "run"},
        {"target": None, "sha256": None, "length": None},
        {"deadline": "2026-06-01T11:00:00Z"},
        {"options": {"a": [1]}},
        {"options": {"a": 1 << 60}},
        {"id": ""},
        {"id": "a2"},
    ],
)
def test_refuses_actions_with_a_fault_though_they_are_signed(change: dict[str, Any]) -> None:
    document = json.loads(encode_instructions(INSTRUCTIONS))
    document["actions"][0] |= change
    payload = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert refused(signed(payload)) == "malformed"


def test_only_the_canonical_encoding_is_accepted() -> None:
    document = json.loads(encode_instructions(INSTRUCTIONS))
    assert refused(signed(json.dumps(document).encode())) == "malformed"
    assert refused(signed(encode_instructions(INSTRUCTIONS) + b"\n")) == "malformed"
    twice = encode_instructions(INSTRUCTIONS).replace(b'{"actions"', b'{"actions":[],"actions"')
    assert refused(signed(twice)) == "malformed"
    assert refused(signed(b'{"version":1,"policy":' + b"[" * 100_000)) == "malformed"


def test_the_server_cannot_sign_what_no_device_would_take() -> None:
    for wrong in (
        replace(INSTRUCTIONS, device="Web 1"),
        replace(INSTRUCTIONS, expires=NOW + timedelta(days=40)),
        replace(INSTRUCTIONS, issued=INSTRUCTIONS.issued.replace(microsecond=5)),
        replace(INSTRUCTIONS, actions=(Action("a", "apply"),)),
    ):
        with pytest.raises(InstructionsRefused):
            sign_instructions(wrong, [KEY])


_times = st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))
_plain = st.text(st.characters(codec="utf-8"), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_plain, inner, max_size=3),
    max_leaves=8,
)


@given(
    issued=_times,
    sequence=st.integers(1, MAX_INTEGER),
    options=st.dictionaries(_plain, st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | _plain),
    policy=st.dictionaries(_plain, _json, max_size=4),
)
@settings(deadline=None, max_examples=100)
def test_whatever_is_signed_comes_out_as_it_was(
    issued: datetime, sequence: int, options: dict[str, Any], policy: dict[str, Any]
) -> None:
    action = Action("a", "revert", None, "a/b", SHA, 5, None, issued, options)
    made = Instructions("d", issued, issued + HOUR, sequence, 60, (), (action,), policy)
    envelope = sign_instructions(made, [KEY])
    assert verify_instructions(envelope, [KEY.public], "d", issued, sequence - 1) == made


@given(st.binary(max_size=300) | _json.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None, max_examples=200)
def test_no_input_does_anything_but_be_refused(data: bytes) -> None:
    for envelope in (data, signed(data), signed(b'{"version":1,' + data)):
        with pytest.raises(TrustError):
            verify_instructions(envelope, [KEY.public], "web-1", NOW, 0)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(GOOD) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != GOOD[place]))
    with pytest.raises(InstructionsRefused):
        verify(GOOD[:place] + bytes([value]) + GOOD[place + 1 :])
