"""Free address space near an image: where a hotpatch can be mapped without being in anybody's way.

Code reaches 2 GiB in either direction (AMD64 ABI, small code model), so the whole payload must lie within that of the
whole image. Room that the program itself may grow into is left alone: the heap grows up, stacks grow down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from midflight.engine.ledger import PAGE
from midflight.process.model import Mapping

REACH = (1 << 31) - (1 << 20)
_LOWEST = 0x10000
_HIGHEST = 0x7FFF_FFFF_F000
_HEAP_ROOM = 1 << 29
_STACK_ROOM = 1 << 28
# One page stays free on both sides, so that neighbours never merge with our mappings.
_GUARD = PAGE


def holes(maps: Sequence[Mapping]) -> list[tuple[int, int]]:
    """Free ranges of the address space, without the room that heap and stacks may grow into."""
    result = []
    low = _LOWEST
    for m in maps:
        high = m.start - (_STACK_ROOM if m.path.startswith("[stack") else 0) - _GUARD
        if high > low:
            result.append((low, high))
        low = max(low, m.end + (_HEAP_ROOM if m.path == "[heap]" else 0) + _GUARD)
        if low >= _HIGHEST:
            return result
    if low < _HIGHEST - _GUARD:
        result.append((low, _HIGHEST - _GUARD))
    return result


def candidates(
    maps: Sequence[Mapping], image: tuple[int, int], size: int, reach: int = REACH, unit: int = PAGE
) -> Iterator[int]:
    """Addresses for ``size`` bytes within reach of every byte of ``image`` (start, end), the nearest first; all are
    multiples of ``unit``."""
    start, end = image
    lowest, highest = max(_LOWEST, end - reach), min(_HIGHEST, start + reach)
    if end <= 1 << 31:
        # A non-PIE image may be referred to by 32-bit absolute addresses: stay where these reach too.
        highest = min(highest, (1 << 31) - PAGE)
    found = []
    for low, high in holes(maps):
        low, high = max(low, lowest), min(high, highest)
        low, high = -(-low // unit) * unit, high // PAGE * PAGE
        if high - low < size:
            continue
        for at in {low, (high - size) // unit * unit}:
            distance = start - at if at < start else at - end
            # Below the image nothing of the program grows: take that at an equal price.
            found.append((distance + (0 if at < start else PAGE), at))
    for _, at in sorted(found):
        yield at
