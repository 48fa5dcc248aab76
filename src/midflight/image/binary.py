"""Opens objects and images of either format: what reads them asks the same questions of both."""

from __future__ import annotations

import os

from midflight.errors import ImageError
from midflight.image.coffobject import CoffObject
from midflight.image.elf import ElfFile
from midflight.image.pe import PeFile
from midflight.image.source import FileSource, MemorySource

ObjectFile = ElfFile | CoffObject
ImageFile = ElfFile | PeFile
MAGIC_ELF = b"\x7fELF"
MAGIC_PE = b"MZ"
_MAGIC_COFF = (b"\x64\x86", b"\0\0\xff\xff")
"""IMAGE_FILE_MACHINE_AMD64, and what begins "bigobj" files."""


def open_image(path: str | os.PathLike[str], name: str | None = None) -> ImageFile:
    """Open a program or library: a PE image by its "MZ", anything else as ELF. Raises ImageError when it is neither."""
    return PeFile.open(path, name) if _start(path)[:2] == MAGIC_PE else ElfFile.open(path, name)


def open_object(path: str | os.PathLike[str], name: str | None = None) -> ObjectFile:
    """Open an object file: COFF for x86-64 by its machine, anything else as ELF. Raises ImageError when it is neither.

    An ELF file that is linked already is opened, too: the caller asks for its kind."""
    return CoffObject.open(path, name) if _start(path).startswith(_MAGIC_COFF) else ElfFile.open(path, name)


def read_object_bytes(data: bytes, name: str) -> ObjectFile:
    """As :func:`open_object`, for the bytes of an archive's member."""
    source = MemorySource(data, name)
    return CoffObject(source) if data.startswith(_MAGIC_COFF) else ElfFile(source)


def is_object(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an object of either format (or an ELF image)."""
    return _start(path).startswith((MAGIC_ELF, *_MAGIC_COFF))


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image of either format."""
    start = _start(path)
    return start.startswith((MAGIC_ELF, MAGIC_PE))


def _start(path: str | os.PathLike[str]) -> bytes:
    """The first four bytes; b"" when there are none, or the file cannot be read."""
    try:
        source = FileSource(path)
    except ImageError:
        return b""
    try:
        return source.read(0, min(4, source.size), "the header")
    finally:
        source.close()
