"""Everything that can be done before anything stops: memory, the linked payload, the ledger in state PREPARED."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from midflight import __version__
from midflight.engine import journal, placement, system
from midflight.engine.ledger import (
    FLAG_DEREGISTERING,
    FLAG_UNWIND,
    PAGE,
    Ledger,
    MappedSegment,
    PatchedFunction,
    Record,
    Write,
    build,
    header_pages,
    parse,
)
from midflight.engine.linker import Islands, LinkedSegment, link, rel32
from midflight.engine.plan import FunctionPlan, Hotpatch, Plan
from midflight.errors import EngineError, ProcessError
from midflight.process.faults import point
from midflight.process.model import AddressTaken, Process, Protection

_PROTECTION: dict[str, Protection] = {"code": "rx", "rodata": "r", "data": "rw"}
_ANYWHERE = 1 << 46
_ATTEMPTS = 64
_NEAR_JUMP, _SHORT_JUMP = b"\xe9", b"\xeb"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with its ledger in the process. ``fresh`` tells memory of this transaction from memory used again."""

    plan: Plan
    ledger: Ledger
    fresh: bool


def who() -> str:
    """The person (or service) that this transaction is noted for: user@host."""
    names = (os.environ.get(name) for name in ("SUDO_USER", "LOGNAME", "USER", "USERNAME"))
    user = next((name for name in names if name), None) or f"uid {os.geteuid() if hasattr(os, 'geteuid') else '?'}"
    return f"{user}@{os.uname().nodename if hasattr(os, 'uname') else os.environ.get('COMPUTERNAME', '?')}"


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _near_jump(at: int, target: int, islands: Islands | None) -> bytes:
    displacement = rel32(at + 5, target)
    if displacement is None and islands is not None:
        displacement = rel32(at + 5, islands.to(target))
    if displacement is None:
        raise EngineError(f"the new code at {target:#x} is out of reach of the entry at {at:#x}")
    return _NEAR_JUMP + displacement


def _writes(function: FunctionPlan, new: int, islands: Islands | None) -> tuple[Write, ...]:
    writes = []
    for site in function.sites:
        if len(site.before) == 5:
            after = _near_jump(site.address, new, islands)
        else:
            distance = function.sites[0].address - (site.address + 2)
            if not -128 <= distance < 128:
                raise EngineError(f"{function.function.name}: its padding is out of reach of a short jump")
            after = _SHORT_JUMP + distance.to_bytes(1, "little", signed=True)
        writes.append(Write(site.address, site.before, site.now, after))
    return tuple(writes)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things go: one region, and a page of islands when the region is far away."""

    region: int
    size: int
    payload: int
    islands: Islands | None
    unwind_object: int | None
    calls: bytes
    """Code that the page behind the payload holds; empty: it is the unwinder's own, to write to."""


def _record(
    plan: Plan, hotpatch: Hotpatch, layout: _Layout, segments: Sequence[LinkedSegment], sites: Islands | None
) -> Record:
    manifest, target, base = hotpatch.manifest, plan.target, layout.payload
    bias = plan.module.bias
    functions = tuple(
        PatchedFunction(
            f.function.name,
            tuple((bias + r.vaddr, r.size) for r in f.function.ranges),
            (base + f.function.new_offset, f.function.new_size),
            _writes(f, base + f.function.new_offset, sites),
        )
        for f in plan.functions
    )
    mapped = [
        MappedSegment(
            s.kind,
            s.address,
            _pages(s.size),
            "" if s.kind == "data" else hashlib.sha256(s.contents.ljust(_pages(s.size), b"\0")).hexdigest(),
        )
        for s in segments
    ]
    if layout.islands is not None:
        whole = bytes(layout.islands.contents).ljust(PAGE, b"\0")
        mapped.append(MappedSegment("island", layout.islands.base, PAGE, hashlib.sha256(whole).hexdigest()))
    if layout.calls and layout.unwind_object is not None:
        mapped.append(
            MappedSegment(
                "calls", layout.unwind_object, PAGE, hashlib.sha256(layout.calls.ljust(PAGE, b"\0")).hexdigest()
            )
        )
    unwind = target.unwind
    return Record(
        name=manifest.name,
        sequence=manifest.sequence,
        digest=hotpatch.digest,
        description=manifest.description,
        cves=manifest.cves,
        image_name=target.image_name,
        build_id=target.build_id,
        bias=bias,
        functions=functions,
        segments=tuple(mapped),
        symbols=tuple((s.name, base + s.offset, s.size) for s in target.symbols if s.type == "func"),
        unwind=(base + unwind.offset, unwind.size) if unwind else None,
        unwind_object=layout.unwind_object,
        hooks=tuple((name, base + offset) for name, offset in target.hooks),
        replaces=tuple(ledger.base for ledger in plan.replaces),
        restores=plan.restores,
        escapes=target.escapes,
        policy=target.policy,
        by=who(),
        engine=__version__,
    )


def _assemble(
    plan: Plan,
    hotpatch: Hotpatch,
    region: int,
    islands_at: int | None,
    imports: Sequence[int],
    unwinder: system.Unwinder | None,
) -> tuple[_Layout, Record, tuple[LinkedSegment, ...]]:
    """Link the payload for one place. The ledger's own size depends on its contents, which name the place."""
    span = max(_pages(s.offset + s.size) for s in plan.target.segments)
    header = PAGE
    while True:
        islands = Islands(islands_at, PAGE) if islands_at is not None else None
        base = region + header
        unwind = plan.target.unwind if unwinder else None
        record_at = base + span if unwind else None
        calls = unwinder.calls(base + unwind.offset, unwind.size, base) if unwinder and unwind else b""
        layout = _Layout(region, header + span + (PAGE if unwind else 0), base, islands, record_at, calls)
        segments = link(plan.target, plan.payload, base, plan.module.bias, imports, islands)
        record = _record(plan, hotpatch, layout, segments, islands)
        if islands is not None:
            # The jumps of the entries were added to the page while the record was made.
            record = _record(plan, hotpatch, layout, segments, islands)
        needed = header_pages(record)
        if needed <= header:
            return layout, record, segments
        header = needed


def _region_size(plan: Plan, hotpatch: Hotpatch, imports: Sequence[int], unwinder: system.Unwinder | None) -> int:
    near = plan.module.start & -PAGE
    return _assemble(plan, hotpatch, near, near, imports, unwinder)[0].size + PAGE


def _parts(plan: Plan, layout: _Layout) -> tuple[tuple[int, Protection], ...]:
    parts: list[tuple[int, Protection]] = [(layout.payload - layout.region, "r")]
    at = 0
    for segment in sorted(plan.target.segments, key=lambda s: s.offset):
        if segment.offset > at:
            parts.append((segment.offset - at, "r"))
        parts.append((_pages(segment.size), _PROTECTION[segment.kind]))
        at = segment.offset + _pages(segment.size)
    if layout.unwind_object is not None:
        parts.append((PAGE, "rx" if layout.calls else "rw"))
    return tuple(parts)


_Regions = Sequence[tuple[int, Sequence[tuple[int, Protection]]]]


def _unmap(process: Process, regions: _Regions) -> None:
    for address, parts in regions:
        process.unmap_memory(address, sum(size for size, _ in parts))


def _map(process: Process, regions: _Regions) -> None:
    for number, (address, parts) in enumerate(regions):
        try:
            process.map_memory(address, parts)
        except ProcessError:
            _unmap(process, regions[:number])
            raise


def _fill(process: Process, layout: _Layout, record: Record, segments: Sequence[LinkedSegment], order: int) -> Ledger:
    for segment in segments:
        if segment.contents:
            process.write(segment.address, segment.contents)
        point("segment-written")
    if layout.islands is not None:
        process.write(layout.islands.base, bytes(layout.islands.contents))
    if layout.calls and layout.unwind_object is not None:
        process.write(layout.unwind_object, layout.calls)
    ledger = build(record, layout.size, order, process.images)
    # The magic comes last: a region is a ledger's when everything in it is there.
    process.write(layout.region + 16, ledger[16:])
    point("ledger-body-written")
    process.write(layout.region, ledger[:16])
    point("ledger-written")
    return parse(layout.region, ledger[:256], lambda offset, length: ledger[offset : offset + length])


def _places(process: Process, plan: Plan, size: int) -> list[tuple[int, int | None]]:
    """(region, islands) to try: near the image, or far away with islands near it."""
    maps = process.maps()
    image = (plan.module.start, plan.module.end)
    unit = process.granularity
    near = list(placement.candidates(maps, image, size, unit=unit))[:_ATTEMPTS]
    if near:
        return [(region, None) for region in near]
    far = list(placement.candidates(maps, image, size, _ANYWHERE, unit))[:_ATTEMPTS]
    islands = placement.candidates(maps, image, PAGE, unit=unit)
    places: list[tuple[int, int | None]] = [(region, island) for island in islands for region in far]
    return places[:_ATTEMPTS]


def prepare(
    process: Process,
    plan: Plan,
    hotpatch: Hotpatch,
    imports: Sequence[int],
    unwinder: system.Unwinder | None,
    order: int,
) -> Prepared:
    """Bring the payload and its ledger into the process; nothing leads there yet.

    Raises:
        EngineError, ProcessError: it could not be done; nothing of it is left in the process.
    """
    again = _again(process, plan, hotpatch, imports, unwinder)
    if again is not None:
        return Prepared(plan, again, False)
    size = _region_size(plan, hotpatch, imports, unwinder)
    for region, islands_at in _places(process, plan, size):
        layout, record, segments = _assemble(plan, hotpatch, region, islands_at, imports, unwinder)
        regions: list[tuple[int, tuple[tuple[int, Protection], ...]]] = [(region, _parts(plan, layout))]
        if islands_at is not None:
            regions.append((islands_at, ((PAGE, "rx"),)))
        announcement = journal.Announcement(process.pid, process.start_time, tuple(regions))
        journal.announce(announcement)
        point("announced")
        try:
            _map(process, regions)
            point("mapped")
            try:
                return Prepared(plan, _fill(process, layout, record, segments, order), True)
            except ProcessError:
                _unmap(process, regions)
                raise
        except AddressTaken:
            continue
        finally:
            journal.withdraw(announcement)
    raise EngineError(
        f"process {process.pid}: there is no free memory within reach of {plan.module.path}: "
        "restart it with a fixed build"
    )


def _again(
    process: Process, plan: Plan, hotpatch: Hotpatch, imports: Sequence[int], unwinder: system.Unwinder | None
) -> Ledger | None:
    """Memory of an earlier life of this hotpatch, when it is exactly what would be made now."""
    old = plan.retired
    if old is None:
        return None
    islands_at = next((s.address for s in old.record.segments if s.kind == "island"), None)
    try:
        layout, record, _ = _assemble(plan, hotpatch, old.base, islands_at, imports, unwinder)
    except EngineError:
        return None
    same = replace(record, by=old.record.by, engine=old.record.engine)
    if layout.size != old.size or same != old.record or not intact(process, old):
        return None
    if old.flags & FLAG_DEREGISTERING or (old.flags & FLAG_UNWIND and not system.registered(process, old)):
        # An engine was killed around the registration: what the unwinder knows is not for us to guess.
        return None
    return old


def intact(process: Process, ledger: Ledger) -> bool:
    """Whether code and constants of a payload are as they were linked."""
    return all(_holds(process, s.address, s.size, s.sha256) for s in ledger.record.segments if s.sha256)


def discard(process: Process, ledger: Ledger) -> None:
    """Give back the memory of a hotpatch that nothing leads to and nobody is in."""
    for s in ledger.record.segments:
        # After a kill in the middle of this the page may be gone, and its address somebody else's.
        if s.kind == "island" and _holds(process, s.address, s.size, s.sha256):
            process.unmap_memory(s.address, s.size)
            point("island-unmapped")
    process.unmap_memory(ledger.base, ledger.size)


def _holds(process: Process, address: int, size: int, sha256: str) -> bool:
    try:
        return hashlib.sha256(process.read(address, size)).hexdigest() == sha256
    except ProcessError:
        return False
