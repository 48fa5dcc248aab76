"""A real library for Windows and a real fix: zlib of Debian's source, built by MinGW, and CVE-2026-27171."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from midflight.forge.capture.capture import build_pair
from midflight.forge.forge import ForgeRequest, forge_pair
from midflight.forge.packages.sources import fetch
from midflight.patch.hotpatch import write_hotpatch
from midflight.patch.signature import Signer
from tests.corpus.building import SOURCES
from tests.corpus.model import Edit
from tests.corpus.packages.zlib import CASES, ZLIB

CASE = CASES[0]
COMPILER = "x86_64-w64-mingw32-gcc"
UNITS = "adler32 compress crc32 deflate infback inffast inflate inftrees trees uncompr zutil"
# Debian's source comes without the folder that has zlib's own Makefile for MinGW; these are its flags. Not zlib1.dll:
# Wine has one of its own, and takes that.
MAKE = (
    f"rm -f *.o && for unit in {UNITS}; do {COMPILER} -O3 -Wall -c $unit.c || exit 1; done && "
    f"{COMPILER} -shared -Wl,--export-all-symbols,--out-implib,zlib13.dll.a -o zlib13.dll *.o"
)


def forge_zlib(out: Path, sources: Path, signer: Signer) -> None:
    """Build zlib13.dll, the program that uses it, and the hotpatch."""
    with tempfile.TemporaryDirectory() as folder:
        source, fix = Path(folder) / "source", Path(folder) / "fix"
        fetch(ZLIB.name, SOURCES, version=ZLIB.version, log=print).copy(source)
        shutil.copytree(source, fix, symlinks=True)
        assert isinstance(CASE.fix, tuple)
        for edit in CASE.fix:
            _edit(fix, edit)
        reasons = {(code, symbol): why for key, why in CASE.reviewed.items() for code, symbol in [key.split(":")]}
        asked = ForgeRequest(
            source,
            fix,
            MAKE,
            "zlib13.dll",
            Path(folder) / "work",
            cves=(CASE.cve,),
            overrides=reasons,
            reviewer="Jo Doe <jo@example.org>",
        )
        pair = build_pair(asked.source, asked.fix, asked.make, asked.image, asked.work)
        assert pair.plain_image is not None
        result = forge_pair(asked, pair)
        shutil.copy(pair.plain_image, out / "zlib13.dll")
        write_hotpatch(out / "zlib.hotpatch", result.manifest, result.payloads, signer)
        host = [COMPILER, "-O2", f"-I{source}", "-o", out / "zlibhost.exe", sources / "zlibhost.c"]
        subprocess.run([*map(str, host), str(out / "zlib13.dll")], check=True)


def _edit(tree: Path, edit: Edit) -> None:
    file = tree / edit.path
    text = file.read_text()
    assert text.count(edit.old) == 1
    file.write_text(text.replace(edit.old, edit.new))
