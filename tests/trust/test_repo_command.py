"""``midflight repo`` and ``midflight mirror`` as people use them; keys in files and on a token."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from midflight.cli.main import main
from midflight.trust.client import ContentClient
from midflight.trust.content import Package
from midflight.trust.keys import load_public_key
from midflight.trust.repository import Repository
from tests.patch.examples import KEY, hotpatch_bytes
from tests.trust.repositories import DAY, NOW, World
from tests.trust.tls import certificate

HOTPATCH = "hotpatch/nginx-fixes/3.hotpatch"
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder with keys; returns its JSON, or its message when another status is expected."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str, status: int = 0) -> Any:
        ended = main([*words, "--json"])
        shown = capsys.readouterr()
        assert ended == status, shown.err
        assert "internal error" not in shown.err
        return json.loads(shown.out) if status == 0 else shown.err.strip()

    for name in ("ann", "bob", "eve"):
        command("keygen", name)
    Path("author.pub").write_bytes(KEY.public.pem())
    Path("fix.hotpatch").write_bytes(hotpatch_bytes())
    return command


@pytest.fixture
def repo(run: Run) -> Run:
    """The same, with a published repository ``repo`` of two in three."""
    keys = [word for name in ("ann", "bob", "eve") for word in ("--root-key", f"{name}.pub")]
    run("repo", "init", "repo", *keys)
    release(run)
    return run


def release(run: Run, *names: str) -> None:
    """Two holders sign, and it is published."""
    for name in names or ("ann", "bob"):
        run("repo", "sign", "repo", "--key", f"{name}.key")
    run("repo", "publish", "repo")


def test_from_keys_to_devices(repo: Run, tmp_path: Path) -> None:
    (tmp_path / "tls.pem").write_bytes(certificate()[2])
    (tmp_path / "spare.pem").write_bytes(certificate()[2])
    record = repo(
        *("repo", "server", "repo", "--url", "https://patches.example", "--pin", "tls.pem", "--pin", "spare.pem"),
        *("--instruction-key", "eve.pub", "--hotpatch-key", "author.pub"),
    )
    assert record["hotpatch_keys"] == [KEY.key_id]
    added = repo("repo", "add", "repo", "fix.hotpatch", "--severity", "critical", "--cvss", "9.8")
    assert added["path"] == HOTPATCH and added["staged"]["targets"]["missing"] == 2
    release(repo, "ann", "eve")
    state = repo("repo", "status", "repo")
    assert state["contents"][HOTPATCH]["cves"] == ["CVE-2026-42945"]
    assert state["keys"]["root"]["threshold"] == 2 and state["late"] == []
    done = repo("mirror", "repo/public", "disk", "--root", "repo/public/metadata/1.root.json")
    assert done["files"] == 2
    ContentClient.bootstrap(tmp_path / "device", Path("disk/metadata/1.root.json").read_bytes())
    device = ContentClient(tmp_path / "device", tmp_path / "disk")
    content = device.refresh().contents[HOTPATCH]
    assert device.download(content, tmp_path / "got").read_bytes() == hotpatch_bytes()
    server = device.server_record()
    assert server is not None and server.urls == ("https://patches.example",)
    repo("repo", "revoke", "repo", HOTPATCH, "--reason", "crashes on resume", "--revert")
    release(repo)
    assert repo("repo", "status", "repo")["revoked"][0]["reason"] == "crashes on resume"
    repo("mirror", "repo/public", "disk")
    assert device.refresh().contents == {}


def test_a_hotpatch_by_a_stranger_is_not_staged(repo: Run, tmp_path: Path) -> None:
    (tmp_path / "tls.pem").write_bytes(certificate()[2])
    pins = ("--pin", "tls.pem", "--pin", "sha256/" + "A" * 43 + "=")
    repo("repo", "server", "repo", "--url", "https://x.example", *pins, "--instruction-key", "eve.pub")
    repo("repo", "server", "repo", "--hotpatch-key", "bob.pub")
    assert "trusted" in repo("repo", "add", "repo", "fix.hotpatch", status=2)
    assert "pins" in repo("repo", "server", "repo", "--pin", "tls.pem", status=1)


def test_a_debian_package_says_itself_what_it_is(repo: Run, tmp_path: Path) -> None:
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: hello-fixed\nVersion: 1:2.10-3\nArchitecture: amd64\nMaintainer: M <m@example.org>\n"
        "Description: test\n more text: Version: 9\n"
    )
    for compression in ("xz", "gzip"):
        subprocess.run(["dpkg-deb", "-b", f"-Z{compression}", "package", "hello.deb"], check=True, capture_output=True)
        added = repo("repo", "add", "repo", "hello.deb", "--severity", "low", "--image", "ab" * 20)
        assert added["path"] == "baseline/hello-fixed/hello-fixed_2.10-3_amd64.deb"
    release(repo)
    ContentClient.bootstrap(tmp_path / "device", Path("repo/public/metadata/1.root.json").read_bytes())
    (content,) = ContentClient(tmp_path / "device", tmp_path / "repo/public").refresh().contents.values()
    assert content.about.package == Package("deb", "hello-fixed", "1:2.10-3", "amd64")
    data = Path("hello.deb").read_bytes()
    for damaged in (data[:100], data[:8], data[:70] + b"x" * 500 + data[570:], b"nothing"):
        Path("damaged.deb").write_bytes(damaged)
        repo("repo", "add", "repo", "damaged.deb", status=2)


def test_other_files_are_baselines_when_they_are_described(repo: Run) -> None:
    Path("tool.bin").write_bytes(b"\x7fELF")
    assert "--architecture" in repo("repo", "add", "repo", "tool.bin", status=2)
    described = ("--name", "tool", "--version", "2.0", "--architecture", "amd64")
    assert repo("repo", "add", "repo", "tool.bin", *described)["path"] == "baseline/tool/tool.bin"
    for path in ("../x", "server.json"):
        repo("repo", "add", "repo", "tool.bin", *described, "--path", path, status=2)
    assert "baselines" in repo("repo", "add", "repo", "fix.hotpatch", "--name", "x", status=2)


def test_a_series_has_one_growing_sequence_over_both_kinds(repo: Run) -> None:
    Path("tool.bin").write_bytes(b"\x7fELF")
    described = ("--name", HOTPATCH.split("/")[1], "--version", "2.0", "--architecture", "amd64")
    repo("repo", "add", "repo", "fix.hotpatch")
    contents = repo("repo", "status", "repo")["contents"]
    last = int(HOTPATCH.rpartition("/")[2].partition(".")[0])
    assert list(contents) == [HOTPATCH]
    refused = repo("repo", "add", "repo", "tool.bin", *described, "--sequence", str(last), status=2)
    assert f"give --sequence {last + 1}" in refused
    repo("repo", "add", "repo", "fix.hotpatch")  # the same once more is no news
    added = repo("repo", "add", "repo", "tool.bin", *described)
    assert set(repo("repo", "status", "repo")["contents"]) == {HOTPATCH, added["path"]}
    release(repo)
    catalog = Repository(Path("repo")).catalog()
    assert catalog.contents[added["path"]].about.sequence == last + 1, "after the hotpatch too"
    repo("repo", "revoke", "repo", added["path"], "--reason", "x")
    other = Path("other.bin")
    other.write_bytes(b"other")
    refused = repo("repo", "add", "repo", "other.bin", *described, "--sequence", str(last + 1), status=2)
    assert "share one growing sequence" in refused, "a number that was revoked is not given again"


def test_a_name_that_does_not_fit_is_said(repo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tool.bin").write_bytes(b"\x7fELF")
    described = ("--version", "2.0", "--architecture", "amd64", "--image", "ab" * 20)
    for name, says in (("tool", ""), ("tool-2026-4711", "one fix"), ("tool-cve", "one fix"), ("other", "two series")):
        assert main(["repo", "add", "repo", "tool.bin", "--name", name, *described, "--path", f"{name}/1"]) == 0
        said = capsys.readouterr().err
        assert says in said if says else not said


def test_keys_rotate_by_the_command(repo: Run) -> None:
    repo("keygen", "new")
    staged = repo("repo", "rotate", "repo", "--role", "targets", "--add", "new.pub", "--remove", "ann.pub")["staged"]
    assert staged["root"]["missing"] == staged["targets"]["missing"] == 2
    for name in ("ann", "bob", "new"):
        repo("repo", "sign", "repo", "--key", f"{name}.key")
    repo("repo", "publish", "repo")
    repo("keygen", "online2")
    repo("repo", "rotate", "repo", "--online-key", "online2.key")
    release(repo)
    before = repo("repo", "status", "repo")
    assert before["keys"]["timestamp"]["keys"] == [load_public_key("online2.pub").key_id]
    repo("repo", "renew", "repo", "--root")
    repo("repo", "discard", "repo")
    assert repo("repo", "status", "repo")["staged"] == {}
    for words in (
        ("rotate", "repo"),
        ("rotate", "repo", "--role", "root", "--threshold", "4"),
        ("rotate", "repo", "--role", "root", "--remove", "new.pub"),
        ("sign", "repo", "--key", "nothere.key"),
        ("sign", "repo", "--key", "other:1"),
        ("publish", "nowhere"),
    ):
        repo("repo", *words, status=2)


def test_status_warns_before_metadata_is_over(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World.make(tmp_path, NOW - 80 * DAY)
    assert main(["repo", "status", "repo"]) == 1
    shown = capsys.readouterr().out
    assert re.search("targets .* over soon; midflight repo renew\n", shown)
    assert re.search("timestamp .* over; run the server, or midflight repo publish", shown)
    run("repo", "publish", "repo")
    run("repo", "renew", "repo")
    world.release()
    assert main(["repo", "status", "repo"]) == 0


def test_holders_sign_copies(repo: Run) -> None:
    repo("repo", "add", "repo", "fix.hotpatch")
    for name in ("ann", "eve"):
        shutil.copytree("repo", f"copy-{name}", symlinks=True)
        repo("repo", "sign", f"copy-{name}", "--key", f"{name}.key")
        assert repo("repo", "sign", "repo", "--from", f"copy-{name}")["new"] == 1
    repo("repo", "publish", "repo")
    assert HOTPATCH in repo("repo", "status", "repo")["published"]


@dataclass(frozen=True)
class Token:
    """A PKCS#11 token (SoftHSM) with an ECDSA key of id 2."""

    environment: dict[str, str]


@pytest.fixture
def token(tmp_path: Path) -> Token:
    """A new token, in files of its own."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    environment = {
        "SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf"),
        "PYKCS11LIB": "/usr/lib/softhsm/libsofthsm2.so",
        "MIDFLIGHT_HSM_PIN": "1234",
    }
    everything = {**os.environ, **environment}
    words = ["--init-token", "--free", "--label", "bob", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(["softhsm2-util", *words], env=everything, check=True, capture_output=True)
    make = """
import os, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="bob")
with token.open(user_pin="1234", rw=True) as session:
    curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    parameters.generate_keypair(store=True, id=b"\\x02", label="signing")
"""
    subprocess.run([sys.executable, "-c", make], env=everything, check=True, capture_output=True)
    return Token(environment)


def test_a_holder_signs_with_a_key_on_a_token(run: Run, token: Token, tmp_path: Path) -> None:
    """In processes of their own: a PKCS#11 module is initialised once for a process."""

    def command(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **token.environment, **changed}
        line = [sys.executable, "-m", "midflight", "repo", *words]
        return subprocess.run(line, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    made = command("init", "repo", "--root-key", "ann.pub", "--root-key", "hsm:2?label=bob")
    assert made.returncode == 0, made.stderr
    run("repo", "sign", "repo", "--key", "ann.key")
    wrong = command("sign", "repo", "--key", "hsm:2?label=bob", MIDFLIGHT_HSM_PIN="0000")
    assert wrong.returncode == 2 and "did not sign" in wrong.stderr
    signed = command("sign", "repo", "--key", "hsm:2?label=bob")
    assert signed.returncode == 0, signed.stderr
    run("repo", "publish", "repo")
    keys = run("repo", "status", "repo")["keys"]["root"]["keys"]
    assert len(keys) == 2
    ContentClient.bootstrap(tmp_path / "device", Path("repo/public/metadata/1.root.json").read_bytes())
    assert ContentClient(tmp_path / "device", tmp_path / "repo/public").refresh().version == 1
    missing = command("sign", "repo", "--key", "hsm:7?label=bob")
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
    unset = command("sign", "repo", "--key", "hsm:2?label=bob", PYKCS11LIB="")
    assert unset.returncode == 2 and "PYKCS11LIB" in unset.stderr
