"""Whether a process that has just begun is still being put together by its loader.

An executable is mapped when exec returns, its libraries some milliseconds later. Linux: the dynamic linker says in
``struct r_debug`` (glibc's and musl's <link.h>), which ``DT_DEBUG`` of the executable leads to, when all is mapped and
relocated. Windows: nothing documented says it; what a process has loaded is taken for complete when it stays the same
from one look to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum
from weakref import WeakKeyDictionary

from midflight.engine.modules import Files
from midflight.errors import ImageError, MidflightError
from midflight.image.elf import ElfFile
from midflight.process.model import Mapping, Process

_PT_DYNAMIC, _DT_DEBUG = 2, 21
_RT_CONSISTENT = 0
_places: WeakKeyDictionary[ElfFile, int | None] = WeakKeyDictionary()


class Startup(Enum):
    """How far a process is."""

    LOADING = "loading"
    """More will be mapped in a moment."""
    COMPLETE = "complete"
    UNKNOWN = "unknown"
    """Nothing says it: look again, and compare."""


def startup(process: Process, code: Sequence[Mapping], files: Files) -> Startup:
    """How far the loader of a process is; ``code`` is what it has mapped now.

    Raises:
        ProcessGone: it ended.
    """
    if process.images == "pe":
        return Startup.UNKNOWN
    for mapping in code:
        try:
            _, elf = files.image(process, mapping)
            place = _debug_entry(elf) if elf is not None else None
            if elf is not None and place is not None:
                bias = elf.load_bias(mapping.start, mapping.offset, True)
                return _said(process, bias + place)
        except ImageError:
            continue
    # No executable with a dynamic linker: a static one, complete from the start, or a dynamic linker that was started
    # by name and has not mapped its program yet.
    static = any(_is_static(process, mapping, files) for mapping in code)
    return Startup.COMPLETE if static else Startup.UNKNOWN


def _said(process: Process, address: int) -> Startup:
    try:
        (debug,) = struct.unpack("<Q", process.read(address, 8))
        if not debug:
            return Startup.LOADING
        version, first, _, state = struct.unpack("<QQQQ", process.read(debug, 32))
    except MidflightError:
        process.maps()  # raises ProcessGone when it is that
        return Startup.LOADING
    done = version & 0xFFFFFFFF and first and state & 0xFFFFFFFF == _RT_CONSISTENT
    return Startup.COMPLETE if done else Startup.LOADING


def _debug_entry(elf: ElfFile) -> int | None:
    """The address of the value of DT_DEBUG, which the link editor gives to programs alone."""
    if elf not in _places:
        _places[elf] = None
        for segment in elf.segments:
            if segment.type == _PT_DYNAMIC:
                data = elf.read_vaddr(segment.address, segment.file_size // 16 * 16)
                for index, (tag, _) in enumerate(struct.iter_unpack("<QQ", data)):
                    if tag == _DT_DEBUG:
                        _places[elf] = segment.address + 16 * index + 8
                        break
    return _places[elf]


def _is_static(process: Process, mapping: Mapping, files: Files) -> bool:
    _, elf = files.image(process, mapping)
    return elf is not None and elf.kind == "executable" and elf.interpreter is None and not elf.soname
