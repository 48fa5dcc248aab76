"""Conditional access, as a proxy asks for it: who is let in, and that all that is unclear is a no."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import KeySet

from midflight.server.outputs import gate, keys, tokens
from midflight.server.outputs.jwtkeys import JwtKeys, TokenRefused
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.devices import Certificate, Device
from midflight.server.store.policies import Compliance

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def make_certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
    return builder.sign(key, hashes.SHA256())


@dataclass(frozen=True)
class Known:
    """A device that the server knows, and how proxies write its certificate."""

    id: str
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        return sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    @property
    def nginx(self) -> dict[str, str]:
        return {"x-ssl-client-cert": quote(self.certificate.public_bytes(Encoding.PEM).decode())}

    @property
    def envoy(self) -> dict[str, str]:
        return {"x-forwarded-client-cert": f'By=spiffe://x;Hash={self.fingerprint};Subject="CN=web"'}

    @property
    def rfc9440(self) -> dict[str, str]:
        return {"client-cert": f":{base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()}:"}


@pytest.fixture
def know(database: Database) -> Callable[..., Known]:
    """Puts a device with this compliance into the database."""

    def know(
        name: str = "web1",
        state: str | None = "compliant",
        until: datetime | None = None,
        due: datetime | None = None,
        violated: bool = False,
        disabled: datetime | None = None,
        revoked: datetime | None = None,
        ends: datetime = NOW + HOUR,
    ) -> Known:
        device = Known(f"dev-{name}", make_certificate(name))
        with database.write() as session:
            columns = {column.name for column in Device.__table__.columns}
            texts: dict[str, object] = dict.fromkeys(columns, "") | {"tags": {}, "state": None, "memory_free_mib": None}
            row = texts | {
                "id": device.id, "hostname": name, "sequence": 0, "reported": NOW, "integrity_violated": violated,
                "restart_pending": False, "enrolled": NOW, "disabled": disabled, "policy_id": None, "regroup": False,
                "hotpatched": False, "version": 1,
            }  # fmt: skip
            session.add(Device(**{key: value for key, value in row.items() if key in columns}))
            session.flush()
            session.add(
                Certificate(
                    fingerprint=device.fingerprint,
                    device_id=device.id,
                    public_key=b"",
                    not_before=NOW - HOUR,
                    not_after=ends,
                    pem="",
                    revoked=revoked,
                    revoked_reason=None,
                )
            )
            if state is not None:
                session.add(
                    Compliance(
                        device_id=device.id,
                        policy_id=None,
                        state=state,
                        reason="fix_missing",
                        detail="",
                        hotpatched=False,
                        since=NOW,
                        until=until,
                        due=due,
                        evaluated=NOW,
                    )
                )
        return device

    return know


def test_a_compliant_device_is_let_in_however_the_proxy_names_it(admin: TestClient, know: Callable[..., Known]) -> None:
    device = know()
    for headers in (device.nginx, device.envoy, device.rfc9440):
        answer = admin.get("/auth/compliance", headers=headers)
        assert (answer.status_code, answer.headers["x-midflight-device"]) == (204, device.id), answer.text
    assert admin.get("/auth/compliance", headers=know("web2", "in_grace").nginx).status_code == 204


@sqlite
def test_the_last_word_holds_while_a_device_is_about_to_be_judged_anew(
    admin: TestClient, know: Callable[..., Known]
) -> None:
    """An edit of a policy must not shut everybody out for the seconds that judging a whole fleet takes."""
    assert admin.get("/auth/compliance", headers=know(due=NOW).nginx).status_code == 204


@sqlite
@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"state": "noncompliant"}, "fix_missing"),
        ({"state": "stale"}, "fix_missing"),
        ({"state": "unassigned"}, "fix_missing"),
        ({"state": "conflict"}, "fix_missing"),
        ({"state": None}, "unknown"),
        ({"until": NOW - timedelta(seconds=1)}, "evaluation_over"),
        ({"due": NOW - gate.JUDGED_WITHIN}, "evaluation_over"),
        ({"violated": True}, "integrity_violated"),
        ({"disabled": NOW}, "device_disabled"),
        ({"revoked": NOW}, "certificate_over"),
        ({"ends": NOW - timedelta(seconds=1)}, "certificate_over"),
    ],
)
def test_everybody_else_is_not(
    admin: TestClient, know: Callable[..., Known], facts: dict[str, Any], reason: str
) -> None:
    answer = admin.get("/auth/compliance", headers=know(**facts).nginx)
    assert (answer.status_code, answer.headers["x-midflight-reason"]) == (403, reason)


@sqlite
def test_what_is_unclear_is_a_no(admin: TestClient, client: TestClient, know: Callable[..., Known]) -> None:
    one, other = know("web1"), know("web2")
    stranger = Known("dev-x", make_certificate("x"))
    unclear: list[dict[str, str]] = [
        {},
        {"x-ssl-client-cert": ""},
        {"x-ssl-client-cert": "%ZZ"},
        {"x-ssl-client-cert": one.nginx["x-ssl-client-cert"] * 2},
        {"client-cert": "::"},
        {"client-cert": "not base64"},
        {"x-forwarded-client-cert": f"Hash={one.fingerprint},Hash={other.fingerprint}"},
        {"x-forwarded-client-cert": f'Subject="CN=Hash={one.fingerprint}"'},
        {"x-ssl-client-fingerprint": one.fingerprint[:40]},
        {**one.nginx, **other.envoy},
        stranger.nginx,
    ]
    for headers in unclear:
        assert admin.get("/auth/compliance", headers=headers).status_code == 403, headers
    assert client.get("/auth/compliance", headers=one.nginx).status_code == 401, "the proxy must say who it is"


@sqlite
def test_a_compliance_token_opens_for_its_own_device_while_that_is_compliant(
    app: FastAPI, admin: TestClient, settings: Settings, database: Database, know: Callable[..., Known]
) -> None:
    device, other = know("web1"), know("web2")
    issuer, signer = settings.public_url, keys.load(settings).jwt

    def token(age: timedelta = timedelta(0), subject: str = device.id, fingerprint: str = device.fingerprint) -> str:
        now = datetime.now(UTC) - age
        thumb = gate.thumbprint(fingerprint)
        claims = tokens.compliance_claims(issuer, subject, thumb, "compliant", "", "t1", now)
        return signer.sign(claims, tokens.COMPLIANCE_TYPE)

    def ask(value: str, **headers: str) -> int:
        return admin.get("/auth/compliance", headers={"x-midflight-compliance-token": value, **headers}).status_code

    assert ask(token()) == 204
    assert ask(token(), **device.nginx) == 204
    published = KeySet.import_key_set(admin.get("/.well-known/jwks.json").json())
    assert jwt.decode(token(), published).claims["sub"] == device.id
    assert "d" not in admin.get("/.well-known/jwks.json").json()["keys"][0]

    assert ask(token(), **other.nginx) == 403, "shown with another's certificate"
    assert ask(token(HOUR)) == 403
    assert ask(token(-HOUR)) == 403
    assert ask(token(subject=other.id)) == 403, "names a device that the certificate is not of"
    assert ask(token()[:-6] + "AAAAAA") == 403
    head, body, _signature = token().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"midflight-compliance+jwt"}').rstrip(b"=").decode()
    assert ask(f"{none}.{body}.") == ask(f"{head}.{body}.") == 403
    with database.write() as session:
        session.get_one(Compliance, device.id).state = "noncompliant"
    assert ask(token()) == 403, "the token is still good, the device is not"


@sqlite
def test_tokens_of_another_kind_server_or_key_are_refused(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    signer, foreign = keys.load(settings).jwt, JwtKeys.load(tmp_path_factory.mktemp("keys"), create=True)
    issuer = settings.public_url
    claims = tokens.compliance_claims(issuer, "dev-1", "x" * 43, "compliant", "", "t", NOW)
    good = signer.sign(claims, tokens.COMPLIANCE_TYPE)
    assert signer.verify(good, tokens.COMPLIANCE_TYPE, issuer, NOW)["sub"] == "dev-1"
    endless = {name: value for name, value in claims.items() if name != "exp"}
    for bad in (
        signer.sign(claims, tokens.EVENT_TYPE),
        foreign.sign(claims, tokens.COMPLIANCE_TYPE),
        signer.sign({**claims, "iss": "https://other.example"}, tokens.COMPLIANCE_TYPE),
        signer.sign(endless, tokens.COMPLIANCE_TYPE),
        signer.sign({**claims, "exp": True}, tokens.COMPLIANCE_TYPE),
        "", "a.b.c", "x" * 10000,
    ):  # fmt: skip
        with pytest.raises(TokenRefused):
            signer.verify(bad, tokens.COMPLIANCE_TYPE, issuer, NOW)
