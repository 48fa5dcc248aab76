"""Binds a payload to one process: every field of its small relocation table gets its final value.

The forge has linked everything but the four kinds of relocation that only a process can answer (see patch.manifest).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from midflight.errors import EngineError
from midflight.patch.manifest import Relocation, Target

# jmp *0(%rip), then the address: reaches everywhere and touches no register.
_ISLAND = b"\xff\x25\x00\x00\x00\x00"
ISLAND_SIZE = 16


@dataclass(slots=True)
class Islands:
    """Jumps to far targets, in a code page that is near whoever jumps."""

    base: int
    capacity: int
    contents: bytearray = field(default_factory=bytearray)
    known: dict[int, int] = field(default_factory=dict)

    def to(self, target: int) -> int:
        """The address of an island that leads to ``target``.

        Raises:
            EngineError: there is no room for another.
        """
        if target not in self.known:
            if len(self.contents) + ISLAND_SIZE > self.capacity:
                raise EngineError(
                    "too many far targets for one page of islands: restart the process with a fixed build"
                )
            self.known[target] = self.base + len(self.contents)
            self.contents += (_ISLAND + struct.pack("<Q", target)).ljust(ISLAND_SIZE, b"\xcc")
        return self.known[target]


@dataclass(frozen=True, slots=True)
class LinkedSegment:
    """Final contents of one segment; ``size`` bytes are mapped at ``address``."""

    kind: str
    address: int
    size: int
    contents: bytes


def rel32(source: int, target: int) -> bytes | None:
    """The four bytes of a displacement from ``source`` (the end of the field), or None when out of reach."""
    distance = target - source
    return struct.pack("<i", distance) if -(1 << 31) <= distance < 1 << 31 else None


def _value(relocation: Relocation, base: int, bias: int, imports: Sequence[int]) -> int:
    if relocation.kind == "payload":
        return base + relocation.target + relocation.addend
    if relocation.kind == "import":
        return imports[relocation.target] + relocation.addend
    return bias + relocation.target + relocation.addend


def _field(relocation: Relocation, at: int, value: int, base: int, islands: Islands | None) -> bytes:
    if relocation.form == "abs64":
        return struct.pack("<Q", value & (1 << 64) - 1)
    if relocation.form == "rva32":
        # Unwind information counts from the beginning of the payload, and never backwards.
        value -= base
        if 0 <= value < 1 << 32:
            return struct.pack("<I", value)
        raise EngineError(f"what payload offset {relocation.offset:#x} refers to is not in the payload")
    if relocation.form == "pc32":
        encoded = rel32(at, value)
        if encoded is None and relocation.branch and islands is not None:
            # S + A - P with A = -4 for a branch: the place that is meant is four bytes on.
            encoded = rel32(at, islands.to(value + 4) - 4)
        if encoded is not None:
            return encoded
    elif relocation.form == "abs32" and 0 <= value < 1 << 32:
        return struct.pack("<I", value)
    elif relocation.form == "abs32s" and -(1 << 31) <= value < 1 << 31:
        return struct.pack("<i", value)
    raise EngineError(
        f"what payload offset {relocation.offset:#x} refers to ({value:#x}) is out of reach of a {relocation.form} "
        "field: there is no free memory near the image"
    )


def link(
    target: Target, payload: bytes, base: int, bias: int, imports: Sequence[int], islands: Islands | None = None
) -> tuple[LinkedSegment, ...]:
    """The contents of all segments for a payload mapped at ``base``, for an image with load bias ``bias``.

    Raises:
        EngineError: a target is out of reach.
    """
    segments = []
    for segment in target.segments:
        contents = bytearray(payload[segment.file_offset : segment.file_offset + segment.file_size])
        for relocation in target.relocations:
            if not segment.offset <= relocation.offset < segment.offset + segment.size:
                continue
            within = relocation.offset - segment.offset
            value = _value(relocation, base, bias, imports)
            encoded = _field(relocation, base + relocation.offset, value, base, islands)
            if len(contents) < within + len(encoded):
                contents.extend(bytes(within + len(encoded) - len(contents)))
            contents[within : within + len(encoded)] = encoded
        segments.append(LinkedSegment(segment.kind, base + segment.offset, segment.size, bytes(contents)))
    return tuple(segments)
