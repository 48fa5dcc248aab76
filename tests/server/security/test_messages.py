"""What reaches the server from devices, or from who would like to be one: nothing that is not fresh, whole and signed
by a device of this server gets in; and a device that lies harms nobody but itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from midflight.server import keys
from midflight.server.api.app import create_app
from midflight.server.api.devicetoken import TOKEN_PATH
from midflight.server.enrollment import invite
from midflight.server.outputs import keys as output_keys
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.devices import Device as Row
from midflight.server.store.migrate import upgrade
from midflight.trust.checkin import CHECK_IN_PATH, ENROLL_PATH, MAX_CHECK_IN, RENEW_PATH
from midflight.trust.keys import load_public_key
from midflight.trust.requests import sign_request
from tests.server.device import NGINX, Device

Make = Callable[..., Device]
PATHS = (CHECK_IN_PATH, RENEW_PATH, TOKEN_PATH)
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@sqlite
def test_a_request_played_again_is_refused_everywhere(new_device: Make, client: TestClient) -> None:
    device = new_device()
    sent = device.send(CHECK_IN_PATH, device.message())
    headers, body = dict(sent.request.headers), sent.request.content
    for _ in range(2):
        assert client.post(CHECK_IN_PATH, content=body, headers=headers).status_code == 401
    assert device.send(CHECK_IN_PATH, device.message()).status_code == 200, "the device itself goes on"


@sqlite
@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(minutes=-6), timedelta(days=400)])
def test_a_request_out_of_its_time_is_refused(new_device: Make, client: TestClient, age: timedelta) -> None:
    device = new_device()
    assert device.identity is not None
    for number, path in enumerate(PATHS):
        body, then = device.message(), datetime.now(UTC) - age
        headers = sign_request(device.identity, "POST", path, body, device.sequence + 1 + number, then)
        assert client.post(path, content=body, headers=headers).status_code == 401


@sqlite
def test_a_signature_for_one_path_method_or_query_is_none_for_another(new_device: Make, client: TestClient) -> None:
    device = new_device()
    assert device.identity is not None
    body = device.message()
    headers = sign_request(device.identity, "POST", CHECK_IN_PATH, body, device.sequence + 1)
    for path in (RENEW_PATH, TOKEN_PATH, CHECK_IN_PATH + "?x=1"):
        assert client.post(path, content=body, headers=headers).status_code == 401
    assert client.post(CHECK_IN_PATH, content=body + b" ", headers=headers).status_code == 401
    assert client.put(CHECK_IN_PATH, content=body, headers=headers).status_code == 405


@sqlite
def test_a_weaker_form_of_signature_is_not_taken(new_device: Make) -> None:
    """Downgrades: another algorithm, fewer covered parts, another purpose, two signatures."""
    device = new_device()
    assert device.identity is not None
    good = sign_request(device.identity, "POST", CHECK_IN_PATH, device.message(), device.sequence + 1)[
        "signature-input"
    ]
    worse = {
        good.replace('alg="ed25519"', 'alg="hmac-sha256"'),
        good.replace('alg="ed25519"', 'alg="none"'),
        good.replace(';alg="ed25519"', ""),
        good.replace(' "content-digest"', ""),
        good.replace(' "midflight-sequence"', ""),
        good.replace("midflight-device", "other-purpose"),
        good.replace("midflight=", "sig1="),
        f"{good}, {good}",
        "",
    }
    for value in worse:
        assert device.send(CHECK_IN_PATH, device.message(), **{"signature-input": value}).status_code == 401, value


@sqlite
def test_a_device_of_another_server_is_a_stranger(
    new_device: Make, client: TestClient, tmp_path: Path, settings: Settings
) -> None:
    new_device()
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other = Settings.of(other_folder, {"embedded_worker": False})
    keys.create(other)
    output_keys.create(other)
    database = Database(other.database_url)
    upgrade(database)
    (other_folder / "repository" / "public" / "metadata").mkdir(parents=True)
    (other_folder / "repository" / "public" / "metadata" / "1.root.json").write_text("{}")
    with database.write() as session:
        _, token = invite(session, "test", datetime.now(UTC))
    with TestClient(create_app(other, database)) as elsewhere:
        key = load_public_key(other.path(other.instruction_key).with_suffix(".pub"))
        foreign = Device(elsewhere, tmp_path / "foreign", key)
        assert foreign.enroll(token).status_code == 200
    foreign.client = client
    for path in PATHS:
        assert foreign.send(path, foreign.message()).status_code == 401
    assert foreign.enroll(token).status_code in (401, 403), "nor is its invitation one"
    database.close()


@sqlite
def test_a_disabled_device_gets_nothing(new_device: Make, database: Database) -> None:
    device, other = new_device(), new_device()
    with database.write() as session:
        session.get_one(Row, device.id).disabled = datetime.now(UTC)
    assert device.send(TOKEN_PATH, b"").status_code in (401, 403)
    assert device.orders == []
    assert other.send(CHECK_IN_PATH, other.message()).status_code == 200


HOSTILE = {
    "huge": b"[" + b"0," * (MAX_CHECK_IN // 2) + b"0]",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "nothing": b"",
    "no JSON": b"\x00\xff\xfe",
    "a list": b"[]",
    "a number": b"1e999",
    "a huge number": b'{"instructions": ' + b"9" * 5000 + b"}",
    "two keys": b'{"at": "x", "at": "y"}',
    "not UTF-8": b'{"at": "\xc3\x28"}',
}


@sqlite
def test_whatever_a_device_sends_the_server_answers_and_goes_on(new_device: Make) -> None:
    device = new_device()
    for name, body in HOSTILE.items():
        for path in PATHS:
            assert device.send(path, body).status_code in (400, 401, 403, 413, 422), (name, path)
        assert device.client.post(ENROLL_PATH, content=body).status_code in (400, 401, 403, 413, 422), name
    assert device.send(CHECK_IN_PATH, device.message()).status_code == 200


def test_wrong_types_and_impossible_values_of_a_check_in_are_refused(new_device: Make, database: Database) -> None:
    device = new_device()
    device.state = replace(device.state, kernel="6.1.0-29")
    good = json.loads(device.message(state=True, inventory=True))
    wrong: list[tuple[tuple[str, ...], object]] = [
        (("at",), 5), (("at",), "yesterday"), (("instructions",), -1), (("instructions",), "1"),
        (("instructions",), 2**80),
        (("state",), []), (("state", "hostname"), ["x"]), (("state", "hostname"), "x" * 100_000),
        (("state", "memory_free_mib"), -5), (("state", "patches"), {}), (("state", "patches"), [{}]),
        (("inventory",), {"x": 1}), (("inventory",), [[1, 2]]), (("outcomes",), [None] * 3), (("unknown",), 1),
    ]  # fmt: skip
    for place, value in wrong:
        document = deepcopy(good)
        inner = document
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        answer = device.send(CHECK_IN_PATH, body)
        assert 400 <= answer.status_code < 500, (place, value)
    with database.read() as session:
        assert session.get_one(Row, device.id).kernel != "6.1.0-29", "nothing of a refused report is taken"
        assert session.scalar(select(func.count()).select_from(Row)) == 1


TRICKS = (
    "../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "a\x00b",
    "\x1b[2J\x1b]0;x\x07",
    "<script>alert(1)</script>",
    "'; DROP TABLE device; --",
    "${jndi:ldap://x}",
    "\u202etxt.exe",
)


def test_names_that_play_tricks_stay_text(new_device: Make, admin: TestClient, app: FastAPI) -> None:
    """Package names, paths and host names from a device: refused, or kept as text and shown as text."""
    taken = 0
    for trick in TRICKS:
        device = new_device()
        device.inventory = (replace(NGINX, package=trick, path=trick, version=trick),)
        device.state = replace(device.state, hostname=trick[:60])
        try:
            body = device.message(state=True, inventory=True)
        except Exception:  # our own encoder refuses to send it: nor would the server read it
            continue
        answer = device.send(CHECK_IN_PATH, body)
        assert answer.status_code in (200, 400), (trick, answer.text)
        taken += answer.status_code == 200
        for url in (
            f"/api/v1/devices/{device.id}/oval",
            f"/api/v1/devices/{device.id}/vex",
            "/api/v1/reports/fleet?format=html",
        ):
            shown = admin.get(url)
            assert shown.status_code == 200
            assert not any(character in shown.content for character in (b"\x1b", b"\x00", b"\x07"))
            assert shown.headers["x-content-type-options"] == "nosniff"
            assert "json" in shown.headers["content-type"] or b"<script>alert" not in shown.content
    assert taken >= 3


@pytest.mark.parametrize(
    "path",
    [
        "/repo/../server.toml", "/repo/..%2f..%2fserver.toml", "/repo/%2e%2e/%2e%2e/server.toml", "/repo//etc/passwd",
        "/repo/targets/../../../ca.key", "/repo/%00", "/repo/..%5c..%5cca.key", "/repo/metadata/....//....//ca.key",
        "/static/../../settings.py", "/static/%2e%2e%2f%2e%2e%2fsettings.py",
    ],
)  # fmt: skip
@sqlite
def test_no_path_leads_out_of_what_is_published(path: str, client: TestClient, settings: Settings) -> None:
    (settings.folder / "server.toml").write_text("database = 'the secret URL'\n")
    answer = client.get(path)
    assert answer.status_code in (400, 404, 405)
    assert "secret" not in answer.text and "PRIVATE" not in answer.text and "root:" not in answer.text
