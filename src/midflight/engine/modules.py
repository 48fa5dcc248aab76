"""What a process has loaded: which files, at which addresses, with which build-ids, and how their frames unwind."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from midflight.errors import ImageError, ProcessError, ProcessGone
from midflight.image import unwind
from midflight.image.elf import ElfFile
from midflight.image.layout import PAGE
from midflight.process.model import Mapping, Process

FileKey = tuple[int, int, int, int]
_VDSO = "[vdso]"
_PT_LOAD = 1


@dataclass(frozen=True, slots=True)
class Module:
    """One instance of one file in one process (a file loaded twice is two modules)."""

    path: str
    file: FileKey | None
    """Device, inode, size and time of change; None for the vDSO."""
    bias: int
    mappings: tuple[Mapping, ...]

    @property
    def start(self) -> int:
        """First address."""
        return self.mappings[0].start

    @property
    def end(self) -> int:
        """Address behind the last."""
        return self.mappings[-1].end


class Files:
    """The binaries that were opened, each once however many processes map it. ``close`` when done."""

    def __init__(self) -> None:
        self._images: dict[FileKey, ElfFile | None] = {}

    def image(self, process: Process, mapping: Mapping) -> tuple[FileKey, ElfFile | None]:
        """The file behind a mapping; None when it is no ELF file that we can read.

        Raises:
            ProcessError: it cannot be opened at all.
        """
        path = process.module_path(mapping)
        try:
            status = os.stat(path)
        except OSError as error:
            process.maps()  # raises ProcessGone when it is that
            raise ProcessError(f"process {process.pid}: cannot open {mapping.path} ({error.strerror})") from error
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._images:
            try:
                self._images[key] = ElfFile.open(path)
            except ImageError:
                self._images[key] = None
        return key, self._images[key]

    def __len__(self) -> int:
        return len(self._images)

    def opened(self, key: FileKey) -> ElfFile | None:
        """The file that ``image`` opened under ``key``."""
        return self._images[key]

    def close(self) -> None:
        """Let go of all files."""
        for elf in self._images.values():
            if elf is not None:
                elf.close()
        self._images.clear()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _by_file(maps: Iterable[Mapping]) -> Iterable[list[Mapping]]:
    groups: dict[tuple[tuple[int, int], int], list[Mapping]] = {}
    for m in maps:
        if m.inode and m.private:
            groups.setdefault((m.device, m.inode), []).append(m)
    return groups.values()


def _belongs(elf: ElfFile, m: Mapping, bias: int) -> bool:
    """Whether a mapping of the file is (a part of) a segment that is loaded with ``bias``."""
    return any(
        segment.type == _PT_LOAD
        and segment.offset & -PAGE <= m.offset < segment.offset + max(segment.file_size, 1)
        and m.start == bias + segment.address - segment.offset + m.offset
        for segment in elf.segments
    )


class Modules:
    """The modules of one process at one moment."""

    def __init__(self, process: Process, maps: Sequence[Mapping], files: Files) -> None:
        self.process = process
        self.maps = maps
        self.files = files
        self.all: list[Module] = []
        for group in _by_file(maps):
            if any(m.executable for m in group):
                self.all.extend(self._instances(group))
        self.all.sort(key=lambda module: module.start)
        self._starts = [module.start for module in self.all]
        self._vdso: tuple[int, int, unwind.FrameTable | None] | None = None
        self._payloads: dict[int, tuple[int, tuple[int, int]]] = {}
        self._tables: dict[int, unwind.FrameTable] = {}

    def _instances(self, group: list[Mapping]) -> list[Module]:
        code = next(m for m in group if m.executable)
        try:
            key, elf = self.files.image(self.process, code)
        except ProcessGone:
            raise
        except ProcessError:
            return []
        if elf is None:
            return []
        instances: dict[int, list[Mapping]] = {}
        for m in group:
            if m.executable:
                try:
                    instances.setdefault(elf.load_bias(m.start, m.offset, True), [])
                except ImageError:
                    continue
        for m in group:
            # A page of the file that two segments share (the end of .rodata, the start of .data) is mapped twice, and
            # its offset alone does not tell which is which: the bias of the code does.
            bias = next((bias for bias in instances if _belongs(elf, m, bias)), None)
            if bias is not None:
                instances[bias].append(m)
        return [
            Module(code.path, key, bias, tuple(found))
            for bias, found in instances.items()
            if any(m.executable for m in found)
        ]

    def image(self, module: Module) -> ElfFile:
        """The file of a module."""
        elf = self.files.opened(module.file) if module.file else None
        if elf is None:
            raise ProcessError(f"process {self.process.pid}: {module.path} is no ELF file")
        return elf

    def with_build_id(self, build_id: str) -> list[Module]:
        """All instances of one image."""
        return [m for m in self.all if self.image(m).build_id == build_id]

    def at(self, address: int) -> Module | None:
        """The module that maps ``address``."""
        index = bisect_right(self._starts, address) - 1
        # Instances may interleave only in theory, but a file mapped inside another's gap is common enough.
        for candidate in reversed(self.all[max(0, index - 3) : index + 1]):
            if any(m.start <= address < m.end for m in candidate.mappings):
                return candidate
        return None

    def add_payload(self, start: int, end: int, eh_frame: tuple[int, int], base: int) -> None:
        """Make code of a hotpatch known: [start, end) unwinds by the .eh_frame at (address, size) in the process.
        ``base`` is where the whole payload begins."""
        self._payloads[start] = (end, eh_frame)

    def frames_at(self, address: int) -> unwind.Unwinds | None:
        """How to unwind the code at ``address``; None when nothing describes it."""
        module = self.at(address)
        if module is not None:
            elf = self.image(module)
            table = elf.frame_table
            return None if table is None else unwind.Module(module.bias, table, elf.entry)
        for start, (end, (at, size)) in self._payloads.items():
            if start <= address < end:
                if start not in self._tables:
                    self._tables[start] = unwind.FrameTable(self.process.read(at, size), at)
                return unwind.Module(0, self._tables[start])
        return self._vdso_frames(address)

    def _vdso_frames(self, address: int) -> unwind.Module | None:
        if self._vdso is None:
            self._vdso = (0, 0, None)
            for m in self.maps:
                if m.path == _VDSO:
                    try:
                        table = ElfFile(self.process.read(m.start, m.end - m.start), _VDSO).frame_table
                        self._vdso = (m.start, m.end, table)
                    except ImageError:
                        self._vdso = (m.start, m.end, None)
        start, end, table = self._vdso
        return unwind.Module(start, table) if table is not None and start <= address < end else None
