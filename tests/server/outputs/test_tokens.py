"""Compliance tokens as a device gets them, and what others are told when compliance changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import KeySet

from midflight.server.api.devicetoken import TOKEN_PATH
from midflight.server.outputs import keys
from midflight.server.outputs.render import Happened, render
from midflight.server.outputs.tokens import CHANGE
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.policies import Compliance
from tests.server.device import Device

NOW = datetime.now(UTC)


def judged(database: Database, device: Device, state: str) -> None:
    with database.write() as session:
        row = session.get(Compliance, device.id) or Compliance(
            device_id=device.id, detail="", hotpatched=False, since=NOW
        )
        row.state, row.reason, row.evaluated, row.policy_id, row.until = state, "fix_missing", NOW, None, None
        session.add(row)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_compliant_device_gets_a_short_token_that_opens_the_gate(
    new_device: Callable[..., Device], database: Database, admin: TestClient, settings: Settings
) -> None:
    device = new_device()
    body = orjson.dumps({"audience": "https://app.example.com"})
    assert device.send(TOKEN_PATH, body).status_code == 403, "not judged yet"
    judged(database, device, "compliant")
    sent = device.send(TOKEN_PATH, body)
    token = sent.json()["token"]
    claims = jwt.decode(token, KeySet.import_key_set(admin.get("/.well-known/jwks.json").json())).claims
    assert (claims["iss"], claims["sub"], claims["aud"]) == (settings.public_url, device.id, "https://app.example.com")
    assert 0 < claims["exp"] - claims["iat"] <= 300
    headers = {"x-midflight-compliance-token": token}
    assert admin.get("/auth/compliance", headers=headers).status_code == 204
    judged(database, device, "noncompliant")
    assert admin.get("/auth/compliance", headers=headers).status_code == 403
    refused = device.send(TOKEN_PATH, body)
    assert (refused.status_code, refused.headers["x-midflight-reason"]) == (403, "fix_missing")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_only_the_device_itself_gets_it_and_only_by_a_fresh_request(
    new_device: Callable[..., Device], database: Database, client: TestClient
) -> None:
    device, other = new_device(), new_device()
    judged(database, device, "compliant")
    assert client.post(TOKEN_PATH).status_code == 401
    first = device.send(TOKEN_PATH, b"")
    assert first.status_code == 200
    headers = dict(first.request.headers)
    assert client.post(TOKEN_PATH, content=b"", headers=headers).status_code == 401, "played again"
    for body in (b"[]", b'{"audience": 1}', b"{", b'{"audience": "' + b"x" * 300 + b'"}'):
        assert device.send(TOKEN_PATH, body).status_code == 400
    assert device.send(TOKEN_PATH, b"x" * 2000).status_code in (400, 413)
    assert other.send(TOKEN_PATH, b"").status_code == 403


@pytest.mark.parametrize(("state", "before"), [("compliant", "stale"), ("noncompliant", "in_grace")])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_change_is_told_as_a_caep_event(settings: Settings, state: str, before: str) -> None:
    signer = keys.load(settings).jwt
    event = Happened("e-1", "compliance.changed", NOW, "dev-1", {"state": state, "before": before, "reason": "stale"})
    message = render(event, "caep", "https://m.example", "https://idp.example", signer, NOW)
    assert message is not None and message.content_type == "application/secevent+jwt"
    token = jwt.decode(message.body.decode(), KeySet(list(signer.keys)))
    assert token.header["typ"] == "secevent+jwt"
    assert (token.claims["jti"], token.claims["aud"], "exp" in token.claims) == ("e-1", "https://idp.example", False)
    told = token.claims["events"][CHANGE]
    words = {True: "compliant", False: "not-compliant"}
    assert told["current_status"] == words[state == "compliant"]
    assert told["previous_status"] == words[state != "compliant"]
    assert token.claims["sub_id"]["device"] == {"format": "iss_sub", "iss": "https://m.example", "sub": "dev-1"}
    same = Happened("e-2", "compliance.changed", NOW, "dev-1", {"state": "in_grace", "before": "compliant"})
    assert render(same, "caep", "https://m.example", "x", signer, NOW) is None, "in grace is still let in: no change"
