"""Decides whether a thread is in the way: executing, or about to return into, code that is being replaced.

Conservative first: a return address that stands nowhere on the live stack is none, and all addresses of one 64 KiB
block share their upper bytes, which ``bytes.find`` looks for at memory speed. Only a thread with a hit is unwound
precisely; where unwinding does not reach the outermost frame, the hit counts. Source of the idea: kpatch and Ksplice
(section 5.2 of "Ksplice: Automatic Rebootless Kernel Updates", EuroSys 2009), both of which look at whole stacks
conservatively.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from midflight.image.unwind import Unwinds, walk
from midflight.process.model import RIP, Thread

_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Range:
    """Code that nobody may be in, [start, end), and whose it is."""

    start: int
    end: int
    function: str


@dataclass(frozen=True, slots=True)
class Busy:
    """One thread in the way: in which function, at which depth (0: executing it), and where it would leave it for
    good."""

    tid: int
    function: str
    address: int
    depth: int | None
    """None when only a word on the stack says so and the stack could not be unwound."""
    exit: tuple[int, int] | None
    """Return address and stack pointer behind the outermost frame in replaced code; None when unknown."""

    def __str__(self) -> str:
        if self.depth is None:
            return f"thread {self.tid} may return to {self.address:#x} in {self.function} (its stack cannot be unwound)"
        where = "is in" if self.depth == 0 else f"returns, {self.depth} frames up, into"
        return f"thread {self.tid} {where} {self.function} at {self.address:#x}"


def _disjoint(ranges: Iterable[Range]) -> list[Range]:
    """The same addresses without overlaps, in order; what overlaps goes by the name of its first."""
    merged: list[Range] = []
    for one in sorted(ranges, key=lambda r: (r.start, -r.end)):
        if merged and one.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Range(last.start, max(last.end, one.end), last.function)
        else:
            merged.append(one)
    return merged


class StackCheck:
    """The check for one set of ranges, prepared outside the stop.

    ``frames_at`` says how to unwind the code at an address, or None.
    """

    def __init__(self, ranges: Iterable[Range], frames_at: Callable[[int], Unwinds | None]) -> None:
        self._ranges = _disjoint(ranges)
        self._starts = [r.start for r in self._ranges]
        blocks = {b for r in self._ranges for b in range(r.start >> _BLOCK, ((r.end - 1) >> _BLOCK) + 1)}
        # The two upper bytes of an address are zero, and zeros are everywhere: searching for the other four is faster.
        self._patterns = [struct.pack("<Q", block << _BLOCK)[2:6] for block in sorted(blocks)]
        self._bases = [block << _BLOCK for block in sorted(blocks)]
        self._frames_at = frames_at

    def covering(self, address: int) -> Range | None:
        """The range that ``address`` lies in."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ranges[index].end:
            return self._ranges[index]
        return None

    def _hits(self, start: int, data: bytes) -> Iterable[int]:
        """Addresses on the stack that lie in a range."""
        for pattern, base in zip(self._patterns, self._bases, strict=True):
            at = data.find(pattern)
            while at != -1:
                # Return addresses are aligned words; a match elsewhere is two neighbouring words.
                if (start + at) & 7 == 2 and at >= 2 and data[at + 4 : at + 6] == b"\0\0":
                    address = base | data[at - 2] | data[at - 1] << 8
                    if self.covering(address):
                        yield address
                at = data.find(pattern, at + 1)

    def mentions(self, start: int, data: bytes) -> bool:
        """Whether memory at ``start`` holds an address in one of the ranges as an aligned word."""
        return next(iter(self._hits(start, data)), None) is not None

    def entered(self, start: int, data: bytes) -> Range | None:
        """The range that an aligned word in memory at ``start`` leads into the middle of, as a return address does; its
        beginning is what pointers to functions hold."""
        inside = (found for at in self._hits(start, data) if (found := self.covering(at)) and found.start != at)
        return next(inside, None)

    def busy(self, threads: Sequence[Thread]) -> list[Busy]:
        """All threads in the way; empty when the code may be replaced now."""
        found = []
        for thread in threads:
            pc = thread.registers[RIP]
            hit = pc if self.covering(pc) else None
            if hit is None:
                hit = next((a for s in thread.stacks for a in self._hits(s.start, s.data)), None)
            if hit is None and thread.complete:
                continue
            verdict = self._unwound(thread, hit)
            if verdict is not None:
                found.append(verdict)
        return found

    def _unwound(self, thread: Thread, hit: int | None) -> Busy | None:
        stack = walk(thread.registers, self._frames_at, thread.word)
        outermost = innermost = None
        for depth, frame in enumerate(stack.frames):
            inside = self.covering(frame.at)
            if inside is not None:
                innermost = innermost or (depth, frame.pc, inside.function)
                outermost = frame
        if innermost is None:
            if stack.complete and thread.complete:
                return None
            where = self.covering(hit) if hit is not None else None
            name = where.function if where else "replaced code"
            return Busy(thread.tid, name, hit or thread.registers[RIP], None, None)
        leave = (outermost.return_address, outermost.cfa) if outermost and outermost.return_address else None
        return Busy(thread.tid, innermost[2], innermost[1], innermost[0], leave)
