"""Hotpatches to test with: small, complete, and the same in every run."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from midflight.patch import container, signature
from midflight.patch.encoding import encode_manifest
from midflight.patch.hotpatch import FORMAT_VERSION, REQUIRES, STATEMENT, encode_hotpatch
from midflight.patch.manifest import (
    CodeRange,
    Entry,
    Function,
    Import,
    Manifest,
    Override,
    PayloadSymbol,
    Relocation,
    Segment,
    Target,
    Unwind,
)
from midflight.trust.keys import PrivateKey

BUILD_ID = "ab" * 20
PAYLOAD = bytes(range(256)) * 2


def key(seed: int = 1) -> PrivateKey:
    """The same key for the same seed, in every run."""
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


KEY = key()


def target(**changes: Any) -> Target:
    """A target that uses everything a target can have."""
    full = Target(
        image_name="nginx",
        build_id=BUILD_ID,
        machine="x86_64",
        payload=f"payload/{BUILD_ID}.bin",
        payload_sha256=sha256(PAYLOAD).hexdigest(),
        payload_size=len(PAYLOAD),
        segments=(
            Segment("code", 0, 200, 0, 200),
            Segment("rodata", 4096, 100, 208, 100),
            Segment("data", 8192, 5000, 312, 100),
        ),
        functions=(
            Function(
                "ngx_http_script_copy_code",
                (CodeRange(0x1000, 64, "0" * 64), CodeRange(0x800, 16, "1" * 64)),
                Entry("near", 0x1004, b"\x55\x48\x89\xe5\x90"),
                0,
                80,
            ),
            Function(
                "tiny",
                (CodeRange(0x2000, 3, "2" * 64),),
                Entry("short", 0x2000, b"\x31\xc0", 0x1FF0, b"\x66\x2e\x0f\x1f\x84"),
                96,
                16,
            ),
        ),
        relocations=(
            Relocation(4, "import", "pc32", 0, -4, True),
            Relocation(12, "image", "pc32", 0x4000, -4),
            Relocation(20, "payload", "pc32", 4096, -4),
            Relocation(28, "slot", "pc32", 0x5008, -4),
            Relocation(8192, "payload", "abs64", 96, 0),
        ),
        imports=(Import("memcpy", "GLIBC_2.14", "libc.so.6", "func"), Import("environ", None, None, "object")),
        symbols=(PayloadSymbol("tiny", 96, 16, "func"), PayloadSymbol("counter", 8192, 8, "object")),
        unwind=Unwind(4100, 64, True),
        policy="entry",
        policy_reason="the function has no state",
        hooks=(("after_apply", 128), ("before_revert", 144)),
        overrides=(Override("MF120", "src/a.c", "counter", "changes its initial value", "never read again"),),
        escapes=True,
    )
    return dataclasses.replace(full, **changes)


PE_IDENTITY = "pe-0001f00d-662a7c63"


def pe_target(**changes: Any) -> Target:
    """A target for a PE image."""
    full = target(
        image_name="parser.dll",
        build_id=PE_IDENTITY,
        payload=f"payload/{PE_IDENTITY}.bin",
        functions=(
            Function(
                "parse",
                (CodeRange(0x2000, 64, "2" * 64),),
                Entry("hotpatch", 0x2000, b"\x8b\xff", 0x1FFB, b"\xcc" * 5),
                0,
                80,
            ),
        ),
        relocations=(
            Relocation(4, "import", "pc32", 0, -4, True),
            Relocation(28, "slot", "pc32", 0x5008, -4),
            Relocation(4096, "payload", "rva32", 0, 0),
        ),
        imports=(Import("memcpy", None, "msvcrt.dll", "func"),),
        unwind=Unwind(4096, 12, True),
    )
    return dataclasses.replace(full, **changes)


def manifest(**changes: Any) -> Manifest:
    """A manifest that uses everything a manifest can have."""
    full = Manifest(
        schema=1,
        name="nginx-fixes",
        sequence=3,
        description="Checks the length of captured groups.\nOnly with rewrite rules.",
        cves=("CVE-2026-42945",),
        created="2026-05-01T12:30:00Z",
        builder="midflight 0.1.0",
        compiler="GCC: (Debian 12.2.0-14+deb12u1) 12.2.0",
        fix_sha256="f" * 64,
        targets=(target(),),
    )
    return dataclasses.replace(full, **changes)


PAYLOADS = {target().payload: PAYLOAD}


def hotpatch_bytes() -> bytes:
    """A well-formed hotpatch file, signed by ``KEY``."""
    return encode_hotpatch(manifest(), PAYLOADS, [KEY])


def forged(
    members: dict[str, bytes] | None = None,
    *,
    signers: tuple[PrivateKey, ...] = (KEY,),
    subjects: list[tuple[str, str]] | None = None,
    predicate: dict[str, object] | None = None,
    order: list[str] | None = None,
) -> bytes:
    """A container whose signature is right, whatever it says: what a careless or malicious signer could make."""
    if members is None:
        members = {"manifest.json": encode_manifest(manifest()), **PAYLOADS}
    if subjects is None:
        subjects = [(name, sha256(data).hexdigest()) for name, data in members.items()]
    if predicate is None:
        predicate = {
            "formatVersion": FORMAT_VERSION,
            "requires": REQUIRES,
            "builder": "midflight 0.1.0",
            "name": "nginx-fixes",
            "sequence": 3,
        }
    envelope = signature.Envelope(signature.encode_statement(subjects, predicate), {})
    for signer in signers:
        envelope = envelope.signed_by(signer)
    everything = {STATEMENT: signature.encode_envelope(envelope), **members}
    return container.pack({name: everything[name] for name in order or everything})


def put(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path


def pe_manifest(**changes: Any) -> Manifest:
    """A manifest for a PE image."""
    return manifest(**({"schema": 3, "targets": (pe_target(),)} | changes))
