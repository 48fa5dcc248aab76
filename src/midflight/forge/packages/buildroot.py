"""A private root for builds: a minimal Debian in a folder, so that build dependencies leave the machine as it is.

Made by mmdebstrap(1) from the archives that the machine is configured for; apt and dpkg of the machine then install
into it (apt.conf(5), DPkg::Chroot-Directory). Needs root, as chroot does.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from midflight.errors import InputError
from midflight.forge.packages.apt import Apt, Log, SourceError, last_line, locked, need_tools, run

_MARK = "etc/midflight-build-root"


def make_root(root: Path, apt: Apt, codename: str, log: Log) -> None:
    """Make sure that ``root`` is a private root for builds.

    Raises:
        InputError: not run by root, or the folder is something else.
        SourceError: mmdebstrap is missing or failed; then the folder is gone again.
    """
    if os.geteuid() != 0:
        raise InputError("a private root for builds (--build-root) can only be made and used by root; run this as root")
    with locked(root.parent / f".{root.name}.lock"):
        if (root / _MARK).exists():
            return
        if root.exists() and any(root.iterdir()):
            raise InputError(
                f"--build-root {root} exists and is no root that was made for builds; choose another folder"
            )
        need_tools(("mmdebstrap", "mmdebstrap"))
        log(f"making a private root for builds in {root}")
        lists = [str(path) for path in (apt.root / "sources.list", apt.root / "sources.d" / "debian.sources")]
        command = ["mmdebstrap", "--mode=root", "--variant=buildd", "--format=directory", "--include=python3-minimal"]
        options = ['--aptopt=Acquire::Languages "none"', *(f"--aptopt={line}" for line in _network(apt))]
        try:
            done = run([*command, *options, "--quiet", codename, str(root), *(p for p in lists if _has_entries(p))])
            if done.returncode != 0:
                raise SourceError(f"cannot make the private root {root}: {last_line(done.stdout)}")
            (root / _MARK).write_text("made by midflight build --build-root\n")
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise


def _has_entries(path: str) -> bool:
    return bool(Path(path).read_text().strip())


def _network(apt: Apt) -> list[str]:
    """Proxies, timeouts and the like of the private configuration."""
    lines = (apt.root / "apt.conf").read_text().splitlines()
    return [line for line in lines if line.startswith(("Acquire::http", "Acquire::Retries", "Acquire::ForceIPv"))]


def options_for(root: Path) -> list[str]:
    """Options that let the machine's apt install into a private root."""
    archives = root / "var" / "cache" / "apt" / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    return [
        *("-o", f"Dir::State::status={root}/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache::archives={archives}"),
        *("-o", f"DPkg::Chroot-Directory={root}"),
        *("-o", f"DPkg::Options::=--log={'/var/log/dpkg.log'}"),
        *("-o", f"Dir::Log={root}/var/log/apt"),
        *("-o", "Dir::Cache::pkgcache="),
        *("-o", "Dir::Cache::srcpkgcache="),
    ]
