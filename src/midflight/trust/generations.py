"""What of a repository is visible: a folder that any web server can serve, and that changes in one step.

``public/targets`` has the target files, named by their hash: they are added before anything refers to them.
``public/metadata`` is a symbolic link to ``public/metadata.N``, a folder that is made as a whole (of hard links to what
did not change) and then put in place by one rename. Whoever is killed at any moment leaves the old or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from midflight.errors import InputError
from midflight.trust.files import replace_file, sync_folder

PUBLIC = "public"
METADATA = "metadata"
TARGETS = "targets"
_GENERATION = re.compile(r"metadata\.(\d{8})")
_VERSIONED = re.compile(r"(\d+)\.(targets|snapshot)\.json")
KEPT = 2
"""Versions of targets and snapshot metadata that stay for clients that are in the middle of reading."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs from changing the repository meanwhile; waits for them.

    Raises:
        InputError: there is no such folder, or it cannot be written.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
        raise InputError(f"cannot change the repository {folder}: {error.strerror}; check the path") from None
    try:
        try:
            import fcntl
        except ImportError:  # not on Windows, where repositories are read only
            pass
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def put_target(public: Path, name: str, source: Path) -> None:
    """Make a target file available under its hashed name (with folders). It is not visible before metadata names it."""
    final = public / TARGETS / name
    if final.exists():
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(final.parent)


def put_metadata(public: Path, files: Mapping[str, bytes]) -> None:
    """Replace the visible metadata by what it is now, plus these files, in one step."""
    public.mkdir(exist_ok=True)
    current = public / METADATA
    old = _number(current)
    new = public / f"metadata.{old + 1:08d}"
    if new.exists():  # of somebody who was killed before the step
        shutil.rmtree(new)
    new.mkdir()
    for entry in sorted(current.iterdir()) if current.exists() else ():
        if entry.name not in files and not entry.name.startswith("."):
            os.link(entry, new / entry.name)
    for name, content in files.items():
        replace_file(new / name, content)
    _forget_old_versions(new)
    sync_folder(new)
    link = public / f".metadata.{os.getpid()}.tmp"
    with suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(new.name)
    os.replace(link, current)
    sync_folder(public)
    clean(public)


def clean(public: Path) -> None:
    """Take away what others who were killed left, and generations before the last; never what is visible."""
    number = _number(public / METADATA)
    for entry in public.iterdir():
        found = _GENERATION.fullmatch(entry.name)
        if found and not number - 1 <= int(found[1]) <= number:
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(".metadata.") and entry.is_symlink():
            entry.unlink(missing_ok=True)


def remove_targets(folder: Path, keep: set[str]) -> None:
    """Delete target files (by hashed name) that no metadata names any more."""
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.is_file() and path.relative_to(folder).as_posix() not in keep:
            path.unlink(missing_ok=True)


def _number(current: Path) -> int:
    try:
        found = _GENERATION.fullmatch(os.readlink(current))
    except FileNotFoundError:
        return 0
    except OSError:
        found = None
    if found is None:
        raise InputError(f"{current} is not a link as midflight makes it; restore the repository from a backup")
    return int(found[1])


def _forget_old_versions(folder: Path) -> None:
    """Old versions of targets and snapshot; every root stays, for clients that come from far behind."""
    versions: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.iterdir():
        found = _VERSIONED.fullmatch(path.name)
        if found:
            versions.setdefault(found[2], []).append((int(found[1]), path))
    for found_versions in versions.values():
        for _, path in sorted(found_versions)[:-KEPT]:
            path.unlink()
