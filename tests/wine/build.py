"""Builds what the tests under Wine patch, on Linux, into ``build/wine``: run as ``python -m tests.wine.build``."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"
OUT = Path(__file__).resolve().parents[2] / "build" / "wine"
COMPILER = "x86_64-w64-mingw32-gcc"


def compile_program(name: str, source: str, *flags: str, compiler: str = COMPILER) -> Path:
    """Build one program or DLL from a file of ``sources``; returns its path."""
    out = OUT / name
    subprocess.run([compiler, "-O2", "-g", *flags, "-o", str(out), str(SOURCES / source)], check=True)
    return out


def main() -> None:
    """Build everything."""
    OUT.mkdir(parents=True, exist_ok=True)
    compile_program("threads.exe", "threads.c")


if __name__ == "__main__":
    main()
