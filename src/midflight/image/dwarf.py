"""Reads the encodings of DWARF and of .eh_frame from bytes, within bounds.

Source: DWARF 5, 7.6 (LEB128); LSB Core 5.0, 10.5 (DW_EH_PE pointer encodings).
"""

from __future__ import annotations

from midflight.errors import ImageError

OMIT = 0xFF
INDIRECT = 0x80
_PCREL, _DATAREL = 0x10, 0x30
_SIZES = {0x0: (8, False), 0x2: (2, False), 0x3: (4, False), 0x4: (8, False)}
_SIZES |= {0xA: (2, True), 0xB: (4, True), 0xC: (8, True)}
_WORD = (1 << 64) - 1
_LONGEST_LEB = 16


def bad(what: str) -> ImageError:
    """The error that says that unwind information is malformed, and how."""
    return ImageError(f"malformed unwind information: {what}")


class Cursor:
    """A position ``at`` in ``data``, never beyond ``end``. ``vaddr`` is the virtual address of ``data[0]``."""

    __slots__ = ("at", "data", "end", "vaddr")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None, vaddr: int = 0) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end
        self.vaddr = vaddr
        if not 0 <= at <= self.end <= len(data):
            raise bad("an entry lies outside its table")

    def byte(self) -> int:
        """One unsigned byte."""
        if self.at >= self.end:
            raise bad("an entry is cut short")
        value = self.data[self.at]
        self.at += 1
        return value

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        at = self.at
        if size < 0 or at + size > self.end:
            raise bad("an entry is cut short")
        self.at = at + size
        return self.data[at : at + size]

    def fixed(self, size: int, signed: bool = False) -> int:
        """A little-endian integer."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def uleb(self) -> int:
        """An unsigned LEB128."""
        value = self.byte()
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, 7 * _LONGEST_LEB, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise bad("a number does not end")

    def sleb(self) -> int:
        """A signed LEB128."""
        value = 0
        for shift in range(0, 7 * _LONGEST_LEB, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value - (1 << shift + 7) if byte & 0x40 else value
        raise bad("a number does not end")

    def string(self) -> bytes:
        """A zero-terminated string."""
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            raise bad("a string does not end")
        value = self.data[self.at : end]
        self.at = end + 1
        return value

    def pointer(self, encoding: int, data_base: int | None = None) -> int | None:
        """An encoded pointer as a virtual address; None when omitted, or zero (which encodes "none").

        ``data_base`` is what datarel counts from. The indirect bit is left to the caller: the value is then the address
        of the pointer."""
        if encoding == OMIT:
            return None
        place = self.vaddr + self.at
        kind = encoding & 0x0F
        if kind == 0x1:
            value = self.uleb()
        elif kind == 0x9:
            value = self.sleb()
        elif kind in _SIZES:
            value = self.fixed(*_SIZES[kind])
        else:
            raise bad(f"unknown pointer encoding {encoding:#x}")
        if value == 0:
            return None
        relative = encoding & 0x70
        if relative == _PCREL:
            value += place
        elif relative == _DATAREL and data_base is not None:
            value += data_base
        elif relative:
            raise bad(f"unsupported pointer encoding {encoding:#x}")
        return value & _WORD
