"""Where the bytes of an image come from: memory, a file, or another process; every read is checked against the bounds.

Files are read with ``pread``, not mapped: a mapped file that someone cuts short kills the reader by SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from midflight.errors import ImageError

MAX_READ = 1 << 30
"""The most bytes taken in one read: no real table or code section comes near; a sparse hostile file could."""

MAX_ENTRIES = 1 << 22
"""The most entries of any one table (sections, symbols, relocations)."""


def printable(text: str) -> str:
    """``text`` fit for one line of a message."""
    return "".join(c if c.isprintable() else "?" for c in text)


def decode(raw: bytes) -> str:
    """A name from a file as text: UTF-8, and bytes that are not as ``\\xNN``."""
    return raw.decode("utf-8", "backslashreplace")


class Source:
    """Bounded random access to bytes. ``name`` is what messages call it, ``size`` its length in bytes; ``partial`` says
    that what is no part of a segment may be missing."""

    partial = False
    format = "ELF"
    """What messages call the kind of file."""

    def __init__(self, name: str, size: int) -> None:
        self.name = printable(name)
        self.size = size

    def bad(self, what: str) -> ImageError:
        """The error that says that this image is malformed, and how."""
        return ImageError(f"{self.name}: malformed or truncated {self.format} file: {what}")

    def read(self, offset: int, size: int, what: str) -> bytes:
        """Exactly ``size`` bytes at ``offset``; ``what`` names them in the message of the ImageError."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.bad(f"{what} lies outside the file")
        if size > MAX_READ:
            raise self.bad(f"{what} is too large ({size} bytes)")
        return self._read(offset, size) if size else b""

    def holds(self, offset: int, size: int) -> bool:
        """Whether these bytes exist."""
        return offset >= 0 and size >= 0 and offset + size <= self.size

    def close(self) -> None:
        """Give back what the source holds open."""

    def _read(self, offset: int, size: int) -> bytes:
        raise NotImplementedError


class MemorySource(Source):
    """Bytes that we have."""

    def __init__(self, data: bytes | bytearray | memoryview | mmap.mmap, name: str) -> None:
        super().__init__(name, len(data))
        self._data = data

    def _read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])


# What Windows alone has, and what it has not.
_BINARY, _CLOSED, _AT_ONCE = (getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """As os.pread, which Windows does not have; the file's position is of no use to anybody."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


class FileSource(Source):
    """A regular file, opened once."""

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        shown = printable(name if name is not None else os.fspath(path))
        try:
            # O_NONBLOCK: a FIFO must not hold us up before we know what it is.
            self._fd = os.open(Path(path), os.O_RDONLY | _CLOSED | _AT_ONCE | _BINARY)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "bad path"
            raise ImageError(f"{shown}: cannot be opened: {reason}") from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ImageError(f"{shown}: not a regular file; give an ELF file")
        super().__init__(shown, status.st_size)

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = _pread(self._fd, size, offset)
            except OSError as error:
                raise ImageError(f"{self.name}: cannot be read: {error.strerror}") from None
            if not part:
                raise ImageError(f"{self.name}: became shorter while it was read; try again")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class RemoteSource(Source):
    """An image that exists only in a process's memory (the vDSO): file offsets are led to where segments are loaded.

    ``pieces`` holds (file offset, size, address in the process) of what is loaded.
    """

    partial = True

    def __init__(self, read: Callable[[int, int], bytes], pieces: Sequence[tuple[int, int, int]], name: str) -> None:
        super().__init__(name, max((offset + size for offset, size, _ in pieces), default=0))
        self._remote = read
        self._pieces = tuple(pieces)

    def holds(self, offset: int, size: int) -> bool:
        return any(start <= offset and offset + size <= start + length for start, length, _ in self._pieces)

    def _read(self, offset: int, size: int) -> bytes:
        for start, length, address in self._pieces:
            if start <= offset and offset + size <= start + length:
                data = self._remote(address + offset - start, size)
                if len(data) != size:
                    raise self.bad("memory could not be read in full")
                return data
        raise self.bad(f"bytes at offset {offset:#x} are not loaded")


class Strings:
    """A string table, with a bound on the work that overlapping names can cause."""

    def __init__(self, source: Source, data: bytes, what: str) -> None:
        self._source = source
        self._data = data
        self._what = what
        self._cache: dict[int, str] = {}
        self._budget = 16 * len(data) + (1 << 20)

    def get(self, offset: int) -> str:
        """The string at ``offset``. Raises ImageError when it is outside, endless, or overlaps beyond reason."""
        known = self._cache.get(offset)
        if known is not None:
            return known
        if offset >= len(self._data):
            if offset == 0:
                return ""
            raise self._source.bad(f"a name lies outside {self._what}")
        end = self._data.find(b"\0", offset)
        if end < 0:
            raise self._source.bad(f"a name in {self._what} does not end")
        self._budget -= end - offset
        if self._budget < 0:
            raise self._source.bad(f"the names in {self._what} overlap beyond reason")
        text = self._cache[offset] = decode(self._data[offset:end])
        return text
