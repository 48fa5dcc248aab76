"""What the fields of a manifest must be to each other, so that the engine can trust every hotpatch that was read.

All checks raise :class:`~midflight.patch.fields.FieldError` with the path of the field at fault.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise

from midflight.patch.encoding import MAX_MEMORY, MAX_VADDR
from midflight.patch.fields import FieldError
from midflight.patch.manifest import PE_SCHEMA, Entry, Function, Manifest, Relocation, Segment, Target

PAGE = 4096
NEAR = 5
"""Bytes of jmp rel32 (Intel SDM volume 2A, JMP: E9 cd)."""
SHORT = 2
"""Bytes of jmp rel8 (EB cb)."""
RUNTIME_FUNCTION = 12
"""Bytes of an entry of .pdata (PE format, "The .pdata Section")."""
_FIELD_SIZE = {"abs64": 8, "abs32": 4, "abs32s": 4, "pc32": 4, "rva32": 4}


def validate_manifest(manifest: Manifest) -> None:
    """Check a decoded manifest as a whole."""
    if len(set(manifest.cves)) != len(manifest.cves):
        raise FieldError("must name each CVE once", "cves")
    seen: set[str] = set()
    for index, target in enumerate(manifest.targets):
        with _at(f"targets[{index}]"):
            if target.build_id in seen:
                raise FieldError("is the target of another entry already", ".build_id")
            seen.add(target.build_id)
            _validate_target(target)
            if manifest.schema == PE_SCHEMA:
                _validate_pe(target)


def _validate_pe(target: Target) -> None:
    """Without unwind data an exception that passes the payload corrupts registers and nobody sees it."""
    if target.unwind is None:
        raise FieldError("is needed for a PE image: the payload's table of RUNTIME_FUNCTION", ".unwind")
    if target.unwind.size % RUNTIME_FUNCTION:
        raise FieldError(f"must be whole entries of {RUNTIME_FUNCTION} bytes", ".unwind.size")
    if target.unwind.offset % 4:
        raise FieldError("must be aligned to 4 bytes", ".unwind.offset")
    for index, item in enumerate(target.imports):
        if item.version is not None:
            raise FieldError("must be null: imports of PE images have no version", f".imports[{index}].version")
        if item.library is None or item.library != item.library.lower():
            raise FieldError("must be the name of a DLL in lower case", f".imports[{index}].library")


def _validate_target(target: Target) -> None:
    if target.payload != f"payload/{target.build_id}.bin":
        raise FieldError("must be named after the build-id", ".payload")
    if not target.functions and not target.hooks:
        raise FieldError("must replace at least one function, or have a hook", ".functions")
    if target.policy == "entry" and target.policy_reason is None:
        raise FieldError("must say why the entry policy is safe here", ".policy_reason")
    _validate_segments(target)
    by_kind = {segment.kind: segment for segment in target.segments}
    code = by_kind["code"]
    for index, function in enumerate(target.functions):
        with _at(f".functions[{index}]"):
            _validate_function(function, code)
    _validate_entries(target.functions)
    _validate_relocations(target, code)
    for index, symbol in enumerate(target.symbols):
        if not any(
            s.offset <= symbol.offset and symbol.offset + symbol.size <= s.offset + s.size for s in by_kind.values()
        ):
            raise FieldError("must lie in one segment", f".symbols[{index}]")
    for name, offset in target.hooks:
        if not code.offset <= offset < code.offset + code.file_size:
            raise FieldError("must lie in the code segment", f".hooks.{name}")
    if target.unwind is not None and not _in_file_part(target.segments, target.unwind.offset, target.unwind.size):
        raise FieldError("must lie in the part of one segment that comes from the file", ".unwind")


def _validate_segments(target: Target) -> None:
    """One segment a kind, page-aligned, without gaps, each backed by its own part of the payload."""
    expected = 0
    file_parts: list[tuple[int, int]] = []
    for index, segment in enumerate(target.segments):
        with _at(f".segments[{index}]"):
            if segment.offset % PAGE:
                raise FieldError(f"must be a multiple of {PAGE}", ".offset")
            if segment.offset != expected:
                raise FieldError(f"must be {expected}, where the segment before ends", ".offset")
            if segment.file_size > segment.size:
                raise FieldError("must not be larger than the segment", ".file_size")
            if segment.file_offset + segment.file_size > target.payload_size:
                raise FieldError("must lie inside the payload", ".file_offset")
            expected = round_up(segment.offset + segment.size)
            file_parts.append((segment.file_offset, segment.file_size))
    if expected > MAX_MEMORY:
        raise FieldError(f"must take at most {MAX_MEMORY} bytes of memory, take {expected}", ".segments")
    kinds = [segment.kind for segment in target.segments]
    if len(set(kinds)) != len(kinds):
        raise FieldError("must have at most one segment of each kind", ".segments")
    if "code" not in kinds:
        raise FieldError("must have a code segment", ".segments")
    if _overlap(file_parts) is not None:
        raise FieldError("must not share bytes of the payload", ".segments")


def _validate_function(function: Function, code: Segment) -> None:
    for index, part in enumerate(function.ranges):
        if part.vaddr + part.size - 1 > MAX_VADDR:
            raise FieldError("must end inside the address space", f".ranges[{index}].size")
    if _overlap([(part.vaddr, part.size) for part in function.ranges]) is not None:
        raise FieldError("must not overlap", ".ranges")
    if function.new_offset < code.offset or function.new_offset + function.new_size > code.offset + code.file_size:
        raise FieldError("must lie in the code segment", ".new_offset")
    entry = function.entry
    if not any(part.vaddr <= entry.vaddr < part.vaddr + part.size for part in function.ranges):
        raise FieldError("must lie in a range of the function", ".entry.vaddr")
    with _at(".entry"):
        _validate_entry(entry)


def _validate_entry(entry: Entry) -> None:
    expected = NEAR if entry.kind == "near" else SHORT
    if len(entry.before) != expected:
        raise FieldError(f"must be {expected} bytes for a {entry.kind} entry, has {len(entry.before)}", ".before")
    if entry.kind == "near":
        for name, value in (("pad_vaddr", entry.pad_vaddr), ("pad_before", entry.pad_before)):
            if value is not None:
                raise FieldError("must be null for a near entry", f".{name}")
        return
    if entry.pad_vaddr is None:
        raise FieldError(f"is needed for a {entry.kind} entry", ".pad_vaddr")
    if entry.pad_before is None:
        raise FieldError(f"is needed for a {entry.kind} entry", ".pad_before")
    if entry.kind == "hotpatch":
        if entry.vaddr % 2:
            raise FieldError("must be even for a hotpatch entry, so that two bytes are written at once", ".vaddr")
        if entry.pad_vaddr != entry.vaddr - NEAR:
            raise FieldError(f"must be {NEAR} bytes before a hotpatch entry", ".pad_vaddr")
    elif not -128 <= entry.pad_vaddr - (entry.vaddr + SHORT) <= 127:
        raise FieldError("must be in reach of a two-byte jump", ".pad_vaddr")


def entry_writes(entry: Entry) -> tuple[tuple[int, int], ...]:
    """The (vaddr, size) that a trampoline overwrites."""
    if entry.kind == "near":
        return ((entry.vaddr, NEAR),)
    assert entry.pad_vaddr is not None  # validated above
    return ((entry.vaddr, SHORT), (entry.pad_vaddr, NEAR))


def _validate_entries(functions: Sequence[Function]) -> None:
    """No two trampolines overwrite the same bytes, and none writes into another function that is replaced.

    Bytes after the function's own end may be written: padding there is the author's to prove, by ``before``.
    """
    writes: list[tuple[int, int]] = []
    owners: list[int] = []
    for index, function in enumerate(functions):
        for write in entry_writes(function.entry):
            if sum(write) - 1 > MAX_VADDR:
                raise FieldError("must end inside the address space", f".functions[{index}].entry")
            writes.append(write)
            owners.append(index)
    clash = _overlap(writes)
    if clash is not None:
        path = f".functions[{owners[clash[1]]}].entry"
        raise FieldError(f"overwrites bytes that the entry of functions[{owners[clash[0]]}] overwrites too", path)
    order = sorted((write, owner) for write, owner in zip(writes, owners, strict=True))
    for other, function in enumerate(functions):
        for part in function.ranges:
            first = bisect_right(order, part.vaddr - NEAR, key=lambda item: item[0][0])
            for (vaddr, size), owner in islice(order, first, None):
                begin, end = max(vaddr, part.vaddr), min(vaddr + size, part.vaddr + part.size)
                if vaddr >= part.vaddr + part.size:
                    break
                if owner != other and begin < end and not _covers(functions[owner], begin, end):
                    raise FieldError(f"overwrites code of functions[{other}]", f".functions[{owner}].entry")


def _covers(function: Function, begin: int, end: int) -> bool:
    """Whether the function's own ranges have these bytes too (shared children)."""
    return any(part.vaddr <= begin and end <= part.vaddr + part.size for part in function.ranges)


def _validate_relocations(target: Target, code: Segment) -> None:
    relocations = target.relocations
    places = [(relocation.offset, _FIELD_SIZE[relocation.form]) for relocation in relocations]
    clash = _overlap(places)
    if clash is not None:
        raise FieldError(f"overlaps with relocations[{clash[0]}]", f".relocations[{clash[1]}]")
    end = max(segment.offset + segment.size for segment in target.segments)
    for index, (relocation, (offset, size)) in enumerate(zip(relocations, places, strict=True)):
        reason = _relocation_fault(relocation, len(target.imports), end, _slot_alignment(target))
        if reason is None and not _in_file_part(target.segments, offset, size):
            reason = "must lie in the part of one segment that comes from the file"
        if reason is None and relocation.branch and not _in_file_part((code,), offset, size):
            reason = "must not be a branch outside of the code"
        if reason is not None:
            raise FieldError(reason, f".relocations[{index}]")


def _slot_alignment(target: Target) -> int:
    """Import libraries of dlltool leave slots of PE images at any multiple of four bytes."""
    return 4 if target.build_id.startswith("pe-") else 8


def _relocation_fault(relocation: Relocation, imports: int, end: int, alignment: int) -> str | None:
    """What is wrong with target, form and branch of a relocation, or None."""
    if relocation.branch and (relocation.form != "pc32" or relocation.kind == "slot"):
        return "must not be a branch: a branch is a pc32 field that leads to code"
    if relocation.kind == "import" and relocation.target >= imports:
        return f"refers to import {relocation.target}, but there are {imports}"
    if relocation.kind == "payload" and relocation.target > end:
        return "refers to a place behind the end of the payload"
    if relocation.kind == "slot" and relocation.target % alignment:
        return f"refers to a slot that is not aligned to {alignment} bytes"
    return None


def _in_file_part(segments: Iterable[Segment], offset: int, size: int) -> bool:
    return any(s.offset <= offset and offset + size <= s.offset + s.file_size for s in segments)


def _overlap(parts: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Indices of two parts (start, size) that overlap, the lower first; None when all are apart. Empty ones do not."""
    order = sorted((part, index) for index, part in enumerate(parts) if part[1])
    for ((start, size), one), ((other, _), two) in pairwise(order):
        if start + size > other:
            return min(one, two), max(one, two)
    return None


def round_up(size: int) -> int:
    """To whole pages."""
    return -(-size // PAGE) * PAGE


@contextmanager
def _at(step: str) -> Iterator[None]:
    try:
        yield
    except FieldError as error:
        raise error.inside(step) from None
