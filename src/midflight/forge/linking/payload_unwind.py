"""Writes the payload's .eh_frame: the unwind information of the new functions, for where they lie in the payload.

Source: LSB Core 5.0, 10.6 (CIE, FDE, augmentation "zPLRSB"), DWARF 5, 6.4. All pointers become pc-relative, of four
bytes; the personality routine is reached through a slot (DW_EH_PE_indirect), as it usually lies in another library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from midflight.forge.frames import Cie

_PCREL_SDATA4 = 0x1B
_INDIRECT = 0x80
_NOP = b"\0"


@dataclass(frozen=True, slots=True)
class PlacedFrame:
    """One stretch of code at payload offset ``start``; ``personality`` is the offset of the slot with the address of
    the personality routine, ``lsda`` that of the exception table."""

    cie: Cie
    start: int
    size: int
    personality: int | None
    lsda: int | None
    instructions: bytes


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = (value == 0 and not byte & 0x40) or (value == -1 and bool(byte & 0x40))
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


def _relative(target: int, field: int) -> bytes:
    return struct.pack("<i", target - field)


def _entry(body: bytes) -> bytes:
    """Length field and padding, so that entries stay aligned to eight bytes."""
    padding = -(4 + len(body)) % 8
    return struct.pack("<I", len(body) + padding) + body + _NOP * padding


def _cie(frame: PlacedFrame, at: int) -> bytes:
    cie = frame.cie
    kept = "".join(letter for letter in cie.augmentation if letter in "SB")
    has_lsda = "L" in cie.augmentation
    letters = "z" + ("P" if frame.personality is not None else "") + ("L" if has_lsda else "") + "R" + kept
    head = struct.pack("<IB", 0, 1) + letters.encode() + b"\0"
    head += _uleb(cie.code_alignment) + _sleb(cie.data_alignment) + bytes([cie.return_register])
    size = (5 if frame.personality is not None else 0) + has_lsda + 1
    head += _uleb(size)
    if frame.personality is not None:
        head += bytes([_INDIRECT | _PCREL_SDATA4])
        head += _relative(frame.personality, at + 4 + len(head))
    if has_lsda:
        head += bytes([_PCREL_SDATA4])
    return _entry(head + bytes([_PCREL_SDATA4]) + cie.instructions)


def _fde(frame: PlacedFrame, cie_at: int, at: int) -> bytes:
    body = struct.pack("<I", at + 4 - cie_at)
    body += _relative(frame.start, at + 4 + len(body)) + struct.pack("<I", frame.size)
    if "L" in frame.cie.augmentation:
        body += _uleb(4)
        # A null pointer is "none"; pc-relative encodings leave a zero as it is.
        body += bytes(4) if frame.lsda is None else _relative(frame.lsda, at + 4 + len(body))
    else:
        body += _uleb(0)
    return _entry(body + frame.instructions)


def build_eh_frame(frames: Iterable[PlacedFrame], base: int) -> bytes:
    """The .eh_frame for payload offset ``base`` (a multiple of eight), terminated by a zero length.

    The size does not depend on ``base`` or on the places of the frames.
    """
    out = bytearray()
    cies: dict[tuple[str, int, int, int, int | None, bytes], int] = {}
    for frame in frames:
        cie = frame.cie
        key = (
            cie.augmentation,
            cie.code_alignment,
            cie.data_alignment,
            cie.return_register,
            frame.personality,
            cie.instructions,
        )
        if key not in cies:
            cies[key] = base + len(out)
            out += _cie(frame, base + len(out))
        out += _fde(frame, cies[key], base + len(out))
    return bytes(out + bytes(4))
