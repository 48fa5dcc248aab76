"""Where an image keeps its unwind tables. Source: LSB Core 5.0, 10.6 "Exception Frames" and ".eh_frame_hdr"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from midflight.image.layout import Layout
from midflight.image.model import Section, Segment
from midflight.image.sections import SHT_NOBITS

_PCREL_SDATA4 = 0x1B


@dataclass(frozen=True, slots=True)
class UnwindTables:
    """Raw unwind tables: what ``unwind.FrameTable`` takes. ``header`` is None when there is no .eh_frame_hdr."""

    eh_frame: bytes
    vaddr: int
    header: bytes | None
    header_vaddr: int


def read_unwind_tables(
    layout: Layout, header: Segment | None, section: Callable[[], Section | None]
) -> UnwindTables | None:
    """The tables that PT_GNU_EH_FRAME leads to; without it, those of the .eh_frame section; or None."""
    raw: bytes | None = None
    vaddr: int | None = None
    if header is not None:
        raw = layout.read_file(header.address, header.file_size, "the .eh_frame_hdr")
        if len(raw) >= 8 and raw[0] == 1 and raw[1] == _PCREL_SDATA4:
            vaddr = header.address + 4 + int.from_bytes(raw[4:8], "little", signed=True)
    found = section()
    if found is not None and found.type != SHT_NOBITS and found.address and vaddr in (None, found.address):
        size = found.size
        vaddr = found.address
    elif vaddr is not None:
        # How long it is stands nowhere: to the end of the file's part of the segment; a zero terminator ends it.
        size = layout.file_room(vaddr)
    else:
        return None
    data = layout.read_file(vaddr, size, "the .eh_frame")
    return UnwindTables(data, vaddr, raw, header.address if header is not None and raw is not None else 0)
