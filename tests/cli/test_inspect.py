"""midflight inspect, as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from midflight.patch.encoding import decode_manifest
from midflight.patch.hotpatch import write_hotpatch
from midflight.patch.manifest import Entry, Function, Import, Manifest
from tests.image.windows import build_all
from tests.patch.examples import (
    BUILD_ID,
    KEY,
    PAYLOAD,
    PAYLOADS,
    forged,
    key,
    manifest,
    pe_manifest,
    pe_target,
    put,
    target,
)

LONG = "std::vector<std::pair<std::string, int>>::_M_realloc_insert(std::pair<std::string, int>&&)" * 2


def midflight(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command line, not at a terminal."""
    return subprocess.run([sys.executable, "-m", "midflight.cli.main", *arguments], capture_output=True)


def shown(*arguments: str | Path) -> str:
    """What a successful command prints."""
    done = midflight("inspect", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.hotpatch"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return put(tmp_path / "k.pub", KEY.public.pem())


def make(path: Path, what: Manifest | None = None) -> None:
    """Write a signed hotpatch."""
    write_hotpatch(path, what or manifest(), PAYLOADS, KEY, {BUILD_ID: b"\x7fELF"})


def test_shows_what_the_file_says(path: Path, public: Path) -> None:
    make(path)
    text = " ".join(shown(path, "--trust", public).split())
    for expected in (
        "nginx-fixes 3",
        f"signed by {KEY.key_id}",
        sha256(path.read_bytes()).hexdigest(),
        "CVE-2026-42945",
        "Checks the length of captured groups.",
        "2026-05-01T12:30:00Z by midflight 0.1.0",
        "GCC: (Debian",
        BUILD_ID,
        "16 KiB and the ledger (code 200 r-x, rodata 100 r--, data 5,000 rw-)",
        "memory is kept",
        "stack check entry reason: the function has no state",
        "1 image, 1 import, 2 payload, 1 slot",
        "memcpy@GLIBC_2.14 (libc.so.6)",
        "environ (any module)",
        "64 bytes of tables, exceptions may pass",
        "after_apply at 0x80, before_revert at 0x90",
        "OVERRIDDEN MF120 counter in src/a.c",
        "finding: changes its initial value",
        "reason: never read again",
        "0x1004 near 80 B in 2 80 B +0",
        "tiny 0x2000 short 3 B 16 B +13",
    ):
        assert expected in text
    assert "UNVERIFIED" not in text


def test_without_a_key_it_is_unverified(path: Path) -> None:
    make(path)
    text = shown(path)
    assert text.startswith("UNVERIFIED") and "signed by" not in text and f"says signed  {KEY.key_id}" in text
    put(path, forged(signers=()))
    assert "signed by    nobody" in shown(path)


def test_another_key_is_a_refusal(path: Path, tmp_path: Path) -> None:
    make(path)
    done = midflight("inspect", path, "--trust", put(tmp_path / "other.pub", key(2).public.pem()))
    assert done.returncode == 2 and done.stdout == b"" and b"no key that is trusted" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_one_of_several_keys_is_enough(path: Path, public: Path, tmp_path: Path) -> None:
    make(path)
    other = put(tmp_path / "other.pub", key(2).public.pem())
    text = shown(path, "--trust", other, "--trust", public)
    assert KEY.key_id in text and key(2).key_id not in text


def test_json(path: Path, public: Path) -> None:
    make(path)
    verified = json.loads(shown(path, "--trust", public, "--json"))
    assert decode_manifest(json.dumps(verified["manifest"]).encode()) == manifest()
    assert (verified["verified"], verified["signers"], verified["claimed_signers"]) == (True, [KEY.key_id], [])
    assert verified["memory"] == {BUILD_ID: 16384} and verified["symbols"] == [BUILD_ID]
    assert verified["sha256"] == sha256(path.read_bytes()).hexdigest()
    unverified = json.loads(shown(path, "--json"))
    assert (unverified["verified"], unverified["signers"], unverified["claimed_signers"]) == (False, [], [KEY.key_id])
    assert unverified["manifest"] == verified["manifest"]


def test_json_of_a_refusal(path: Path) -> None:
    put(path, b"PK\x03\x04nonsense")
    done = midflight("inspect", path, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "PatchFileError"


def test_fits_80_columns_whatever_is_in_the_file(path: Path, public: Path) -> None:
    good = target()
    functions = tuple(replace(function, name=LONG) for function in good.functions)
    imports = (Import(LONG, "V" * 100, "l" * 100, "func"),)
    overrides = (replace(good.overrides[0], file="/" + "f" * 200, finding="word " * 60, reason="w" * 300),)
    long = replace(
        good, image_name="i" * 200, functions=functions, imports=imports, relocations=(), overrides=overrides
    )
    make(path, manifest(name="n" * 128, description="lorem " * 100, compiler="c" * 200, targets=(long,)))
    for arguments in ([], ["--trust", str(public)]):
        lines = shown(path, *arguments).splitlines()
        assert [line for line in lines if len(line) > 80 and str(path) not in line] == []
        assert LONG[:20] in "\n".join(lines)


def test_never_prints_a_control_character(path: Path, public: Path) -> None:
    """A manifest cannot have them, so this is about everything that can: names in scripts of all the world."""
    wild = "zero\u200bwidth \u00ad soft \U000e0041 tag \ufeff \u3164"
    function: Function = replace(target().functions[0], name=wild)
    make(path, manifest(description=wild, targets=(replace(target(), functions=(function,), image_name=wild),)))
    text = shown(path, "--trust", public)
    assert [c for c in text if (c != "\n" and ord(c) < 32) or 0x7F <= ord(c) < 0xA0 or c in "\ufeff\u202e"] == []


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r", "\x9b31m", "\u202e", "\x08", "\u2028"])
def test_control_characters_are_refused_and_shown_as_escapes(path: Path, evil: str) -> None:
    encoded = json.dumps(evil)[1:-1].encode()
    document = json.dumps(_plain(manifest(compiler="EVIL"))).encode().replace(b"EVIL", b"gcc" + encoded)
    put(path, forged({"manifest.json": document, **PAYLOADS}))
    done = midflight("inspect", path)
    assert done.returncode == 2 and evil.encode() not in done.stdout + done.stderr
    assert done.stderr.decode().rstrip("\n").isprintable()


def _plain(what: Manifest) -> object:
    from midflight.patch.encoding import plain

    return plain(what)


def test_payload(path: Path, public: Path) -> None:
    make(path)
    for name in (BUILD_ID, BUILD_ID[:6], BUILD_ID.upper()):
        done = midflight("inspect", path, "--trust", public, "--payload", name)
        assert (done.returncode, done.stdout) == (0, PAYLOAD)


def test_payload_that_is_not_there(path: Path) -> None:
    make(path)
    done = midflight("inspect", path, "--payload", "cd")
    assert done.returncode == 2 and done.stdout == b"" and BUILD_ID.encode() in done.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = midflight("inspect", tmp_path / "missing")
    assert done.returncode == 2 and b"No such file" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_trust_file_that_is_no_key(path: Path) -> None:
    make(path)
    done = midflight("inspect", path, "--trust", path)
    assert done.returncode == 2 and b"not a public key" in done.stderr


# --- PE images -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Windows programs and DLLs by name."""
    return build_all(tmp_path_factory.mktemp("windows"))


def test_a_hotpatch_of_windows_is_shown(windows: dict[str, Path]) -> None:
    text = " ".join(shown(windows["metadata.dll"]).split())
    for expected in (
        "hotpatch of Windows: IMAGE_HOT_PATCH_INFO version 3, sequence 7",
        "patches 2 base images",
        "for pe-0001f00d-662a7c63",
        "for pe-000beef0-5ec0ffee",
        "sequence 7",
        "can roll back, x64",
        "ab" * 32,
        "neither verifies nor applies",
    ):
        assert expected in text, expected
    document = json.loads(shown(windows["metadata.dll"], "--json"))
    assert [base["build_id"] for base in document["windows_hotpatch"]["bases"]] == [
        "pe-0001f00d-662a7c63",
        "pe-000beef0-5ec0ffee",
    ]


def test_another_image_is_none(windows: dict[str, Path]) -> None:
    assert "no: it carries no hot patch information" in shown(windows["program.exe"])
    document = json.loads(shown(windows["program.exe"], "--json"))
    assert document["windows_hotpatch"] is None and document["image"]["kind"] == "executable"
    assert document["image"]["build_id"].startswith("pe-")


def test_options_for_hotpatch_files_do_not_go_with_an_image(windows: dict[str, Path], public: Path) -> None:
    for options in (("--trust", str(public)), ("--payload", "ab")):
        done = midflight("inspect", windows["bare.dll"], *options)
        assert done.returncode == 2 and b"PE image" in done.stderr


def test_a_malformed_image_is_one_line(tmp_path: Path) -> None:
    done = midflight("inspect", put(tmp_path / "bad.dll", b"MZ" + bytes(100)))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("kinds", "policy", "expected"),
    [
        (("hotpatch", "hotpatch"), "entry", "no: all entries are hot-patchable"),
        (("hotpatch", "hotpatch"), "strict", "yes: all entries are hot-patchable, but"),
        (("hotpatch", "near"), "entry", "yes: 1 of 2 entries"),
    ],
)
def test_whether_threads_are_stopped(path: Path, kinds: tuple[str, ...], policy: str, expected: str) -> None:
    (first,) = pe_target().functions
    functions = []
    for number, kind in enumerate(kinds):
        at = 0x2000 + 0x100 * number
        ranges = (replace(first.ranges[0], vaddr=at),)
        entry = replace(first.entry, vaddr=at, pad_vaddr=at - 5)
        if kind == "near":
            entry = Entry("near", at, b"\x90" * 5)
        functions.append(replace(first, name=f"f{number}", ranges=ranges, entry=entry))
    reason = "tried" if policy == "entry" else None
    what = pe_target(functions=tuple(functions), policy=policy, policy_reason=reason)
    write_hotpatch(path, pe_manifest(targets=(what,)), {what.payload: PAYLOAD}, KEY, {})
    assert expected in " ".join(shown(path).split())
