"""Writes the payload's .pdata: one RUNTIME_FUNCTION for every stretch of new code, relative to the payload's beginning.

The UNWIND_INFO that an entry leads to is an atom of the payload. A function without an entry is a leaf to Windows: it
moves no stack pointer and saves no register, which an UNWIND_INFO without codes says as well. Source: Microsoft, "x64
exception handling" (struct RUNTIME_FUNCTION, struct UNWIND_INFO).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

RUNTIME_FUNCTION = 12
LEAF_INFO = b"\x01\0\0\0"
"""UNWIND_INFO, version 1, with no codes."""


@dataclass(frozen=True, slots=True)
class PlacedFunction:
    """Code at payload offsets [start, end); its UNWIND_INFO at ``info``."""

    start: int
    end: int
    info: int


def build_pdata(functions: Iterable[PlacedFunction]) -> bytes:
    """The table for RtlAddFunctionTable, sorted by address."""
    order = sorted(functions, key=lambda item: item.start)
    return b"".join(struct.pack("<III", item.start, item.end, item.info) for item in order)
