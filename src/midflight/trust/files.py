"""Files that appear as a whole or not at all, also when the machine stops at any moment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from midflight.errors import InputError

_BINARY, _CLOSED = getattr(os, "O_BINARY", 0), getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def write_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write files (content, mode) that must not exist. After an error there is none of them.

    Raises:
        InputError: one exists, or cannot be written.
    """
    try:
        write_all_new(files)
    except FileExistsError as error:
        raise InputError(f"{error.filename} exists and is never overwritten; choose another name") from None
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}; choose another place") from None


def write_all_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """The same, for who has words of its own for what goes wrong.

    Raises:
        OSError: one exists, or cannot be written.
    """
    written: list[Path] = []
    try:
        for path, (content, mode) in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _CLOSED | _NO_LINK, mode)
            written.append(path)
            _fill(descriptor, content, mode)
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Create or replace a file: a reader sees the old one or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _CLOSED | _NO_LINK, mode)
        _fill(descriptor, content, mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk. Where folders cannot be opened, a rename is on disk when it returns."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _CLOSED)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    with open(descriptor, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
