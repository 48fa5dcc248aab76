"""Where a trampoline fits: how the entry of a function in the running image can be overwritten.

near: five bytes at the entry become jmp rel32. short: two bytes become jmp rel8, to five bytes of padding nearby that
become jmp rel32. hotpatch (PE images): the padding is directly before the entry, which is even, and the first
instruction has two bytes at least; no thread can be inside of it, and two aligned bytes change at once, so nobody need
be stopped (Microsoft, /hotpatch and /FUNCTIONPADMIN). Each write lies inside one page, so that
it can be made in one piece, and nothing may jump into its middle. Source: Intel SDM volume 2A, JMP (E9 cd, EB cb);
volume 3A, 8.1.1 (atomic writes); an endbr64 at the entry stays, for indirect calls (CET).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import iced_x86 as x86

from midflight.forge.matching import decode
from midflight.forge.matching.runimage import RunImage
from midflight.patch.manifest import Entry

PAGE = 4096
NEAR = 5
SHORT = 2
_ENDBR64 = b"\xf3\x0f\x1e\xfa"


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No trampoline fits; ``reason`` says why."""

    reason: str


def classify(
    run: RunImage, vaddr: int, size: int, labels: Iterable[int] = (), *, padded: bool = True, lead: bytes = b""
) -> Entry | NoRoom:
    """How the function of ``size`` bytes at ``vaddr`` can be led elsewhere.

    ``padded``: whether the padding before it may be used for an entry of the kind hotpatch. ``labels`` are addresses in
    it that jump tables and address constants lead to, besides those its own branches show. ``lead`` is the filling that
    its object has right before it, and for it alone.
    """
    code = run.code(vaddr, size)
    at = vaddr + (len(_ENDBR64) if code.startswith(_ENDBR64) else 0)
    if len(code) < size or at >= vaddr + size:
        return NoRoom("the function has no code")
    targets = set(labels) | _branch_targets(code, vaddr)
    if padded and run.elf.format == "pe" and _is_hotpatchable(run, code, vaddr, targets, lead):
        return Entry("hotpatch", vaddr, run.code(vaddr, SHORT), vaddr - NEAR, run.code(vaddr - NEAR, NEAR))
    near = _near_fault(run, at, vaddr + size, targets)
    if near is None:
        return Entry("near", at, run.code(at, NEAR))
    short = _short_fault(at, vaddr + size, targets)
    if short is None:
        pad = _padding_near(run, at, vaddr, vaddr + size)
        if pad is not None:
            return Entry("short", at, run.code(at, SHORT), pad, run.code(pad, NEAR))
        short = "no padding is in reach of a two-byte jump"
    return NoRoom(f"{near}, and {short}")


def _is_hotpatchable(run: RunImage, code: bytes, vaddr: int, targets: set[int], lead: bytes) -> bool:
    """Whether padding is before an even entry, and its first instruction can be exchanged by one write of two bytes."""
    first = next(iter(decode.decode(code[:15], vaddr)), None)
    if vaddr % SHORT or first is None or first.is_invalid or first.len < SHORT or code.startswith(_ENDBR64):
        return False
    pad = vaddr - NEAR
    if _crosses_page(pad, NEAR) or vaddr + 1 in targets:
        return False
    # What the compiler put before the function is its own, whatever stands before that: functions of clang that save
    # nothing have no unwind information, and look like a gap with something in it.
    own = len(lead) >= NEAR and run.code(pad, NEAR) == lead[-NEAR:] and not run.owned(pad, vaddr)
    return own or _is_padding(run, pad, vaddr)


def _branch_targets(code: bytes, vaddr: int) -> set[int]:
    return {i.near_branch_target for i in decode.decode(code, vaddr) if decode.is_near_branch(i)}


def _crosses_page(start: int, size: int) -> bool:
    return start // PAGE != (start + size - 1) // PAGE


def _jump_into(targets: set[int], start: int, size: int) -> int | None:
    return next((t for t in sorted(targets) if start < t < start + size), None)


def _near_fault(run: RunImage, at: int, end: int, targets: set[int]) -> str | None:
    if _crosses_page(at, NEAR):
        return "the first five bytes lie in two pages"
    if at + NEAR > end and not _is_padding(run, end, at + NEAR):
        return f"only {end - at} bytes are there"
    into = _jump_into(targets, at, NEAR)
    return None if into is None else f"a jump leads to {into:#x}, into the first five bytes"


def _short_fault(at: int, end: int, targets: set[int]) -> str | None:
    if at + SHORT > end:
        return "not even two bytes are there"
    if _crosses_page(at, SHORT):
        return "the first two bytes lie in two pages"
    into = _jump_into(targets, at, SHORT)
    return None if into is None else f"a jump leads to {into:#x}, into the first two bytes"


def _padding_near(run: RunImage, at: int, start: int, end: int) -> int | None:
    """Five bytes of padding in reach of a two-byte jump at ``at``, the nearest first."""
    reach = range(at + SHORT - 128, at + SHORT + 128)
    places = [p for p in reach if p + NEAR <= start or p >= end]
    for place in sorted(places, key=lambda p: (abs(p - at), p)):
        if not _crosses_page(place, NEAR) and _is_padding(run, place, place + NEAR):
            return place
    return None


def _is_padding(run: RunImage, start: int, end: int) -> bool:
    """Whether [start, end) belongs to no function and is filled with what compilers and linkers fill gaps with."""
    if run.owned(start, end):
        return False
    gap_start, gap_end = run.gap(start, end)
    return gap_end - gap_start >= end - start and _is_filling(run.code(gap_start, gap_end - gap_start))


def _is_filling(gap: bytes) -> bool:
    if not gap:
        return False
    return all(
        decode.is_padding(i) or i.mnemonic == x86.Mnemonic.INT3 or not any(gap[i.ip : i.ip + i.len])
        for i in decode.decode(gap)
    )
