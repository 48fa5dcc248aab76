"""PDB files: the symbols of a PE image, in a file of their own, as lld-link and Microsoft's linker write it (/DEBUG).

As much of it as tells where the functions and variables of an image are: the container (MSF 7.00), the info stream
(which build this belongs to), and of the debug information (DBI) the symbols and the section headers. Names of global
symbols are the linker's own (public symbols). Those of static ones are the source's, which are what the linker knows in
C alone; so of C++ there are none. Types and lines are not read. Whatever the bytes, only ImageError escapes.

Source: Microsoft, "microsoft-pdb" (PDB/msf, PDB/dbi, include/cvinfo.h), and LLVM, "The PDB File Format".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from midflight.errors import ImageError
from midflight.image import coff
from midflight.image.model import Symbol, SymbolType
from midflight.image.reader import Reader
from midflight.image.source import MAX_ENTRIES, Source, decode

if TYPE_CHECKING:
    from midflight.image.pe import PeFile

MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_SUPERBLOCK = struct.Struct("<32sIIIIII")
_INFO, _DBI = 1, 3
_INFO_HEADER = struct.Struct("<III16s")
_DBI_HEADER = struct.Struct("<iIIHHHHHHiiiiiIiiHHI")
_MODULE = struct.Struct("<I28sHHIIIHHIII")
_SECTION = struct.Struct("<8sIIIIIIHHI")
_NO_STREAM, _NIL = 0xFFFF, 0xFFFFFFFF
_VERSIONS = (20000404, 20030901, 20091201, 20140508)
_MOST_STREAMS = 1 << 16
_S_COMPILE2, _S_COMPILE3 = 0x1116, 0x113C
_S_LDATA, _S_PUB, _S_LPROC, _S_GPROC, _S_LTHREAD, _S_LPROC_ID, _S_GPROC_ID = (
    0x110C,
    0x110E,
    0x110F,
    0x1110,
    0x1112,
    0x1146,
    0x1147,
)
_PROCEDURES = frozenset({_S_LPROC, _S_GPROC, _S_LPROC_ID, _S_GPROC_ID})
_LOCAL = frozenset({_S_LPROC, _S_LPROC_ID, _S_LDATA, _S_LTHREAD})
_PUBLIC_FUNCTION = 2
_C = 0
"""CV_CFL_C of CV_CFL_LANG."""


@dataclass(frozen=True, slots=True)
class CodeView:
    """What an image says of its PDB (debug directory, "RSDS"), and a PDB of itself."""

    guid: str
    """32 lower-case hex digits, in the order of the bytes."""
    age: int
    path: str = ""
    """Where the linker wrote the PDB; "" in a PDB."""

    @property
    def name(self) -> str:
        """The file name of the PDB, without folders of either system's kind."""
        return re.split(r"[/\\]", self.path)[-1]


@dataclass(frozen=True, slots=True)
class _Record:
    kind: int
    data: bytes
    """What follows the kind."""


@dataclass(frozen=True, slots=True)
class _Module:
    stream: int
    symbols_size: int
    object: str
    sources: tuple[str, ...] = ()


class PdbFile(Reader):
    """One PDB, open. Its symbols have RVAs for values, as those of :class:`~midflight.image.pe.PeFile`."""

    def __init__(self, data: bytes | bytearray | memoryview | Source, name: str = "pdb") -> None:
        super().__init__(data, name)
        self._source.format = "PDB"
        self._read_directory()

    # --- the container ---------------------------------------------------------------------------------------------

    def _read_directory(self) -> None:
        source = self._source
        if source.read(0, min(32, source.size), "the header") != MAGIC:
            raise ImageError(f"{self.name}: not a PDB (MSF 7.00); give the file that the linker wrote with /DEBUG")
        _, self._block, _, blocks, size, _, at = _SUPERBLOCK.unpack(source.read(0, _SUPERBLOCK.size, "the header"))
        if self._block not in (512, 1024, 2048, 4096, 8192, 16384, 32768) or blocks * self._block > source.size:
            raise source.bad("its blocks do not fit into the file")
        self._blocks: int = blocks
        if size > source.size or size < 4:
            raise source.bad("the directory of streams has an impossible size")
        count = -(-size // self._block)
        numbers = struct.unpack(f"<{count}I", source.read(at * self._block, 4 * count, "the map of the directory"))
        directory = self._gather(numbers, size, "the directory of streams")
        (streams,) = struct.unpack_from("<I", directory)
        if streams > _MOST_STREAMS or 4 + 4 * streams > size:
            raise source.bad("too many streams")
        sizes = [0 if n == _NIL else n for n in struct.unpack_from(f"<{streams}I", directory, 4)]
        self._streams: list[tuple[int, tuple[int, ...]]] = []
        at = 4 + 4 * streams
        for length in sizes:
            count = -(-length // self._block)
            if length > source.size or at + 4 * count > size:
                raise source.bad("a stream is larger than the file")
            self._streams.append((length, struct.unpack_from(f"<{count}I", directory, at)))
            at += 4 * count

    def _gather(self, numbers: tuple[int, ...], size: int, what: str) -> bytes:
        if any(number >= self._blocks for number in numbers):
            raise self._source.bad(f"{what} has a block that does not exist")
        parts = [self._source.read(number * self._block, self._block, what) for number in numbers]
        return b"".join(parts)[:size]

    def _stream(self, number: int, what: str) -> bytes:
        if not 0 <= number < len(self._streams):
            raise self._source.bad(f"{what} is missing")
        size, numbers = self._streams[number]
        return self._gather(numbers, size, what)

    def _unpack(self, layout: struct.Struct, data: bytes, at: int, what: str) -> tuple[int, ...]:
        if at < 0 or at + layout.size > len(data):
            raise self._source.bad(f"{what} is cut short")
        return layout.unpack_from(data, at)

    # --- which build it belongs to ---------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> CodeView:
        """The GUID of the info stream, and the age of the debug information: what an image names its PDB by."""
        data = self._stream(_INFO, "the info stream")
        if len(data) < _INFO_HEADER.size:
            raise self._source.bad("the info stream is cut short")
        version, _, age, guid = _INFO_HEADER.unpack_from(data)
        if version not in _VERSIONS:
            raise self._source.bad(f"a PDB of the version {version}, which is not known")
        return CodeView(guid.hex(), self._header[2] or age)

    def belongs_to(self, image: PeFile) -> bool:
        """Whether this is the PDB of just this build: the image names its GUID and age, and has its sections."""
        named = image.codeview
        if named is None or (named.guid, named.age) != (self.identity.guid, self.identity.age):
            return False
        own = [(s.name, s.address, s.size) for s in image.sections[1:]]
        return own == [(name, address, size) for name, address, size in self._sections]

    # --- debug information -----------------------------------------------------------------------------------------

    @cached_property
    def _dbi(self) -> bytes:
        return self._stream(_DBI, "the debug information")

    @cached_property
    def _header(self) -> tuple[int, ...]:
        found = self._unpack(_DBI_HEADER, self._dbi, 0, "the debug information")
        if found[0] != -1:
            raise self._source.bad("debug information of an old form")
        if found[18] not in (0, coff.MACHINE_AMD64):
            raise ImageError(f"{self.name}: a PDB for {coff.machine_name(found[18])}; only x86-64 is supported")
        return found

    def _part(self, number: int, what: str) -> bytes:
        """One of the parts behind the header of the debug information: modules, contributions, map, sources, types,
        edit-and-continue names, optional streams."""
        sizes = [*self._header[9:14], self._header[16], self._header[15]]
        if any(size < 0 for size in sizes):
            raise self._source.bad(f"{what} has an impossible size")
        start = _DBI_HEADER.size + sum(sizes[:number])
        if start + sizes[number] > len(self._dbi):
            raise self._source.bad(f"{what} lies outside of the debug information")
        return self._dbi[start : start + sizes[number]]

    @cached_property
    def _sections(self) -> tuple[tuple[str, int, int], ...]:
        """Name, RVA and size of every section of the image."""
        part = self._part(6, "the list of optional streams")
        streams = struct.unpack(f"<{len(part) // 2}H", part[: len(part) // 2 * 2])
        if any(number != _NO_STREAM for number in streams[3:5]):
            raise ImageError(f"{self.name}: its image was rearranged after linking (OMAP), which is not supported")
        if len(streams) < 6 or streams[5] == _NO_STREAM:
            raise self._source.bad("it does not say where the sections of the image are")
        data = self._stream(streams[5], "the section headers")
        if len(data) % _SECTION.size or len(data) > 0xFFFF * _SECTION.size:
            raise self._source.bad("the section headers are cut short")
        return tuple(
            (decode(name.split(b"\0")[0]), address, size or raw)
            for name, size, address, raw, *_ in _SECTION.iter_unpack(data)
        )

    @cached_property
    def _modules(self) -> tuple[_Module, ...]:
        part = self._part(0, "the list of modules")
        found: list[_Module] = []
        at = 0
        while at + _MODULE.size <= len(part):
            fields = _MODULE.unpack_from(part, at)
            names, at = [], at + _MODULE.size
            for _ in range(2):
                end = part.find(b"\0", at)
                if end < 0:
                    raise self._source.bad("the name of a module does not end")
                names.append(decode(part[at:end]))
                at = end + 1
            at += -at % 4
            found.append(_Module(fields[3], fields[4], names[0]))
        return self._with_sources(found)

    def _with_sources(self, modules: list[_Module]) -> tuple[_Module, ...]:
        """The same with the names of their source files."""
        part = self._part(3, "the list of source files")
        if len(part) < 4:
            return tuple(modules)
        (count,) = struct.unpack_from("<H", part)
        at = 4 + 2 * count
        if count != len(modules) or at + 2 * count > len(part):
            raise self._source.bad("the source files are of other modules")
        numbers = struct.unpack_from(f"<{count}H", part, at)
        at += 2 * count
        total = sum(numbers)
        if at + 4 * total > len(part):
            raise self._source.bad("the list of source files is cut short")
        offsets = struct.unpack_from(f"<{total}I", part, at)
        names = part[at + 4 * total :]
        found, first = [], 0
        for module, number in zip(modules, numbers, strict=True):
            texts = (decode(names[o : names.find(b"\0", o)]) for o in offsets[first : first + number] if o < len(names))
            found.append(_Module(module.stream, module.symbols_size, module.object, tuple(texts)))
            first += number
        return tuple(found)

    # --- symbols ---------------------------------------------------------------------------------------------------

    def _records(self, data: bytes, at: int) -> Iterator[_Record]:
        while at + 4 <= len(data):
            length, kind = struct.unpack_from("<HH", data, at)
            if length < 2 or at + 2 + length > len(data):
                raise self._source.bad("a symbol is cut short")
            yield _Record(kind, data[at + 4 : at + 2 + length])
            at += 2 + length

    @cached_property
    def _symbols(self) -> tuple[Symbol, ...]:
        found = [Symbol(0, "", 0, 0, "local", "notype", 0, None)]
        sizes: dict[tuple[int, int], int] = {}
        local: list[tuple[_Record, str]] = []
        for module in self._modules:
            local += self._local(module, sizes)
        stream = self._header[7]
        for record in self._records(self._stream(stream, "the symbols"), 0) if stream != _NO_STREAM else ():
            if record.kind == _S_PUB:
                symbol = self._public(record, len(found), sizes)
                found += [symbol] if symbol is not None else []
        for record, file in local:
            symbol = self._static(record, len(found), file)
            found += [symbol] if symbol is not None else []
            if len(found) > MAX_ENTRIES:
                raise self._source.bad("too many symbols")
        return tuple(found)

    def _local(self, module: _Module, sizes: dict[tuple[int, int], int]) -> list[tuple[_Record, str]]:
        """The static symbols of a module in C, each with its source file; and the sizes of all its functions."""
        if module.stream == _NO_STREAM or module.symbols_size < 4:
            return []
        data = self._stream(module.stream, "the symbols of a module")[: module.symbols_size]
        language, found = -1, []
        file = _source_of(module)
        for record in self._records(data, 4):
            if record.kind in (_S_COMPILE2, _S_COMPILE3) and record.data:
                language = record.data[0]
            elif record.kind in _PROCEDURES and len(record.data) >= 34:
                _, _, _, size, _, _, _, offset, section = struct.unpack_from("<8IH", record.data)
                sizes[section, offset] = size
            if record.kind in _LOCAL and language == _C and file:
                found.append((record, file))
        return found

    def _place(self, section: int, offset: int) -> tuple[int, SymbolType] | None:
        """RVA of something, and the kind of thing that its section holds. None for what is in no section."""
        if not 0 < section <= len(self._sections):
            return None
        name, address, _ = self._sections[section - 1]
        # A thread-local variable's value is its offset in the thread-local storage, as in ELF.
        return (offset, "tls") if name == ".tls" else (address + offset, "object")

    def _public(self, record: _Record, index: int, sizes: Mapping[tuple[int, int], int]) -> Symbol | None:
        if len(record.data) < 11:
            raise self._source.bad("a public symbol is cut short")
        flags, offset, section = struct.unpack_from("<IIH", record.data)
        place = self._place(section, offset)
        name = decode(record.data[10:].split(b"\0")[0])
        if place is None or not name:
            return None
        value, type_ = place
        if flags & _PUBLIC_FUNCTION:
            type_ = "func"
        size = sizes.get((section, offset), 0) if type_ == "func" else 0
        return Symbol(index, name, value, size, "global", type_, 0, section)

    def _static(self, record: _Record, index: int, file: str) -> Symbol | None:
        procedure = record.kind in _PROCEDURES
        at = 35 if procedure else 10
        if len(record.data) <= at:
            raise self._source.bad("a static symbol is cut short")
        offset, section = struct.unpack_from("<IH", record.data, 28 if procedure else 4)
        place = self._place(section, offset)
        name = decode(record.data[at:].split(b"\0")[0])
        if place is None or not name:
            return None
        size = struct.unpack_from("<I", record.data, 12)[0] if procedure else 0
        return Symbol(index, name, place[0], size, "local", "func" if procedure else place[1], 0, section, file=file)

    def symbols(self) -> tuple[Symbol, ...]:
        """A null symbol, the public ones, and the static ones of modules in C, with their source file's name."""
        return self._symbols

    @cached_property
    def symbols_by_name(self) -> Mapping[str, tuple[Symbol, ...]]:
        """:meth:`symbols` by name, in file order."""
        names: dict[str, list[Symbol]] = {}
        for symbol in self._symbols[1:]:
            names.setdefault(symbol.name, []).append(symbol)
        return {name: tuple(found) for name, found in names.items()}

    def symbol(self, name: str) -> Symbol | None:
        """The one symbol with this name: the public one, or else the only static one; None otherwise."""
        found = self.symbols_by_name.get(name, ())
        outer = [s for s in found if s.binding == "global"]
        return outer[0] if outer else found[0] if len(found) == 1 else None


def _source_of(module: _Module) -> str:
    """The name of the source file that a module was compiled from: the one called like its object; "" when none is, or
    several are."""
    stem = (coff.source_name(module.object) or "").rpartition(".")[0]
    names = {coff.source_name(source) or "" for source in module.sources}
    found = {name for name in names if stem and name.rpartition(".")[0] == stem and name.lower().endswith(".c")}
    return found.pop() if len(found) == 1 else ""
