"""Hotpatches that the forge makes of COFF objects, for the tests under Wine: programs and fixes of its own tests."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from midflight.forge.capture.capture import build_pair
from midflight.forge.forge import forge_pair
from midflight.patch.hotpatch import write_hotpatch
from midflight.patch.signature import Signer
from tests.forge.windows.programs import (
    CATCH,
    CAUGHT,
    CLANG_GNU,
    CXX,
    FAULTS,
    FINALLY,
    LENGTH,
    MSVC_CXX,
    SHAPES,
    THROW,
    THROWN,
    C,
    Changes,
    joined,
    request,
)

FORGED: tuple[tuple[str, dict[str, str], Changes], ...] = (
    ("made-c", C, LENGTH),
    ("made-clang", {**CLANG_GNU, "Makefile": CLANG_GNU["Makefile"].replace("LINKER", "-fuse-ld=lld -s")}, LENGTH),
    ("made-throw", CXX, THROW),
    ("made-catch", CXX, CATCH),
    ("made-msvc", MSVC_CXX, joined(MSVC_CXX, CAUGHT, THROWN, FAULTS, FINALLY, SHAPES)),
)
"""Names of programs and hotpatches, the source, and the fix."""


def forge_all(out: Path, signer: Signer) -> None:
    """Build each program plainly, and its hotpatch, into ``out``."""
    for name, source, changes in FORGED:
        with tempfile.TemporaryDirectory() as folder:
            asked = request(Path(folder), source, changes, name=name)
            pair = build_pair(asked.source, asked.fix, asked.make, asked.image, asked.work)
            assert pair.plain_image is not None
            result = forge_pair(asked, pair)
            shutil.copy(pair.plain_image, out / f"{name}.exe")
            write_hotpatch(out / f"{name}.hotpatch", result.manifest, result.payloads, signer)
