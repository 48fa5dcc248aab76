"""Keys: what openssl and securesystemslib say of them, and every way in which a key file can be wrong."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer._key import SSlibKey

from midflight.errors import InputError
from midflight.trust.keys import (
    PASSPHRASE_VARIABLE,
    PrivateKey,
    PublicKey,
    create_key_pair,
    load_private_key,
    load_public_key,
)


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A key pair without passphrase."""
    paths = tmp_path / "a.key", tmp_path / "a.pub"
    create_key_pair(*paths)
    return paths


def openssl(*arguments: str | Path) -> bytes:
    """What openssl prints."""
    return subprocess.run(["openssl", *arguments], stdout=subprocess.PIPE, check=True).stdout


def test_a_pair_signs_and_verifies(pair: tuple[Path, Path]) -> None:
    private, public = load_private_key(pair[0]), load_public_key(pair[1])
    assert private.public == public and private.key_id == public.key_id
    signature = private.sign(b"message")
    assert public.verify(signature, b"message")
    assert not public.verify(signature, b"another")
    assert not public.verify(signature[:-1] + bytes([signature[-1] ^ 1]), b"message")
    assert not public.verify(b"", b"message")
    assert not PrivateKey.generate().public.verify(signature, b"message")


def test_openssl_reads_the_pair_and_agrees(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert b"ED25519" in openssl("pkey", "-in", pair[0], "-noout", "-text")
    assert openssl("pkey", "-in", pair[0], "-pubout") == pair[1].read_bytes()
    (tmp_path / "m").write_bytes(b"message")
    made = openssl("pkeyutl", "-sign", "-rawin", "-inkey", pair[0], "-in", tmp_path / "m")
    assert made == load_private_key(pair[0]).sign(b"message")


def test_a_key_of_openssl_can_be_used(tmp_path: Path) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "o.key")
    (tmp_path / "o.key").chmod(0o600)
    (tmp_path / "o.pub").write_bytes(openssl("pkey", "-in", tmp_path / "o.key", "-pubout"))
    assert load_private_key(tmp_path / "o.key").public == load_public_key(tmp_path / "o.pub")


def test_the_key_id_is_that_of_securesystemslib(pair: tuple[Path, Path]) -> None:
    theirs = SSlibKey.from_crypto(serialization.load_pem_public_key(pair[1].read_bytes()))
    assert load_public_key(pair[1]).key_id == theirs.keyid


def test_files_are_private_and_public(pair: tuple[Path, Path]) -> None:
    assert [stat.S_IMODE(path.stat().st_mode) for path in pair] == [0o600, 0o644]


def test_private_key_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_key_pair(tmp_path / "b.key", tmp_path / "b.pub")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "b.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("existing", ["a.key", "a.pub"])
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_overwritten(tmp_path: Path, existing: str, link: bool) -> None:
    if link:
        (tmp_path / existing).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / existing).write_text("precious")
    with pytest.raises(InputError, match=f"{existing} exists"):
        create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    assert os.listdir(tmp_path) == [existing]
    assert link or (tmp_path / existing).read_text() == "precious"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write key"):
        create_key_pair(tmp_path / "no" / "a.key", tmp_path / "no" / "a.pub")


# --- passphrases ---------------------------------------------------------------------------------------------------


def test_an_encrypted_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.key"
    public = create_key_pair(path, tmp_path / "a.pub", "open sesame")
    assert b"ENCRYPTED" in path.read_bytes()
    assert load_private_key(path, "open sesame").public == public
    with pytest.raises(InputError, match="passphrase is wrong"):
        load_private_key(path, "wrong")
    with pytest.raises(InputError, match="needs a passphrase"):
        load_private_key(path, ask=False)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    assert load_private_key(path).public == public
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "")
    with pytest.raises(InputError, match="empty"):
        load_private_key(path)


def test_a_passphrase_for_a_key_that_needs_none_is_ignored(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "x")
    assert load_private_key(pair[0]).public == load_public_key(pair[1])


def test_a_person_is_asked_at_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    public = create_key_pair(path, tmp_path / "a.pub", "open sesame")
    code = f"from midflight.trust.keys import load_private_key as l; print(l({str(path)!r}).key_id)"
    shown = _at_terminal(code, ["open sesame"])
    assert "Passphrase of" in shown and public.key_id in shown and "open sesame" not in shown


def _at_terminal(code: str, answers: list[str]) -> str:
    """Run Python at a terminal of its own, answer each question, and return all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    for answer in answers:
        asked = len(shown)
        while b": " not in shown[asked:]:
            shown += os.read(terminal, 1000)
        os.write(terminal, answer.encode() + b"\n")
    try:
        while chunk := os.read(terminal, 1000):
            shown += chunk
    except OSError:
        pass  # EIO: the other side is closed
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode()


# --- wrong files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o644, 0o601])
def test_a_private_key_that_others_can_reach(pair: tuple[Path, Path], mode: int) -> None:
    pair[0].chmod(mode)
    with pytest.raises(InputError, match=r"open to others .*chmod 600"):
        load_private_key(pair[0])


def test_the_wrong_half(pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="is a private key"):
        load_public_key(pair[0])
    with pytest.raises(InputError, match="is a public key"):
        load_private_key(pair[1])


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed448"])
def test_keys_of_another_kind(tmp_path: Path, kind: str) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed448": ed448.Ed448PrivateKey.generate,
    }
    key = makers[kind]()
    private, public = tmp_path / "a.key", tmp_path / "a.pub"
    s = serialization
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    private.chmod(0o600)
    with pytest.raises(InputError, match="not an Ed25519 key"):
        load_private_key(private)
    with pytest.raises(InputError, match="not an Ed25519 key"):
        load_public_key(public)


def test_an_openssh_key(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    s = serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
    with pytest.raises(InputError, match="OpenSSH"):
        load_private_key(path)
    path.write_bytes(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
    with pytest.raises(InputError, match="not a public key in PEM form"):
        load_public_key(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(20_000), b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    path.chmod(0o600)
    for load in (load_private_key, load_public_key):
        with pytest.raises(InputError, match=str(path)):
            load(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo", Path("a\0b")):
        with pytest.raises(InputError, match=r"a key|read key"):
            load_public_key(path)
        with pytest.raises(InputError, match=r"a key|read key"):
            load_private_key(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_causes_another_error(pair: tuple[Path, Path], data: st.DataObject) -> None:
    for source, load in ((pair[0], load_private_key), (pair[1], load_public_key)):
        content = bytearray(source.read_bytes())
        begin = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(begin, len(content)))
        content[begin:end] = data.draw(st.binary(max_size=10))
        damaged = source.with_name("damaged")
        damaged.write_bytes(content)
        damaged.chmod(0o600)
        try:
            load(damaged)
        except InputError as error:
            assert "; " in str(error)


def test_a_key_shows_nothing_secret() -> None:
    key = PrivateKey.generate()
    secret = key.pem(None).splitlines()[1].decode()
    assert secret not in repr(key) and key.key_id[:16] in repr(key)


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(InputError, match="32 bytes"):
        PublicKey(bytes(31))


def test_reading_a_public_key_needs_no_cryptography_library(pair: tuple[Path, Path]) -> None:
    code = (
        "import sys; from midflight.trust.keys import load_public_key\n"
        f"load_public_key({str(pair[1])!r}); print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"
