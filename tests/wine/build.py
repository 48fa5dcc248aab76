"""Builds what the tests under Wine patch, and the hotpatches, on Linux, into ``build/wine``: run as
``python -m tests.wine.build``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from midflight.trust.keys import create_key_pair, load_private_key
from tests.wine import CORE_BASE
from tests.wine.forged import forge_all
from tests.wine.maker import Recipe, make
from tests.wine.zlib import forge_zlib

SOURCES = Path(__file__).parent / "sources"
OUT = Path(__file__).resolve().parents[2] / "build" / "wine"
C, CXX = "x86_64-w64-mingw32-gcc", "x86_64-w64-mingw32-g++"
HOT = "-DHOT=__attribute__((ms_hook_prologue))"
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


ANSWERS = {"return x * 0 + 1;": "return x * 0 + 2;", "return x * 0 + 10;": "return x * 0 + 20;"}
OTHER = {"return x * 0 + 10;": "return x * 0 + 20;"}
LIMITED = {
    "return length + (int)": "return length > 16 ? 16 : length + (int)",
    'throw std::runtime_error("old")': 'throw std::runtime_error("new")',
}
SIDE_BY_SIDE = ("--policy", "entry", "--policy-reason", "each call stands for itself")


def forged(name: str, image: str, source: str, command: str, changes: Mapping[str, str], *options: str) -> None:
    """A program below its own folder, and the hotpatch that the forge makes for it as a user would have it made."""
    folder = OUT / name
    text = (SOURCES / source).read_text()
    fixed = text
    for old, new in changes.items():
        assert old in fixed
        fixed = fixed.replace(old, new)
    for tree, contents in (("source", text), ("fixed", fixed)):
        (folder / tree).mkdir(parents=True)
        (folder / tree / source).write_text(contents)
    make_it = f"{command} -o {image} {source}"
    subprocess.run(["sh", "-ec", f"{command} -o ../{image} {source}"], cwd=folder / "source", check=True)
    for library in OUT.glob("lib*.dll"):
        shutil.copy(library, folder)
    words: list[str | Path] = ["--source", folder / "source", "--fix", folder / "fixed", "--make", make_it]
    words += ["--image", image, "--running", folder / image, "--name", name, "--no-cache", "-q", *options]
    words += ["--key", OUT / "test.key", "-o", OUT / f"{name}.hotpatch"]
    subprocess.run([sys.executable, "-m", "midflight", "build", *words], check=True, stdout=subprocess.DEVNULL)


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
    forged("forged-c", "threads.exe", "threads.c", f"{C} -O2 -g", ANSWERS)
    hot = f"{C} -O2 -g '{HOT}'"
    forged("forged-hot", "threads.exe", "threads.c", hot, OTHER, *SIDE_BY_SIDE)
    library = f"{CXX} -O2 -g -shared -shared-libgcc -Wl,--image-base,{CORE_BASE:#x}"
    forged("forged-cpp", "core.dll", "core.cpp", library, LIMITED)
    shutil.copy(OUT / "host.exe", OUT / "forged-cpp")
    forge_all(OUT, signer)
    forge_zlib(OUT, SOURCES, signer)


if __name__ == "__main__":
    main()
