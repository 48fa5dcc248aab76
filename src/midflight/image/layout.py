"""The ELF header and program headers, and with them the image's own address space.

Source: System V ABI (gABI 4.1) chapters 4 and 5, and the AMD64 supplement.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from midflight.errors import ImageError
from midflight.image.model import Segment
from midflight.image.reader import Mapped
from midflight.image.source import MAX_ENTRIES, MAX_READ, Source

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
PT_GNU_EH_FRAME, PT_GNU_STACK, PT_GNU_RELRO = 0x6474E550, 0x6474E551, 0x6474E552
PAGE = 4096

_PN_XNUM = 0xFFFF
_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_MACHINES = {
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
}
_EM_X86_64 = 62


class Layout(Mapped):
    """Header fields, segments, and reading by virtual address. Raises ImageError for what is not ELF64 x86-64."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._read_header()
        self.segments = self._read_segments()
        loads = [s for s in self.segments if s.type == PT_LOAD]
        for before, after in pairwise(loads):
            if before.address + before.memory_size > after.address:
                raise source.bad("loadable segments overlap or are out of order")
        self._map(loads)

    def _read_header(self) -> None:
        source = self.source
        start = source.read(0, min(20, source.size), "the header")
        if start[:4] != b"\x7fELF":
            kind = "LLVM bitcode; compile without -flto" if start[:4] == b"BC\xc0\xde" else "give an ELF file"
            raise ImageError(f"{source.name}: not an ELF file; {kind}")
        if len(start) < 20:
            raise source.bad("the header is cut short")
        machine = int.from_bytes(start[18:20], "big" if start[5] == 2 else "little")
        if start[4] != 2 or start[5] != 1 or machine != _EM_X86_64:
            bits = {1: "32-bit", 2: "64-bit"}.get(start[4], f"class {start[4]}")
            name = "x86-64" if machine == _EM_X86_64 else _MACHINES.get(machine, f"machine {machine}")
            order = "big-endian " if start[5] == 2 else ""
            raise ImageError(f"{source.name}: {bits} {order}ELF for {name} is not supported; only 64-bit x86-64 is")
        header = _HEADER.unpack(source.read(16, 48, "the header"))
        version: int = header[2]
        self.type: int = header[0]
        self.entry: int = header[3]
        self._phoff: int = header[4]
        self.section_offset: int = header[5]
        phentsize, self._phnum, shentsize, self.section_count, self.section_names = header[8:13]
        if start[6] != 1 or version != 1:
            raise source.bad("unknown ELF version")
        if self.type not in (ET_REL, ET_EXEC, ET_DYN):
            what = "a core dump" if self.type == 4 else f"of type {self.type}"
            raise ImageError(f"{source.name}: the file is {what}; give an object, a library or an executable")
        if self._phoff == 0:
            self._phnum = 0
        if self._phnum and phentsize != _PROGRAM_HEADER.size:
            raise source.bad("program headers of unknown size")
        if self.section_offset and shentsize != 64:
            raise source.bad("section headers of unknown size")

    def _read_segments(self) -> tuple[Segment, ...]:
        count = self._phnum
        if count == _PN_XNUM:
            count = int.from_bytes(self.source.read(self.section_offset + 44, 4, "section header 0"), "little")
        if count > MAX_ENTRIES:
            raise self.source.bad("too many program headers")
        table = self.source.read(self._phoff, count * _PROGRAM_HEADER.size, "the program header table")
        segments = []
        for kind, flags, offset, address, _, filesz, memsz, alignment in _PROGRAM_HEADER.iter_unpack(table):
            if kind == PT_LOAD and (filesz > memsz or address + memsz >= 1 << 64):
                raise self.source.bad("a loadable segment has impossible sizes")
            readable, writable, executable = bool(flags & 4), bool(flags & 2), bool(flags & 1)
            segments.append(Segment(kind, readable, writable, executable, offset, address, filesz, memsz, alignment))
        return tuple(segments)

    def segment(self, kind: int) -> Segment | None:
        """The first segment of a type, or None."""
        return next((s for s in self.segments if s.type == kind), None)

    def file_room(self, vaddr: int) -> int:
        """How many bytes of the file follow ``vaddr`` in its segment; 0 when none."""
        segment = self.segment_at(vaddr)
        return 0 if segment is None else max(0, segment.address + segment.file_size - vaddr)

    def read_file(self, vaddr: int, size: int, what: str) -> bytes:
        """As :meth:`read_vaddr`, of what is in the file alone: sizes that tables claim are no reason to make zeros."""
        if size > self.file_room(vaddr):
            raise self.source.bad(f"{what} lies outside the file")
        return self.read_vaddr(vaddr, size, what)

    def read_vaddr(self, vaddr: int, size: int, what: str = "memory") -> bytes:
        """``size`` bytes as the program starts with them (before relocation); .bss reads as zeros.

        Raises ImageError when they are not all in one loadable segment."""
        segment = self.segment_at(vaddr) if size >= 0 else None
        if segment is None or vaddr + size > segment.address + segment.memory_size:
            raise self.source.bad(f"{what} at {vaddr:#x} (size {size}) is not in a loadable segment")
        if size > MAX_READ:
            raise self.source.bad(f"{what} is too large ({size} bytes)")
        start = vaddr - segment.address
        from_file = max(0, min(size, segment.file_size - start))
        data = self.source.read(segment.offset + start, from_file, what) if from_file else b""
        return data if from_file == size else data + bytes(size - from_file)
