"""Signed requests of devices: RFC 9421 as another implementation reads it, and every change refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import http_message_signatures as theirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.trust.certificates import DeviceCertificate
from midflight.trust.errors import RequestRefused
from midflight.trust.keys import PrivateKey
from midflight.trust.requests import check_sequence, next_sequence, sign_request, verify_request

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
KEY = PrivateKey.generate()
CERTIFICATE = DeviceCertificate("web-1", "cd" * 32, KEY.public, NOW - DAY, NOW + DAY)
BODY = b'{"state":"unchanged"}'
URL = "https://patches.example/api/v1/check-in?wait=1&x=%2F"
PATH, QUERY = "/api/v1/check-in", "wait=1&x=%2F"


@dataclass(frozen=True)
class Device:
    """An identity as it is used for signing."""

    key: PrivateKey = KEY
    fingerprint: str = CERTIFICATE.fingerprint


HEADERS = sign_request(Device(), "POST", URL, BODY, 41, NOW)
Find = Callable[[str], DeviceCertificate | None]


def find(fingerprint: str) -> DeviceCertificate | None:
    """The server's store."""
    return CERTIFICATE if fingerprint == CERTIFICATE.fingerprint else None


def reason(headers: dict[str, str] = HEADERS, **changed: Any) -> str:
    """The reason for which a request is refused."""
    asked = {"method": "POST", "path": PATH, "query": QUERY, "body": BODY, "find_certificate": find, "now": NOW}
    with pytest.raises(RequestRefused) as found:
        verify_request(headers, **{**asked, **changed})
    assert "\n" not in str(found.value)
    return found.value.reason


def test_the_server_learns_which_device_asked() -> None:
    request = verify_request(HEADERS, "POST", PATH, QUERY, BODY, find, NOW)
    assert (request.device, request.sequence, request.created) == ("web-1", 41, NOW)
    bare = sign_request(Device(), "GET", "https://patches.example", b"", 42, NOW)
    assert verify_request(bare, "GET", "/", "", b"", find, NOW).sequence == 42


def test_another_implementation_of_rfc_9421_accepts_our_signature_and_we_accept_its() -> None:
    keys = theirs.MappingKeyResolver(
        public_keys={CERTIFICATE.fingerprint: KEY.public.pem()}, private_keys={CERTIFICATE.fingerprint: KEY.pem(None)}
    )
    ed25519 = theirs.algorithms.ED25519
    now = datetime.now(UTC).replace(microsecond=0)  # theirs has a clock of its own
    sent = SimpleNamespace(method="POST", url=URL, headers=dict(sign_request(Device(), "POST", URL, BODY, 41, now)))
    (result,) = theirs.HTTPMessageVerifier(signature_algorithm=ed25519, key_resolver=keys).verify(
        sent, body=BODY, expect_tag="midflight-device", max_age=timedelta(minutes=5)
    )
    assert result.parameters["keyid"] == CERTIFICATE.fingerprint
    assert result.body == BODY

    message = SimpleNamespace(method="POST", url=URL, headers={"midflight-sequence": "43"})
    theirs.HTTPMessageSigner(signature_algorithm=ed25519, key_resolver=keys).sign(
        message,
        key_id=CERTIFICATE.fingerprint,
        created=now,
        label="midflight",
        tag="midflight-device",
        covered_component_ids=("@method", "@path", "@query", "content-digest", "midflight-sequence"),
        body=BODY,
    )
    headers = {name.lower(): value for name, value in message.headers.items()}
    assert verify_request(headers, "POST", PATH, QUERY, BODY, find, now).sequence == 43


def test_refuses_every_change() -> None:
    assert reason(method="PUT") == "altered"
    assert reason(path="/api/v1/check-out") == "altered"
    assert reason(query="wait=1&x=/") == "altered"
    assert reason(body=BODY + b" ") == "altered"
    assert reason({**HEADERS, "midflight-sequence": "42"}) == "altered"
    younger = HEADERS["signature-input"].replace(
        f"created={int(NOW.timestamp())}", f"created={int(NOW.timestamp()) + 1}"
    )
    assert younger != HEADERS["signature-input"]
    assert reason({**HEADERS, "signature-input": younger}) == "altered"
    stranger = sign_request(Device(PrivateKey.generate()), "POST", URL, BODY, 41, NOW)
    assert reason(stranger) == "altered"


def test_refuses_strangers_the_revoked_the_expired_and_the_late() -> None:
    assert reason(sign_request(Device(fingerprint="ee" * 32), "POST", URL, BODY, 41, NOW)) == "unknown"
    assert reason(find_certificate=lambda _: replace(CERTIFICATE, revoked="stolen")) == "revoked"
    assert reason(find_certificate=lambda _: replace(CERTIFICATE, not_after=NOW)) == "expired"
    assert reason(find_certificate=lambda _: replace(CERTIFICATE, not_before=NOW + DAY)) == "expired"
    assert reason(now=NOW + timedelta(minutes=6)) == "stale"
    assert reason(now=NOW - timedelta(minutes=6)) == "stale"


def test_refuses_a_request_that_is_played_again() -> None:
    request = verify_request(HEADERS, "POST", PATH, QUERY, BODY, find, NOW)
    check_sequence(request, 40)
    for last in (41, 42):
        with pytest.raises(RequestRefused) as found:
            check_sequence(request, last)
        assert found.value.reason == "replayed"


def test_the_next_sequence_is_higher_even_when_the_clock_goes_back() -> None:
    first = next_sequence(0, NOW)
    assert next_sequence(first, NOW) == first + 1
    assert next_sequence(first, NOW - DAY) == first + 1
    assert next_sequence(first, NOW + DAY) == first + 86_400_000_000


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("signature-input", '"@query" ', ""),
        ("signature-input", '"content-digest" ', ""),
        ("signature-input", 'alg="ed25519"', 'alg="hmac-sha256"'),
        ("signature-input", ';tag="midflight-device"', ""),
        ("signature-input", "midflight-device", "other"),
        ("signature-input", "midflight=", "other="),
        ("signature-input", "midflight=", "midflight=(), midflight="),
        ("signature-input", 'keyid="cd', 'keyid="CD'),
        ("midflight-sequence", "41", "041"),
        ("midflight-sequence", "41", "-1"),
        ("midflight-sequence", "41", "9999999999999999"),
        ("midflight-sequence", "41", "٤١"),
        ("signature", "midflight=:", "midflight=::"),
        ("signature", "==:", "="),
    ],
)
def test_refuses_signatures_of_another_form(header: str, old: str, new: str) -> None:
    assert old in HEADERS[header]
    assert reason({**HEADERS, header: HEADERS[header].replace(old, new)}) == "malformed"


def test_refuses_requests_without_a_signature() -> None:
    assert reason({}) == "unsigned"
    assert reason({"midflight-sequence": "1", "authorization": "Bearer x"}) == "unsigned"
    assert reason(path='/api\n"@query": ?') == "malformed"


@given(st.sampled_from(sorted(HEADERS)), st.data())
@settings(deadline=None, max_examples=150)
def test_no_changed_character_is_accepted(header: str, data: st.DataObject) -> None:
    text = HEADERS[header]
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters().filter(lambda c: c != text[place]))
    with pytest.raises(RequestRefused):
        verify_request(
            {**HEADERS, header: text[:place] + character + text[place + 1 :]}, "POST", PATH, QUERY, BODY, find, NOW
        )
