"""A device's identity: key, certificate, enrollment, renewal, revocation."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.errors import InputError, MidflightError
from midflight.trust.certificates import CertificateAuthority, make_request, read_certificate, verify_certificate
from midflight.trust.devices import begin_enrollment, finish_enrollment, load_identity
from midflight.trust.enrollment import (
    EnrollmentRequest,
    EnrollmentResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    hash_token,
    new_token,
    token_matches,
)
from midflight.trust.errors import CertificateRefused, TrustError
from midflight.trust.keys import PrivateKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    """The server's authority, read from the files it was written to."""
    key, certificate = tmp_path / "ca.key", tmp_path / "ca.pem"
    CertificateAuthority.create(key, certificate, "Midflight devices", NOW)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    return CertificateAuthority.load(key, certificate)


def test_a_device_is_enrolled_and_knows_itself_after_a_restart(tmp_path: Path, authority: CertificateAuthority) -> None:
    folder = tmp_path / "device"
    request = begin_enrollment(folder)
    assert begin_enrollment(folder) != "" and stat.S_IMODE((folder / "pending.key").stat().st_mode) == 0o600
    issued = authority.issue(request, "web-1", NOW)
    identity = finish_enrollment(folder, issued.pem, authority.pem, NOW)
    assert stat.S_IMODE((folder / "identity.pem").stat().st_mode) == 0o600
    again = load_identity(folder, NOW + DAY)
    assert again.device == identity.device == "web-1"
    assert again.fingerprint == issued.fingerprint
    assert again.key.public == issued.key
    assert not again.renewal_due(NOW + 19 * DAY)
    assert again.renewal_due(NOW + 21 * DAY)
    with pytest.raises(CertificateRefused, match="over"):
        load_identity(folder, NOW + 31 * DAY)
    with pytest.raises(InputError, match="not enrolled"):
        load_identity(tmp_path, NOW)


def test_a_device_renews_with_a_new_key(tmp_path: Path, authority: CertificateAuthority) -> None:
    folder = tmp_path / "device"
    first = authority.issue(begin_enrollment(folder), "web-1", NOW)
    finish_enrollment(folder, first.pem, authority.pem, NOW)
    later = NOW + 25 * DAY
    request = begin_enrollment(folder)
    assert load_identity(folder, later).fingerprint == first.fingerprint, "in force until the new one is there"
    second = authority.renew(request, first, later)
    finish_enrollment(folder, second.pem, authority.pem, later)
    identity = load_identity(folder, NOW + 50 * DAY)
    assert identity.fingerprint == second.fingerprint
    assert identity.device == "web-1"
    assert second.key != first.key
    with pytest.raises(CertificateRefused, match="over"):
        authority.renew(request, first, NOW + 31 * DAY)


def test_a_folder_that_others_can_change_gets_no_key(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device").chmod(0o777)
    with pytest.raises(InputError, match=r"(everybody|group) can change it"):
        begin_enrollment(tmp_path / "device")
    assert list((tmp_path / "device").iterdir()) == []


def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path, authority: CertificateAuthority) -> None:
    begin_enrollment(tmp_path / "device")
    other = authority.issue(make_request(PrivateKey.generate()), "web-1", NOW)
    with pytest.raises(CertificateRefused, match="another key"):
        finish_enrollment(tmp_path / "device", other.pem, authority.pem, NOW)
    assert not (tmp_path / "device/identity.pem").exists()


def test_openssl_agrees_that_the_chain_is_right(tmp_path: Path, authority: CertificateAuthority) -> None:
    import subprocess

    issued = authority.issue(make_request(PrivateKey.generate()), "web-1", datetime.now(UTC))
    (tmp_path / "authority.pem").write_text(authority.pem)
    (tmp_path / "device.pem").write_text(issued.pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-no_check_time", "-CAfile"]
    done = subprocess.run([*command, "authority.pem", "device.pem"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        ["openssl", "x509", "-in", "device.pem", "-noout", "-ext", "subjectAltName"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "URI:urn:midflight:device:web-1" in shown.stdout


def test_refuses_certificates_that_are_foreign_over_early_or_revoked(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    issued = authority.issue(make_request(PrivateKey.generate()), "web-1", NOW)
    assert verify_certificate(issued.pem, [authority.pem], NOW) == issued == read_certificate(issued.pem)

    def reason(pem: str, now: datetime = NOW, revoked: str | None = None) -> str:
        with pytest.raises(CertificateRefused) as found:
            verify_certificate(pem, [authority.pem], now, lambda fingerprint: revoked)
        return found.value.reason

    assert reason(issued.pem, NOW + 30 * DAY) == "expired"
    assert reason(issued.pem, NOW - DAY) == "foreign", "the authority itself did not exist yet"
    assert reason(issued.pem, revoked="stolen") == "revoked"
    CertificateAuthority.create(tmp_path / "b.key", tmp_path / "b.pem", "Midflight devices", NOW)
    stranger = CertificateAuthority.load(tmp_path / "b.key", tmp_path / "b.pem")
    assert reason(stranger.issue(make_request(PrivateKey.generate()), "web-1", NOW).pem) == "foreign"
    assert reason(authority.pem) == "malformed", "the authority is no device"
    assert reason("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") == "malformed"
    with pytest.raises(InputError, match="no pair"):
        CertificateAuthority.load(tmp_path / "b.key", tmp_path / "ca.pem")


def test_a_device_cannot_issue_certificates(authority: CertificateAuthority, tmp_path: Path) -> None:
    key = PrivateKey.generate()
    device = authority.issue(make_request(key), "web-1", NOW)
    (tmp_path / "evil.key").write_bytes(key.pem(None))
    (tmp_path / "evil.key").chmod(0o600)
    (tmp_path / "evil.pem").write_text(device.pem)
    evil = CertificateAuthority.load(tmp_path / "evil.key", tmp_path / "evil.pem")
    forged = evil.issue(make_request(PrivateKey.generate()), "db-1", NOW)
    for trusted in ([authority.pem], [authority.pem, device.pem]):
        with pytest.raises(CertificateRefused) as found:
            verify_certificate(forged.pem, trusted, NOW)
        assert found.value.reason == "foreign"


def test_refuses_requests_that_prove_nothing(authority: CertificateAuthority) -> None:
    name = x509.Name([])
    other_kind = x509.CertificateSigningRequestBuilder().subject_name(name)
    curve = other_kind.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    good = make_request(PrivateKey.generate())
    damaged = x509.load_pem_x509_csr(good.encode()).public_bytes(Encoding.DER)
    import base64

    broken = base64.encodebytes(damaged[:-1] + bytes([damaged[-1] ^ 1])).decode()
    for request in (
        curve.public_bytes(Encoding.PEM).decode(),
        f"-----BEGIN CERTIFICATE REQUEST-----\n{broken}-----END CERTIFICATE REQUEST-----\n",
        "",
        "x" * 20_000,
    ):
        with pytest.raises(CertificateRefused):
            authority.issue(request, "web-1", NOW)
    for device in ("", "../x", "A", "web 1", "x" * 65):
        with pytest.raises(CertificateRefused, match="no id"):
            authority.issue(good, device, NOW)


def test_tokens_are_stored_as_hashes_and_compared() -> None:
    token, stored = new_token()
    assert token not in stored and len(token) == 47
    assert token_matches(token, stored)
    assert not token_matches(new_token()[0], stored)
    assert hash_token(token) == stored


REQUEST = EnrollmentRequest(
    new_token()[0], make_request(PrivateKey.generate()), "web-1", "ab" * 32, "Debian 12", "x86_64", "0.1", {"dc": "fra"}
)
RESPONSE = EnrollmentResponse("web-1", "pem", "pem", '{"signed":{}}', ("https://patches.example/",), 300)


def test_messages_of_enrollment_are_read_as_they_are_written() -> None:
    assert decode_request(encode_request(REQUEST)) == REQUEST
    assert decode_response(encode_response(RESPONSE)) == RESPONSE


@given(st.binary(max_size=200), st.integers(0, len(encode_request(REQUEST)) - 1))
@settings(deadline=None, max_examples=150)
def test_damaged_messages_of_enrollment_are_refused_or_mean_what_they_say(noise: bytes, place: int) -> None:
    data = encode_request(REQUEST)
    for message in (noise, data[:place] + noise + data[place:], data[:place]):
        try:
            assert encode_request(decode_request(message)) == message
        except TrustError as error:
            assert error.reason == "malformed"
        with pytest.raises(MidflightError):
            decode_response(message)
