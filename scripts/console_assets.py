"""Brings what the console's pages load, by npm, into ``src/midflight/server/console/static/vendor``.

The packages are pinned by hash in ``scripts/console/package-lock.json``; from where they come is npm's own
configuration. Run by ``scripts/bootstrap console`` in a checkout and by the build of the wheel, which ships the files.
Does nothing when all is there. With ``--with-axe`` also the accessibility checker of the tests, into ``.cache``.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = ROOT / "scripts" / "console"
VENDOR = ROOT / "src" / "midflight" / "server" / "console" / "static" / "vendor"
WORK = ROOT / ".cache" / "console"
AXE = WORK / "axe.min.js"
SHIPPED = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx.org/LICENSE": "htmx.LICENSE.txt",
    "idiomorph/dist/idiomorph-ext.min.js": "idiomorph-ext.min.js",
    "idiomorph/LICENSE": "idiomorph.LICENSE.txt",
    "uplot/dist/uPlot.iife.min.js": "uPlot.iife.min.js",
    "uplot/dist/uPlot.min.css": "uPlot.min.css",
    "uplot/LICENSE": "uPlot.LICENSE.txt",
}
"""Where a file is in its package, and what it is called here. Each licence comes along."""


def stamp() -> str:
    """What the result depends on."""
    parts = [(PINNED / "package-lock.json").read_bytes(), Path(__file__).read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def present(with_axe: bool = False) -> bool:
    """Whether everything is there, in the versions that are pinned."""
    mark = VENDOR / ".stamp"
    files = all((VENDOR / name).is_file() for name in SHIPPED.values())
    return files and mark.is_file() and mark.read_text() == stamp() and (AXE.is_file() or not with_axe)


def fetch() -> Path:
    """Let npm install the pinned packages; returns the folder that they are in."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("console_assets: npm is needed to fetch what the console's pages load; install it (Debian: npm)")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(PINNED / name, WORK / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command, cwd=WORK).returncode:
        sys.exit("console_assets: npm could not install the pinned packages; its messages stand above")
    return WORK / "node_modules"


def main() -> None:
    """Make what is missing."""
    with_axe = "--with-axe" in sys.argv[1:]
    if present(with_axe):
        return
    packages = fetch()
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    for source, name in SHIPPED.items():
        shutil.copyfile(packages / source, VENDOR / name)
    shutil.copyfile(packages / "axe-core" / "axe.min.js", AXE)
    shutil.rmtree(packages)
    (VENDOR / ".stamp").write_text(stamp())


if __name__ == "__main__":
    main()
