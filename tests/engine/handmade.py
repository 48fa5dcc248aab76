"""Hotpatches made by hand, so that the engine is tested without the forge: plain C functions, self-contained
payloads."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from midflight.image.elf import ElfFile
from midflight.patch.manifest import (
    SCHEMA_VERSION,
    CodeRange,
    Entry,
    Function,
    Manifest,
    PayloadSymbol,
    Policy,
    Segment,
    Target,
    Unwind,
)

PAGE = 4096


def compile_c(folder: Path, name: str, source: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile one program or object below ``folder``; returns its path."""
    suffix = ".cpp" if compiler in ("g++", "clang++") else ".c"
    path = folder / f"{name}{suffix}"
    path.write_text(source)
    out = folder / name
    subprocess.run([compiler, "-O2", "-g", "-pthread", *flags, "-o", str(out), str(path)], check=True)
    return out


@dataclass(frozen=True)
class Handmade:
    """A hotpatch as the engine takes it."""

    manifest: Manifest
    payloads: Mapping[str, bytes]
    digest: str


def make(
    program: Path,
    functions: Mapping[str, bytes],
    name: str = "handmade",
    sequence: int = 1,
    policy: Policy = "strict",
    escapes: bool = False,
    eh_frame: bytes = b"",
) -> Handmade:
    """A hotpatch that replaces functions of ``program`` by self-contained machine code."""
    with ElfFile.open(program) as elf:
        build_id = elf.build_id or ""
        rows, symbols, code = [], [], b""
        for function, new in functions.items():
            symbol = elf.symbol(function)
            assert symbol is not None
            old = elf.read_vaddr(symbol.value, symbol.size)
            entry = Entry("near", symbol.value, old[:5])
            rows.append(
                Function(
                    function,
                    (CodeRange(symbol.value, symbol.size, hashlib.sha256(old).hexdigest()),),
                    entry,
                    len(code),
                    len(new),
                )
            )
            symbols.append(PayloadSymbol(function, len(code), len(new), "func"))
            code += new.ljust(-(-len(new) // 16) * 16, b"\xcc")
    segments = [Segment("code", 0, len(code), 0, len(code))]
    unwind = None
    payload = code
    if eh_frame:
        offset = -(-len(code) // PAGE) * PAGE
        segments.append(Segment("rodata", offset, len(eh_frame), len(code), len(eh_frame)))
        unwind = Unwind(offset, len(eh_frame), False)
        payload += eh_frame
    digest = hashlib.sha256(payload + name.encode() + bytes([sequence])).hexdigest()
    target = Target(
        image_name=program.name,
        build_id=build_id,
        machine="x86_64",
        payload="payload/x.bin",
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        payload_size=len(payload),
        segments=tuple(segments),
        functions=tuple(rows),
        relocations=(),
        imports=(),
        symbols=tuple(symbols),
        unwind=unwind,
        policy=policy,
        policy_reason="a test" if policy == "entry" else None,
        hooks=(),
        overrides=(),
        escapes=escapes,
    )
    manifest = Manifest(
        SCHEMA_VERSION, name, sequence, "made by hand", (), "2026-01-01T00:00:00Z", "test", "test", "0" * 64, (target,)
    )
    return Handmade(manifest, {"payload/x.bin": payload}, digest)


def leaf_frames(code: Mapping[str, bytes]) -> bytes:
    """An .eh_frame for leaf functions laid out by :func:`make`, behind their code."""
    size = sum(-(-len(new) // 16) * 16 for new in code.values())
    at = -(-size // PAGE) * PAGE
    # version 1, "zR", code alignment 1, data alignment -8, return address 16, pcrel sdata4; CFA = rsp + 8
    cie = struct.pack("<I", 0) + b"\x01zR\0\x01\x78\x10\x01\x1b" + b"\x0c\x07\x08\x90\x01" + b"\0\0"
    # Distances count from their own field.
    fde = struct.pack("<Iii", len(cie) + 8, -(at + len(cie) + 12), size) + b"\0" * 4
    return struct.pack("<I", len(cie)) + cie + struct.pack("<I", len(fde)) + fde + bytes(4)


def returns(value: int) -> bytes:
    """Machine code of ``int f(...) { return value; }``."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"
