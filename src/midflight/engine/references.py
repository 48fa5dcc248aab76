"""Looks for addresses in memory: whether anything that a program can write still refers to a piece of code.

A parked stack (swapcontext, coroutines) belongs to no thread, so the stack check cannot see it; but what waits on it
to be returned into stands in writable memory like any other pointer. Nobody can make a new one from nothing: once no
thread is in a piece of code and no memory refers to it, it is out of reach for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from midflight.engine.stackcheck import Range, StackCheck
from midflight.errors import ProcessError
from midflight.process.model import Mapping, Process

# Reading more than this of a target's memory takes too long to be worth some KiB of it; and so does asking what was
# never written in more than that.
_BUDGET = 512 << 20
_LARGEST = 16 << 30
_CHUNK = 1 << 20


def _writable(maps: Sequence[Mapping], skip: Sequence[tuple[int, int]]) -> Iterator[Mapping]:
    for m in maps:
        if m.readable and m.writable and not any(start < m.end and m.start < end for start, end in skip):
            yield m


# What a system's own record of a registered payload takes at most, before and behind its pointer to the table.
_RECORD = 64


def _without_records(data: bytes, table: int) -> bytes:
    """Memory without the records that the system keeps of unwind data at ``table``: where that is, begin and end of the
    payload stand beside it (the function tables of Windows)."""
    word = table.to_bytes(8, "little")
    at = data.find(word)
    if at == -1:
        return data
    masked = bytearray(data)
    while at != -1:
        low, high = max(0, at - _RECORD), min(len(data), at + 8 + _RECORD)
        masked[low:high] = bytes(high - low)
        at = data.find(word, at + 8)
    return bytes(masked)


def referred_to(
    process: Process, ranges: Sequence[Range], skip: Sequence[tuple[int, int]], table: int | None = None
) -> bool:
    """Whether writable memory outside of ``skip`` holds an address in one of ``ranges``; True when that is too costly
    to know. What stands beside the address ``table`` is the system's record of it, and does not count."""
    search = StackCheck(ranges, lambda _: None)
    memory = list(_writable(process.maps(), skip))
    if sum(m.end - m.start for m in memory) > _LARGEST:
        return True
    left = _BUDGET
    for start, end in (part for m in memory for part in process.touched(m)):
        left -= end - start
        if left < 0:
            return True
        for at in range(start, end, _CHUNK):
            try:
                data = process.read(at, min(_CHUNK, end - at))
            except ProcessError:
                # A mapping that has just gone, or a device: what cannot be read cannot be excluded.
                return True
            if search.mentions(at, data) and (table is None or search.mentions(at, _without_records(data, table))):
                return True
    return False
