"""The ledger: the record inside the target process of what was patched, from which anyone can finish or undo it.

It is the first page (or pages) of the memory that a hotpatch maps, read-only for the target, and found by its magic. A
fixed header (little endian) holds what changes; the body, JSON compressed with zlib under a SHA-256, is written once:

    0   16s  magic "MIDFLIGHT\\0LEDGER" (in processes of Windows "MIDFLIGHT\\0LEDGPE")
    16  u32  format (1)         20  u32  header size (256)
    24  u64  state              one aligned 8-byte write moves it on
    32  u64  region size        40  u64  body offset    48  u64  body length    56  32s  SHA-256 of the body
    88  u64  order              position in the process's stack of hotpatches; higher is later
    96  u64  applied at         104 u64  stopped for        nanoseconds (Unix time; duration)
    112 u64  reverted at        120 u64  stopped for, by the revert
    128 u64  flags              bit 0: the payload's unwind data is (about to be) registered
                                bit 1: and about to be taken back
                                bit 2: and the system has said that it is (PE)

The header is the same for ever; a later format may add fields after offset 136 and keys to the body.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

from midflight.errors import ProcessError
from midflight.process.model import ImageFormat, Mapping, Process

PAGE = 4096
MAGICS: dict[ImageFormat, bytes] = {"elf": b"MIDFLIGHT\0LEDGER", "pe": b"MIDFLIGHT\0LEDGPE"}
"""Apart for each system: a Windows program under Wine is a process of Linux too, and is nobody's business there."""
FORMAT = 1
HEADER_SIZE = 256
STATE_OFFSET = 24
_APPLIED_OFFSET = 96
_REVERTED_OFFSET = 112
FLAGS_OFFSET = 128
FLAG_UNWIND = 1
FLAG_DEREGISTERING = 2
FLAG_REGISTERED = 4
_HEADER = struct.Struct("<16sIIQQQQ32sQQQQQQ")
_U64 = struct.Struct("<Q")
_LARGEST_BODY = 16 << 20
_LARGEST_REGION = 1 << 30
# Memory of ours is small; larger read-only anonymous mappings are looked at on their first pages only.
_PAGES_SEARCHED = 256


class LedgerError(ProcessError):
    """A ledger is damaged or of a future format; nothing is done on the strength of it."""


class State(IntEnum):
    """How far a transaction got. Only COMMITTING and REVERTING are left by a killed engine with work to do."""

    PREPARED = 1
    COMMITTING = 2
    APPLIED = 3
    REVERTING = 4
    RETIRED = 5
    """Nothing leads here any more; the memory stays because something may still refer to it."""


@dataclass(frozen=True, slots=True)
class Write:
    """One small write into code: ``before`` is what a revert puts back, ``undo`` what this transaction found."""

    address: int
    before: bytes
    undo: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class PatchedFunction:
    """One replaced function, in addresses of this process."""

    name: str
    old: tuple[tuple[int, int], ...]
    """(address, size) of its ranges in the image."""
    new: tuple[int, int]
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class MappedSegment:
    """One segment of the payload as mapped; ``sha256`` is over its linked contents (empty for data)."""

    kind: str
    address: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """The body of a ledger: everything that stays the same from the moment it is prepared."""

    name: str
    sequence: int
    digest: str
    """SHA-256 of the hotpatch file."""
    description: str
    cves: tuple[str, ...]
    image_name: str
    build_id: str
    bias: int
    functions: tuple[PatchedFunction, ...]
    segments: tuple[MappedSegment, ...]
    symbols: tuple[tuple[str, int, int], ...]
    """(name, address, size)"""
    unwind: tuple[int, int] | None
    """(address, size) of .eh_frame; of a PE image, of the table of functions"""
    unwind_object: int | None
    """Address of the unwinder's own record, in the writable page behind the payload; of a PE image, of the code there
    that registers the payload."""
    hooks: tuple[tuple[str, int], ...]
    replaces: tuple[int, ...]
    """Bases of the ledgers that this one replaces."""
    restores: tuple[Write, ...]
    """Entries of replaced hotpatches that this one does not patch: back to disk."""
    escapes: bool
    policy: str
    by: str
    engine: str

    def writes(self) -> tuple[Write, ...]:
        """All writes, in the order in which they are made (they are undone in the reverse order)."""
        return tuple(w for f in self.functions for w in f.writes) + self.restores


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger as found in a process: where, in which state, and its record."""

    base: int
    size: int
    state: State
    order: int
    applied_at: int
    stopped: int
    reverted_at: int
    revert_stopped: int
    flags: int
    record: Record

    @property
    def in_force(self) -> bool:
        """Whether callers reach its new code."""
        return self.state is State.APPLIED

    def covers(self, address: int) -> bool:
        """Whether ``address`` lies in its memory."""
        return self.base <= address < self.base + self.size


def encode(record: Record) -> bytes:
    """The body of a ledger."""
    return zlib.compress(json.dumps(record, default=_plain, separators=(",", ":")).encode(), 6)


def _plain(value: Any) -> Any:
    """What JSON has no word for. (``asdict`` would copy everything once more, for each of a thousand processes.)"""
    if isinstance(value, bytes):
        return value.hex()
    return {one.name: getattr(value, one.name) for one in fields(value)}


def header_pages(record: Record) -> int:
    """Bytes (whole pages) that the ledger of ``record`` takes."""
    return -(-(HEADER_SIZE + len(encode(record)) + 64) // PAGE) * PAGE


def build(record: Record, region: int, order: int, images: ImageFormat) -> bytes:
    """Header and body of a new ledger in state PREPARED, for a region of ``region`` bytes."""
    body = encode(record)
    header = _HEADER.pack(
        MAGICS[images], FORMAT, HEADER_SIZE, State.PREPARED, region, HEADER_SIZE, len(body),
        hashlib.sha256(body).digest(), order, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return header.ljust(HEADER_SIZE, b"\0") + body


def _function(raw: dict[str, Any]) -> PatchedFunction:
    return PatchedFunction(
        raw["name"],
        tuple((int(a), int(s)) for a, s in raw["old"]),
        (int(raw["new"][0]), int(raw["new"][1])),
        tuple(_write(w) for w in raw["writes"]),
    )


def _write(raw: dict[str, Any]) -> Write:
    before, undo, after = (bytes.fromhex(raw[k]) for k in ("before", "undo", "after"))
    if not 1 <= len(before) <= 16 or not len(before) == len(undo) == len(after):
        raise ValueError("a write has impossible lengths")
    return Write(int(raw["address"]), before, undo, after)


def decode(body: bytes) -> Record:
    """The record in a body.

    Raises:
        LedgerError: damaged.
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(body, _LARGEST_BODY)
        if inflater.unconsumed_tail:
            raise ValueError("too large")
        raw = json.loads(text)
        pair = raw["unwind"]
        return Record(
            name=str(raw["name"]),
            sequence=int(raw["sequence"]),
            digest=str(raw["digest"]),
            description=str(raw["description"]),
            cves=tuple(str(c) for c in raw["cves"]),
            image_name=str(raw["image_name"]),
            build_id=str(raw["build_id"]),
            bias=int(raw["bias"]),
            functions=tuple(_function(f) for f in raw["functions"]),
            segments=tuple(
                MappedSegment(str(s["kind"]), int(s["address"]), int(s["size"]), str(s["sha256"]))
                for s in raw["segments"]
            ),
            symbols=tuple((str(n), int(a), int(s)) for n, a, s in raw["symbols"]),
            unwind=(int(pair[0]), int(pair[1])) if pair else None,
            unwind_object=None if raw["unwind_object"] is None else int(raw["unwind_object"]),
            hooks=tuple((str(n), int(a)) for n, a in raw["hooks"]),
            replaces=tuple(int(b) for b in raw["replaces"]),
            restores=tuple(_write(w) for w in raw["restores"]),
            escapes=bool(raw["escapes"]),
            policy=str(raw["policy"]),
            by=str(raw["by"]),
            engine=str(raw["engine"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, zlib.error, RecursionError, OverflowError) as error:
        raise LedgerError(f"a ledger's record cannot be read ({error or type(error).__name__})") from error


def parse(base: int, header: bytes, body_of: Any) -> Ledger:
    """A ledger from its header; ``body_of(offset, length)`` gives the body.

    Raises:
        LedgerError: damaged, or of a future format.
    """
    if len(header) < HEADER_SIZE or header[:16] not in MAGICS.values():
        raise LedgerError(f"there is no ledger at {base:#x}")
    (_, form, size, state, region, offset, length, digest, order, applied, stopped, reverted, rstopped, flags) = (
        _HEADER.unpack_from(header)
    )
    if form != FORMAT or size < HEADER_SIZE:
        raise LedgerError(f"the ledger at {base:#x} has format {form}, made by a later Midflight: use that version")
    if not 0 < length <= _LARGEST_BODY or not HEADER_SIZE <= offset <= region or region > _LARGEST_REGION:
        raise LedgerError(f"the ledger at {base:#x} has impossible sizes")
    if offset + length > region or region % PAGE:
        raise LedgerError(f"the ledger at {base:#x} has impossible sizes")
    body = body_of(offset, length)
    if hashlib.sha256(body).digest() != digest:
        raise LedgerError(f"the ledger at {base:#x} was altered (its checksum differs)")
    try:
        known = State(state)
    except ValueError as error:
        raise LedgerError(f"the ledger at {base:#x} is in an unknown state {state}") from error
    return Ledger(base, region, known, order, applied, stopped, reverted, rstopped, flags, decode(body))


def _candidates(maps: Iterable[Mapping]) -> Iterable[tuple[int, int]]:
    for m in maps:
        if not m.readable or m.executable or not m.private or m.inode or m.path:
            continue
        if not m.writable:
            yield m.start, min(m.end, m.start + _PAGES_SEARCHED * PAGE)
        elif m.start == m.allocation:
            # On Windows a ledger is writable for the moment of a change; an engine that is killed then leaves it so.
            yield m.start, m.start + PAGE


def find(process: Process, maps: Iterable[Mapping] | None = None) -> list[Ledger]:
    """All ledgers of a process, the oldest first.

    Raises:
        LedgerError: one is damaged.
    """
    found = []
    for start, end in _candidates(process.maps() if maps is None else maps):
        data = process.read(start, end - start)
        for at in range(0, end - start, PAGE):
            if data.startswith(MAGICS[process.images], at):
                base = start + at

                def body_of(offset: int, length: int, base: int = base) -> bytes:
                    return process.read(base + offset, length)

                found.append(parse(base, data[at : at + HEADER_SIZE], body_of))
    return sorted(found, key=lambda ledger: ledger.order)


def set_state(process: Process, ledger: Ledger, state: State) -> Ledger:
    """Move a ledger on, by one aligned write that cannot be seen half-done."""
    process.write(ledger.base + STATE_OFFSET, _U64.pack(state))
    return replace(ledger, state=state)


def set_flags(process: Process, ledger: Ledger, flags: int) -> Ledger:
    """Note, for instance, that unwind data is registered."""
    process.write(ledger.base + FLAGS_OFFSET, _U64.pack(flags))
    return replace(ledger, flags=flags)


def note_apply(process: Process, ledger: Ledger, at: int, stopped: int) -> Ledger:
    """Note when it was applied and for how many nanoseconds the process stood still."""
    process.write(ledger.base + _APPLIED_OFFSET, struct.pack("<QQ", at, stopped))
    return replace(ledger, applied_at=at, stopped=stopped)


def note_revert(process: Process, ledger: Ledger, at: int, stopped: int) -> Ledger:
    """The same for a revert."""
    process.write(ledger.base + _REVERTED_OFFSET, struct.pack("<QQ", at, stopped))
    return replace(ledger, reverted_at=at, revert_stopped=stopped)
