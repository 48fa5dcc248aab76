"""Builds what the tests under Wine patch, and the hotpatches, on Linux, into ``build/wine``: run as
``python -m tests.wine.build``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from midflight.trust.keys import create_key_pair, load_private_key
from tests.wine.maker import Recipe, make

SOURCES = Path(__file__).parent / "sources"
OUT = Path(__file__).resolve().parents[2] / "build" / "wine"
C, CXX = "x86_64-w64-mingw32-gcc", "x86_64-w64-mingw32-g++"
HOT = "-DHOT=__attribute__((ms_hook_prologue))"
CORE_BASE = 0x260000000
# The relocator of MinGW is not needed: the engine does what it would do.
CXX_FLAGS = ("-shared-libgcc", "-Wl,--defsym,_pei386_runtime_relocator=parse")
BOTH = ("answer", "other")

RECIPES = (
    Recipe("both2", "threads.exe", "answers2.c", BOTH, series="answers"),
    Recipe("answer3", "threads.exe", "answers3.c", ("answer",), series="answers", sequence=2),
    Recipe("stacked", "threads.exe", "answers3.c", ("answer",)),
    Recipe("hotpatch2", "hotprologue.exe", "answers2.c", BOTH, "hotpatch", policy="entry"),
    Recipe("core2", "core.dll", "core2.cpp", ("parse", "guarded"), compiler=CXX, flags=CXX_FLAGS),
    Recipe("tiny", "odd.exe", "odd2.c", ("tiny",), "short"),
    Recipe("forever", "odd.exe", "odd2.c", ("forever",)),
    Recipe("lenient", "odd.exe", "odd2.c", ("forever",), policy="entry"),
    Recipe("parked", "fibers.exe", "fibers2.c", ("parked",)),
    Recipe("hotstrict", "hotprologue.exe", "answers2.c", BOTH, "hotpatch"),
)


def program(name: str, source: str, *flags: str, compiler: str = C) -> None:
    """Build one program or DLL from a file of ``sources``, and the library that payloads are linked against."""
    out = OUT / name
    exports = ["-Wl,--export-all-symbols", f"-Wl,--out-implib,{OUT / (name + '.a')}"]
    subprocess.run([compiler, "-O2", "-g", *exports, *flags, "-o", str(out), str(SOURCES / source)], check=True)


def main() -> None:
    """Build everything."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    create_key_pair(OUT / "test.key", OUT / "test.pub")
    signer = load_private_key(OUT / "test.key")
    program("threads.exe", "threads.c")
    program("hotprologue.exe", "threads.c", HOT)
    program("core.dll", "core.cpp", "-shared", "-shared-libgcc", f"-Wl,--image-base,{CORE_BASE:#x}", compiler=CXX)
    program("host.exe", "host.c")
    program("odd.exe", "odd.c")
    program("fibers.exe", "fibers.c")
    for library in ("libstdc++-6.dll", "libgcc_s_seh-1.dll"):
        where = subprocess.run([CXX, f"-print-file-name={library}"], check=True, capture_output=True, text=True)
        shutil.copy(where.stdout.strip(), OUT / library)
    for recipe in RECIPES:
        make(recipe, SOURCES, OUT, signer)


if __name__ == "__main__":
    main()
