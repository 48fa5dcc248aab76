"""The programs and libraries that binary packages ship: installed files when they are untouched, else from the archive.

Knowledge: deb(5), the md5sums control file (dpkg-deb(1), dh_md5sums(1)), elf(5).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from midflight.forge.packages.apt import ADMIN, Apt, Log, SourceError, last_line, locked, run
from midflight.forge.packages.model import BinaryPackage, Package, Shipped
from midflight.forge.packages.versions import file_name


def shipped_files(package: Package, apt: Apt, cache: Path, log: Log, admin: Path = ADMIN) -> tuple[Shipped, ...]:
    """Every program and library of the binary packages, each content once.

    Args:
        cache: archives are unpacked below it, and kept.
        admin: dpkg's database.

    Raises:
        SourceError: a package is not installed untouched, and the archive does not have that version.
    """
    found: dict[str, Shipped] = {}
    for binary in package.binaries:
        files = _installed(binary, admin / "info") if binary.installed else None
        if files is None:
            if binary.installed:
                log(f"{binary}: the installed files are not those of the package; taking it from the archive")
            files = _unpacked(binary, apt, cache.resolve(), log)
        for item in files:
            found.setdefault(hashlib.sha256(item.file.read_bytes()).hexdigest(), item)
    return tuple(sorted(found.values(), key=lambda item: item.name))


def _installed(binary: BinaryPackage, info: Path) -> list[Shipped] | None:
    """The code files of an installed package; None when one of them is not as it was shipped."""
    control = next(
        (p for p in (info / f"{binary.name}:{binary.architecture}", info / binary.name) if _list(p).exists()), None
    )
    if control is None:
        return None
    sums = {}
    md5sums = control.with_name(control.name + ".md5sums")
    if md5sums.exists():
        for line in md5sums.read_text(errors="surrogateescape").splitlines():
            digest, _, name = line.partition("  ")
            sums["/" + name] = digest
    result = []
    for name in _list(control).read_text(errors="surrogateescape").splitlines():
        path = Path(name)
        if path.is_symlink() or not path.is_file() or not is_code(path):
            continue
        if sums.get(name) != hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest():
            return None
        result.append(Shipped(path, name, binary.name))
    return result


def _list(control: Path) -> Path:
    return control.with_name(control.name + ".list")


def _unpacked(binary: BinaryPackage, apt: Apt, cache: Path, log: Log) -> list[Shipped]:
    """The code files of a package from the archive, which is downloaded and unpacked once."""
    folder = cache / "binaries" / binary.name / f"{file_name(binary.version)}_{binary.architecture}"
    with locked(cache / "binaries" / "lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                log(f"fetching the binary package {binary}")
                _fetch(binary, apt, folder)
                (folder / "complete").touch()
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    root = folder / "root"
    return [Shipped(path, f"/{path.relative_to(root)}", binary.name) for path in _code_below(root)]


def _fetch(binary: BinaryPackage, apt: Apt, folder: Path) -> None:
    reason = apt.download_binary(f"{binary.name}:{binary.architecture}", binary.version, folder)
    if reason is not None:
        raise SourceError(
            f"the binary package {binary} is not to be had ({reason}); without the shipped files nothing can be "
            "matched; give a version that the archive has, or the binary itself with --running"
        )
    deb = next(folder.glob("*.deb"))
    done = run(["dpkg-deb", "-x", str(deb), str(folder / "root")])
    if done.returncode != 0:
        raise SourceError(f"cannot unpack {deb.name}: {last_line(done.stdout)}")
    deb.unlink()


def _code_below(root: Path) -> Iterator[Path]:
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file() and is_code(path):
                yield path


def is_code(path: Path) -> bool:
    """Whether a file is a program or library of x86-64 (no object, no debug file)."""
    if "/usr/lib/debug/" in str(path):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return False
    return head[:6] == b"\x7fELF\x02\x01" and head[16:18] in (b"\2\0", b"\3\0") and head[18:20] == b"\x3e\0"


def none_shipped(package: Package) -> SourceError:
    """The error for a package without code."""
    names = ", ".join(binary.name for binary in package.binaries) or "none"
    return SourceError(
        f"no binary package of {package} holds a program or library (looked into: {names}); there is nothing to patch"
    )


def names_of(files: Iterable[Shipped]) -> str:
    """File names for a message."""
    return ", ".join(dict.fromkeys(Path(item.name).name for item in files))
