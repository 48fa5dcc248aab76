"""The commands of the server's own machine: accounts, tokens, the audit log, as an administrator sees them."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from midflight.cli.main import main
from midflight.server.api.app import create_app
from midflight.server.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new server on SQLite."""
    assert main(["server", "init", str(tmp_path / "server"), "--quiet"]) == 0
    return tmp_path / "server"


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["server", *words, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_an_administrator_made_here_signs_in_and_a_token_made_here_works(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(capsys, "user", "add", str(folder), "Root", "--role", "admin", "--generate")
    monkeypatch.setattr("sys.stdin", io.StringIO("a phrase from a pipe\n"))
    run(capsys, "user", "add", str(folder), "eve", "--role", "reader")
    token = run(capsys, "token", "add", str(folder), "eve", "prometheus", "--scope", "metrics:read", "--days", "7")
    with TestClient(create_app(Settings.load(folder)), base_url="https://localhost:8443") as client:
        assert client.post("/api/v1/login", json={"name": "root", "password": made["password"]}).status_code == 204
        actions = [item["action"] for item in client.get("/api/v1/audit").json()["items"]]
        assert actions == ["login", "token add", "user add", "user add"]
        client.cookies.clear()
        shown = client.get("/api/v1/session", headers={"authorization": f"Bearer {token['token']}"}).json()
        assert (shown["name"], shown["scopes"]) == ("eve's token prometheus", ["metrics:read"])
        assert run(capsys, "token", "revoke", str(folder), "eve", token["id"])["id"] == token["id"]
        assert client.get("/api/v1/session", headers={"authorization": f"Bearer {token['token']}"}).status_code == 401
    run(capsys, "user", "disable", str(folder), "root", status=2)
    assert [a["name"] for a in run(capsys, "user", "list", str(folder))["accounts"]] == ["eve", "root"]
    for path in folder.rglob("*"):
        if path.is_file():
            assert token["token"].encode() not in path.read_bytes()
            assert made["password"].encode() not in path.read_bytes()


def test_the_audit_log_is_verified_and_an_exported_head_catches_what_a_chain_cannot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann", "bob", "cat"):
        run(capsys, "user", "add", str(folder), name, "--role", "admin", "--generate")
    head = tmp_path / "head.txt"
    assert run(capsys, "audit-verify", str(folder), "--export", str(head))["entries"] == 3
    run(capsys, "user", "disable", str(folder), "cat")
    shown = run(capsys, "audit-verify", str(folder), "--head", str(head))
    assert (shown["entries"], shown["heads_checked"]) == (4, 1)
    with sqlite3.connect(folder / "midflight.db") as raw:
        raw.execute("DROP TRIGGER audit_entry_no_delete")
        raw.execute("DELETE FROM audit_entry WHERE sequence > 2")
    assert run(capsys, "audit-verify", str(folder))["entries"] == 2, "a chain that was cut off is a chain"
    assert "cut off" in run(capsys, "audit-verify", str(folder), "--head", str(head), status=1)["error"]["message"]
    head.write_text(head.read_text()[:-8] + "AAAAAAA\n")
    assert "not signed by this server" in str(run(capsys, "audit-verify", str(folder), "--head", str(head), status=2))


def test_easy_passwords_and_unknown_scopes_are_refused_with_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for password in ("short", "aaaaaaaaaaaaaaaa", "root-root-root"):
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        assert "password" in str(run(capsys, "user", "add", str(folder), "root", "--role", "admin", status=2))
    run(capsys, "user", "add", str(folder), "root", "--role", "admin", "--generate")
    for scope, says in (("devices:fly", "there is no scope"), ("accounts:write", "needs a person")):
        assert says in str(run(capsys, "token", "add", str(folder), "root", "x", "--scope", scope, status=2))


def test_an_upgrade_makes_the_keys_that_an_older_server_lacks_and_keeps_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "master.key").unlink()
    kept = {path: path.read_bytes() for path in (folder / "tokens").iterdir()}
    run(capsys, "upgrade", str(folder))
    assert len((folder / "master.key").read_bytes()) == 32
    assert {path: path.read_bytes() for path in (folder / "tokens").iterdir()} == kept
