"""What a Windows process has loaded: the same as ``modules``, for PE images. They are read from the process's memory,
not from files: identity, exports and unwind information are those that run, whatever a file is called now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from midflight.engine.modules import Files, Module, Modules
from midflight.errors import ImageError, ProcessError, ProcessGone
from midflight.image import seh, unwind
from midflight.image.pe import PeFile
from midflight.process.model import Mapping, Process

_BLOCK = 1 << 14


def identity(process: Process, base: int) -> str | None:
    """The identity of the image that is mapped at ``base``; None when it has none or cannot be read."""
    try:
        return PeFile.read_remote(process.read, base).build_id
    except ProcessGone:
        raise
    except (ImageError, ProcessError):
        return None


class _Blocks:
    """Reads an image in blocks, each once: its tables hold thousands of small pieces."""

    def __init__(self, process: Process, start: int, end: int) -> None:
        self._process, self._start, self._end = process, start, end
        self._known: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        low, high = address // _BLOCK * _BLOCK, -(-(address + size) // _BLOCK) * _BLOCK
        if size > _BLOCK or low < self._start or high > self._end:
            return self._process.read(address, size)
        for at in range(low, high, _BLOCK):
            if at not in self._known:
                try:
                    self._known[at] = self._process.read(at, _BLOCK)
                except ProcessGone:
                    raise
                except ProcessError:  # a page among them that cannot be read
                    return self._process.read(address, size)
        data = b"".join(self._known[at] for at in range(low, high, _BLOCK))
        return data[address - low : address - low + size]


class PeModules(Modules):
    """The modules of one Windows process at one moment."""

    def __init__(self, process: Process, maps: Sequence[Mapping], files: Files) -> None:
        super().__init__(process, (), files)
        self.maps = maps
        groups: dict[int, list[Mapping]] = {}
        for m in maps:
            if m.inode and m.allocation:
                groups.setdefault(m.start - m.offset, []).append(m)
        self.all = [
            Module(group[0].path, None, base, tuple(group))
            for base, group in sorted(groups.items())
            if any(m.executable for m in group)
        ]
        self._starts = [module.start for module in self.all]
        self._images: dict[int, PeFile | None] = {}
        self._functions: dict[int, seh.Module | None] = {}
        self._code: list[tuple[int, int, tuple[int, int], int]] = []

    def pe(self, module: Module) -> PeFile | None:
        """The image as it is mapped; None when it cannot be read (an image of another machine, say)."""
        if module.bias not in self._images:
            try:
                read = _Blocks(self.process, module.start, module.end).read
                self._images[module.bias] = PeFile.read_remote(read, module.bias, module.path)
            except ProcessGone:
                raise
            except (ImageError, ProcessError):
                self._images[module.bias] = None
        return self._images[module.bias]

    def with_build_id(self, build_id: str) -> list[Module]:
        """All instances of one image."""
        return [m for m in self.all if (found := self.pe(m)) is not None and found.build_id == build_id]

    def named(self, library: str) -> Module | None:
        """The module with this file name (case does not count), as the loader would find it."""
        wanted = library.lower()
        return next((m for m in self.all if m.path.replace("/", "\\").rpartition("\\")[2].lower() == wanted), None)

    @cached_property
    def core(self) -> Module | None:
        """ntdll.dll, which unwinds."""
        return self.named("ntdll.dll")

    def add_payload(self, start: int, end: int, eh_frame: tuple[int, int], base: int) -> None:
        """Make code of a hotpatch known: [start, end) unwinds by the function table at (address, size); what that says
        is relative to ``base``, where the payload begins."""
        if (start, end, eh_frame, base) not in self._code:
            self._code.append((start, end, eh_frame, base))
            self._functions.pop(start, None)

    def frames_at(self, address: int) -> unwind.Unwinds | None:
        """How to unwind the code at ``address``; None when nothing describes it."""
        module = self.at(address)
        if module is not None:
            if module.bias not in self._functions:
                self._functions[module.bias] = self._table(module)
            return self._functions[module.bias]
        for start, end, (at, size), base in reversed(self._code):
            if start <= address < end:
                if start not in self._functions:
                    table = seh.FunctionTable.parse(self.process.read(at, size), self._reader(base))
                    self._functions[start] = seh.Module(base, table)
                return self._functions[start]
        return None

    def _table(self, module: Module) -> seh.Module | None:
        image = self.pe(module)
        if image is None:
            return None
        try:
            rows = [seh.Function(f.begin, f.end, f.unwind) for f in image.runtime_functions]
            return seh.Module(module.bias, seh.FunctionTable(rows, self._reader(module.bias)))
        except ImageError:
            return None

    def _reader(self, base: int) -> Callable[[int, int], bytes]:
        return lambda at, size: self.process.read(base + at, size)
