"""Compares the code memory of a process with disk plus ledger. Anything else is unexplained, and named byte by byte.

All executable mappings count: pages of files against the very files that are mapped (deleted or replaced ones too), the
payloads against the digests in their ledgers. Code that no file and no ledger describes is reported as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import PAGE, Ledger
from midflight.engine.prepare import intact
from midflight.errors import ImageError, ProcessError
from midflight.process.model import Mapping, Process

# Made by the kernel for every process; nobody can write there.
_KERNELS_OWN = ("[vdso]", "[vsyscall]")
_CHUNK = 1 << 20
_JUMP, _INDIRECT_JUMP = 0xE9, b"\xff\x25"
_SHOWN = 32


@dataclass(frozen=True, slots=True)
class Difference:
    """A byte range that neither disk nor ledger explains."""

    start: int
    size: int
    where: str
    expected: str
    """Hex, at most 32 bytes; empty when nothing is expected there at all."""
    found: str
    guess: str
    """What it looks like: a breakpoint, a jump to …"""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one process."""

    pid: int
    compared: int
    """Bytes of code compared."""
    explained: int
    """Bytes that differ from disk as the ledger says."""
    differences: tuple[Difference, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether everything is explained."""
        return not self.differences and not self.unreadable


def _guess(found: bytes, low: int, high: int, start: int) -> str:
    """What a difference in [low, high) of ``found`` (which begins at ``start``) looks like."""
    if found[low:high] == b"\xcc":
        return "a breakpoint (int3)"
    # A jump may differ in its displacement only: its opcode then stands up to four bytes before.
    for at in range(low, max(low - 5, -1), -1):
        if found[at] == _JUMP and at + 5 <= len(found):
            to = start + at + 5 + int.from_bytes(found[at + 1 : at + 5], "little", signed=True)
            return f"a jump to {to:#x}: an inline hook"
    return "an indirect jump: an inline hook" if found[low : low + 2] == _INDIRECT_JUMP else "altered code"


def _ranges(expected: bytes, found: bytes) -> Iterator[tuple[int, int]]:
    """Byte ranges that differ; differences closer than eight bytes are one."""
    if expected == found:
        return
    start = end = -1
    for at in range(0, len(expected), 64):
        if expected[at : at + 64] == found[at : at + 64]:
            continue
        for index in range(at, min(at + 64, len(expected))):
            if expected[index] != found[index]:
                if start < 0:
                    start = index
                elif index - end > 8:
                    yield start, end
                    start = index
                end = index + 1
    if start >= 0:
        yield start, end


def _expected(ledgers: Sequence[Ledger], start: int, disk: bytes) -> tuple[bytes, int]:
    """What should stand there, given the file's bytes; and how many bytes the ledgers account for."""
    data = bytearray(disk)
    explained = 0
    for ledger in ledgers:
        if ledger.in_force:
            for write in ledger.record.writes():
                at = write.address - start
                if at >= 0 and at + len(write.after) <= len(data) and write.after != data[at : at + len(write.after)]:
                    data[at : at + len(write.after)] = write.after
                    explained += len(write.after)
    return bytes(data), explained


class _Check:
    def __init__(self, process: Process, ledgers: Sequence[Ledger]) -> None:
        self.process = process
        self.ledgers = ledgers
        self.compared = 0
        self.explained = 0
        self.differences: list[Difference] = []
        self.unreadable: list[str] = []

    def file(self, m: Mapping) -> None:
        """One mapping of a file."""
        if self.process.images == "pe":
            self._pe(m)
            return
        try:
            handle = os.open(self.process.module_path(m), os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ProcessError) as error:
            self.unreadable.append(f"{m.path} at {m.start:#x} cannot be compared with its file: {error}")
            return
        try:
            for at in range(m.start, m.end, _CHUNK):
                size = min(_CHUNK, m.end - at)
                disk = os.pread(handle, size, m.offset + at - m.start)
                disk = disk.ljust(-(-len(disk) // PAGE) * PAGE, b"\0")[:size]
                if disk:
                    self._compare(at, disk, m.path)
        finally:
            os.close(handle)

    def _pe(self, m: Mapping) -> None:
        """The same for a part of a PE image; what is compared with is relocated first."""
        from midflight.engine.pedisk import open_disk_image
        from midflight.engine.pemodules import identity

        base = m.start - m.offset
        try:
            with open_disk_image(self.process.module_path(m), base, identity(self.process, base)) as disk:
                for at in range(m.start, m.end, _CHUNK):
                    self._compare(at, disk.read(at - base, min(_CHUNK, m.end - at)), m.path)
        except (OSError, ImageError) as error:
            self.unreadable.append(f"{m.path} at {m.start:#x} cannot be compared with its file: {error}")

    def _compare(self, start: int, disk: bytes, path: str) -> None:
        found = self.process.read(start, len(disk))
        self.compared += len(disk)
        # The forge never lays an entry across pages, so none lies across two chunks.
        expected, explained = _expected(self.ledgers, start, disk)
        self.explained += explained
        for low, high in _ranges(expected, found):
            self.differences.append(
                Difference(
                    start + low,
                    high - low,
                    path,
                    expected[low:high][:_SHOWN].hex(),
                    found[low:high][:_SHOWN].hex(),
                    _guess(found, low, high, start),
                )
            )

    def anonymous(self, m: Mapping) -> None:
        """One mapping without a file: ours, or unexplained."""
        segments = [
            s for ledger in self.ledgers for s in ledger.record.segments if s.kind in ("code", "island", "calls")
        ]
        at = m.start
        for segment in sorted((s for s in segments if m.start <= s.address < m.end), key=lambda s: s.address):
            if segment.address > at:
                self._foreign(at, segment.address, m)
            at = segment.address + segment.size
        if at < m.end:
            self._foreign(at, m.end, m)

    def _foreign(self, start: int, end: int, m: Mapping) -> None:
        data = self.process.read(start, min(end - start, _SHOWN))
        guess = "writable and executable" if m.writable else "generated code (a JIT compiler), or injected"
        self.differences.append(Difference(start, end - start, m.path or "anonymous memory", "", data.hex(), guess))

    def payloads(self) -> None:
        """What our own memory holds against its digests."""
        for ledger in self.ledgers:
            self.compared += sum(s.size for s in ledger.record.segments if s.sha256)
            if not intact(self.process, ledger):
                record = ledger.record
                self.differences.append(
                    Difference(
                        ledger.base, ledger.size, f"hotpatch {record.name} {record.sequence}", "", "", "altered payload"
                    )
                )


def check(process: Process) -> Report:
    """Compare one process.

    Raises:
        ProcessError: it cannot be read, or a ledger is damaged.
    """
    maps = process.maps()
    ledgers = ledgers_of.find(process, maps)
    work = _Check(process, ledgers)
    for m in maps:
        if not m.executable or m.path in _KERNELS_OWN:
            continue
        if m.inode:
            work.file(m)
        else:
            work.anonymous(m)
    work.payloads()
    return Report(
        process.pid, work.compared, work.explained, tuple(work.differences), tuple(work.unreadable)
    )  # fmt: skip
