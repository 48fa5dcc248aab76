"""Packages of Debian as baselines: looked at before they are kept, installed, and packed again for the way back.

What is installed is packed again before it is replaced (after dpkg-repack): its files as they are on disk, its control
file and scripts as dpkg has them. So the way back needs no archive, and brings back local changes too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from midflight.errors import MidflightError
from midflight.trust.content import Package

_TIME = 600.0
_ADMIN = "var/lib/dpkg"


class PackageError(MidflightError):
    """A package is not what it should be, or dpkg does not take it."""


def check(path: Path, package: Package) -> None:
    """Whether a file is the package that was signed offline.

    Raises:
        PackageError: it is not.
    """
    form = "${Package} ${Version} ${Architecture}"
    said = _run("dpkg-deb", "--show", f"--showformat={form}", str(path)).strip()
    wanted = f"{package.name} {package.version} {package.architecture}"
    if said != wanted:
        raise PackageError(f"{path} is {said}, and was signed as {wanted}; it is not used")


def installed_version(name: str, root: Path = Path("/")) -> str:
    """The version of an installed package; empty when it is not."""
    form = r"--showformat=${db:Status-Status} ${Version}"
    try:
        status, _, version = _run("dpkg-query", f"--admindir={root / _ADMIN}", form, "--show", "--", name).partition(
            " "
        )
    except PackageError:
        return ""
    return version if status == "installed" else ""


def pack_installed(name: str, target: Path, root: Path = Path("/")) -> None:
    """Make a package of what is installed under a name.

    Raises:
        PackageError: it cannot be made.
    """
    admin = f"--admindir={root / _ADMIN}"
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            tree = Path(temporary, "tree")
            (tree / "DEBIAN").mkdir(parents=True)
            for line in _run("dpkg-query", admin, "--listfiles", "--", name).splitlines():
                _copy(root, line, tree)
            _control(name, admin, tree / "DEBIAN")
            made = target.with_name(f".{target.name}.tmp")
            _run("dpkg-deb", "--build", str(tree), str(made))
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(target)
    except OSError as error:
        raise PackageError(f"{name} cannot be packed for the way back: {error.strerror} ({error.filename})") from None


def install(path: Path, root: Path = Path("/")) -> None:
    """Install a package; configuration files that were changed here stay as they are.

    Raises:
        PackageError: dpkg does not take it.
    """
    words = ["dpkg", "--force-confold", "--force-confdef", "--force-downgrade"]
    if root != Path("/"):
        words.append(f"--root={root}")
    _run(*words, "--install", str(path))


def _copy(root: Path, line: str, tree: Path) -> None:
    if not line.startswith("/") or line == "/.":
        return
    source, copy = root / line[1:], tree / line[1:]
    if source.is_symlink() or source.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)
        if os.geteuid() == 0:
            state = source.lstat()
            os.chown(copy, state.st_uid, state.st_gid, follow_symlinks=False)
    elif source.is_dir():
        copy.mkdir(parents=True, exist_ok=True)
        shutil.copystat(source, copy)


def _control(name: str, admin: str, folder: Path) -> None:
    lines = _run("dpkg-query", admin, "--status", "--", name).splitlines()
    kept, dropping = [], False
    for line in lines:
        if not line.startswith(" "):
            # what dpkg notes of an installed package, and no package itself may have (deb-control(5))
            dropping = line.partition(":")[0] in ("Status", "Conffiles", "Config-Version")
        if not dropping:
            kept.append(line)
    (folder / "control").write_text("\n".join(kept) + "\n")
    for line in _run("dpkg-query", admin, "--control-list", "--", name).splitlines():
        if line in ("md5sums", "control"):
            continue
        (folder / line).write_text(_run("dpkg-query", admin, "--control-show", name, line))
        if line in ("preinst", "postinst", "prerm", "postrm", "config"):
            (folder / line).chmod(0o755)


def _run(*words: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIME,
            env=environment,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise PackageError(f"there is no {words[0]} on this machine; only Debian's packages can be installed") from None
    except subprocess.TimeoutExpired:
        raise PackageError(f"{words[0]} took more than {_TIME:g} s; look at it") from None
    if done.returncode:
        why = " ".join((done.stderr or done.stdout).split())[-300:]
        raise PackageError(f"{' '.join(words[:2])} failed ({done.returncode}): {why}")
    return done.stdout
