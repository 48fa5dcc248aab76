"""What a copy of the database is worth to a thief: names and hashes, and nothing to get in with."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from midflight.server.outputs import keys
from midflight.server.settings import Settings
from midflight.server.store.base import Base
from midflight.server.store.database import Database
from tests.server.device import Device

PASSWORD = "correct horse battery"


def dump(database: Database) -> bytes:
    """All that stands in all tables."""
    with database.read() as session:
        rows = [session.execute(text(f'SELECT * FROM "{table}"')).all() for table in Base.metadata.tables]
    values = [value for table in rows for row in table for value in row]
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def private_material(settings: Settings, device: Device) -> dict[str, bytes]:
    """The keys of the server and of a device, as their files have them."""
    files: list[Path] = [settings.path(p) for p in (settings.ca_key, settings.instruction_key, settings.tls_key)]
    files += [*settings.path(settings.token_keys).glob("*.pem"), device.folder / "identity.pem"]
    found = {}
    for path in files:
        lines = path.read_text().split("-----BEGIN PRIVATE KEY-----")[1].split("-----END")[0].split()
        found[path.name] = base64.b64decode("".join(lines))[-32:]
    found["master"] = settings.path(settings.master_key).read_bytes()
    return found


def test_no_secret_that_was_handed_out_is_in_it(
    app: FastAPI, admin: TestClient, admin_token: str, settings: Settings, database: Database,
    new_device: Callable[..., Device],
) -> None:  # fmt: skip
    secrets = {"bootstrap": admin_token, "password": PASSWORD}
    device = new_device()
    hook = admin.post("/api/v1/webhooks", json={"name": "x", "url": "https://93.184.215.14/"}).json()
    secrets["webhook"] = hook["secret"].removeprefix("whsec_")
    body = {"name": "root", "roles": ["admin"], "password": PASSWORD}
    assert admin.post("/api/v1/accounts", json=body).status_code == 201
    with TestClient(app, base_url="https://localhost:8443") as browser:
        answer = browser.post("/api/v1/login", json={"name": "root", "password": PASSWORD})
        secrets["session"], secrets["csrf"] = browser.cookies["__Host-midflight"], answer.headers["x-csrf-token"]
        browser.headers["x-csrf-token"] = secrets["csrf"]
        made = browser.post("/api/v1/account/tokens", json={"name": "ci", "scopes": ["devices:read"]}).json()
        secrets["api token"] = made["secret"]
        assert browser.get("/api/v1/session", headers={"authorization": f"Bearer {made['secret']}"}).status_code == 200
        stolen = dump(database)
        assert b"root" in stolen and device.id.encode() in stolen, "the dump is one of this database"
        for name, secret in secrets.items():
            assert secret.encode() not in stolen, name
        for name, key in private_material(settings, device).items():
            for form in (key, base64.b64encode(key).rstrip(b"="), key.hex().encode()):
                assert form not in stolen, name
        # what is in it opens nothing: a hash shown as if it were the secret is unknown
        with database.read() as session:
            hashes = [
                *session.scalars(text("SELECT hash FROM api_token")),
                *session.scalars(text("SELECT hash FROM login_session")),
            ]
        assert len(hashes) == 2
        for value in hashes:
            for headers in (
                {"authorization": f"Bearer {value}"},
                {"authorization": f"Bearer mft_{value}"},
                {"cookie": f"__Host-midflight={value}"},
            ):
                with TestClient(app, base_url="https://localhost:8443") as thief:
                    assert thief.get("/api/v1/session", headers=headers).status_code == 401


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_secrets_of_webhooks_come_from_a_file_that_only_its_owner_reads(settings: Settings) -> None:
    assert settings.path(settings.master_key).stat().st_mode & 0o777 == 0o600
    assert settings.path(settings.token_keys).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in settings.path(settings.token_keys).iterdir())
    before = keys.load(settings).master.derive("webhook whk-1 1")
    settings.path(settings.master_key).write_bytes(b"\0" * 32)
    assert keys.load(settings).master.derive("webhook whk-1 1") != before
