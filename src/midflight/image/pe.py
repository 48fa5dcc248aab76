"""PE images: PE32+ programs and libraries for x86-64, read lazily and safe against any bytes.

An image answers in the words of :class:`~midflight.image.elf.ElfFile`, so that what reads images need not know which
format it has: a virtual address is an RVA (the image base is taken as 0), base relocations are R_X86_64_RELATIVE, slots
of the import address table are R_X86_64_GLOB_DAT, and the stubs that jump through them are PLT entries. What only PE
has is below ``what PE alone has``. Whatever the bytes, only :class:`~midflight.errors.ImageError` escapes.

Source: Microsoft, "PE Format".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from midflight.errors import ImageError
from midflight.image import coff
from midflight.image.model import Kind, Relocation, Section, Segment, Symbol
from midflight.image.reader import Mapped, Reader
from midflight.image.source import MAX_READ, RemoteSource, Source, decode

if TYPE_CHECKING:
    from midflight.image.pdb import CodeView
    from midflight.image.pehotpatch import HotPatchInfo
    from midflight.image.petables import Export, ImportedSymbol, LoadConfig, RuntimeFunction
    from midflight.image.plt import GotSlot, PltEntry

PE32_PLUS = 0x20B
R_GLOB_DAT, R_RELATIVE = 6, 8
PAGE = 4096
_OPTIONAL = struct.Struct("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII")
_FILE_DLL = 0x2000
_RELOCS_STRIPPED = 0x1
# [rex.W] jmp *disp32(%rip): what import libraries hold, and linkers write.
_STUB = re.compile(rb"\x48?\xff\x25([\s\S]{4})")
_GCC = re.compile(rb"GCC: \([ -~]{1,60}?\) [ -~]{1,60}(?=\0)")
EXPORT, IMPORT, EXCEPTION, BASERELOC, DEBUG, TLS, LOAD_CONFIG, IAT = 0, 1, 3, 5, 6, 9, 10, 12


class PeFile(Reader, Mapped):
    """One PE image in a file, or in memory. A context manager; closing gives the file back (what was read stays)."""

    format: Literal["elf", "pe"] = "pe"
    is_dynamic = True
    bind_now = True
    has_textrel = False

    def __init__(self, data: bytes | bytearray | memoryview | Source, name: str = "image") -> None:
        super().__init__(data, name)
        self._read_headers()
        self._map(self._read_segments())

    @classmethod
    def read_remote(cls, read: Callable[[int, int], bytes], base: int, name: str = "module") -> PeFile:
        """An image as a process has it mapped at ``base``: headers, and sections at their RVAs. What stands in memory
        is relocated, bound and initialized; symbols are not mapped. ``read(address, size)`` reads the process."""
        first = cls(RemoteSource(read, [(0, PAGE, base)], name))
        pieces = [(0, min(max(first.size_of_headers, PAGE), 16 * PAGE), base)]
        pieces += [(s.offset, s.file_size, base + s.address) for s in first.segments[1:] if s.file_size]
        return cls(RemoteSource(read, pieces, name))

    # --- headers ---------------------------------------------------------------------------------------------------

    def _read_headers(self) -> None:
        source = self._source
        start = source.read(0, min(64, source.size), "the DOS header")
        if start[:2] != b"MZ":
            raise ImageError(f"{self.name}: not a PE image; give a Windows program or DLL")
        source.format = "PE or COFF"
        if len(start) < 64:
            raise source.bad("the DOS header is cut short")
        (at,) = struct.unpack_from("<I", start, 60)
        if source.read(at, 4, "the PE signature") != b"PE\0\0":
            raise ImageError(f"{self.name}: a DOS or 16-bit Windows program; only PE32+ for x86-64 is supported")
        self._header = coff.read_header(source, at + 4)
        if self._header.machine != coff.MACHINE_AMD64:
            what = coff.machine_name(self._header.machine)
            raise ImageError(f"{self.name}: a PE image for {what} is not supported; only x86-64 is")
        if self._header.optional_size < _OPTIONAL.size:
            raise source.bad("the optional header is too small")
        raw = source.read(at + 24, self._header.optional_size, "the optional header")
        values = _OPTIONAL.unpack_from(raw)
        if values[0] != PE32_PLUS:
            raise ImageError(f"{self.name}: not PE32+; only 64-bit images are supported")
        self.entry: int = values[6]
        """RVA of the entry point; 0: none."""
        self.image_base: int = values[8]
        """The address that the linker preferred."""
        self.size_of_image: int = values[18]
        self.size_of_headers: int = values[19]
        self.checksum: int = values[20]
        self.timestamp: int = self._header.timestamp
        self.dll_characteristics: int = values[22]
        count = min(values[28], 16, (len(raw) - _OPTIONAL.size) // 8)
        self._directories = tuple(struct.unpack_from("<II", raw, _OPTIONAL.size + 8 * index) for index in range(count))

    @cached_property
    def _section_headers(self) -> tuple[coff.SectionHeader, ...]:
        try:
            strings = coff.read_strings(self._source, self._header)
            return coff.read_section_headers(self._source, self._header, strings)
        except ImageError:
            # The table is not mapped, or a tool that strips left the pointer to it: what the loader needs is here.
            return coff.read_section_headers(self._source, self._header, None)

    def _read_segments(self) -> tuple[Segment, ...]:
        """The headers and the sections, as the loader maps them: in pages, so that what the file holds behind the end
        of a section, up to the end of its last page, is in memory as well (lld fills that of code with int3)."""
        headers = min(self.size_of_headers, self._source.size)
        found = [Segment(1, True, False, False, 0, 0, headers, max(headers, 1), PAGE)]
        end = headers
        for header in self._section_headers:
            size = header.virtual_size or header.raw_size
            if header.virtual_address < end or header.virtual_address + size > 1 << 32:
                raise self._source.bad("sections overlap or are out of order")
            end = header.virtual_address + size
            bits = header.characteristics
            in_file = min(header.raw_size, -(-size // PAGE) * PAGE) if header.raw_at else 0
            found.append(
                Segment(
                    1,
                    bool(bits & coff.MEM_READ),
                    bool(bits & coff.MEM_WRITE),
                    bool(bits & coff.MEM_EXECUTE),
                    header.raw_at,
                    header.virtual_address,
                    in_file,
                    max(size, in_file),
                    PAGE,
                )
            )
        return tuple(found)

    def directory(self, number: int) -> tuple[int, int]:
        """RVA and size of a data directory; (0, 0) when the image has none."""
        rva, size = self._directories[number] if number < len(self._directories) else (0, 0)
        return (rva, size) if rva and size else (0, 0)

    # --- what it is ------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        """executable, or shared (a DLL)."""
        return "shared" if self._header.characteristics & _FILE_DLL else "executable"

    @property
    def is_pie(self) -> bool:
        """Whether it can be loaded anywhere: it has its base relocations."""
        return not self._header.characteristics & _RELOCS_STRIPPED and self.directory(BASERELOC) != (0, 0)

    @property
    def build_id(self) -> str | None:
        """Its identity as Microsoft's hotpatches name a baseline: ``pe-CHECKSUM-TIMESTAMP``, eight lower-case hex
        digits each; None when both are 0, so that it says nothing."""
        return f"pe-{self.checksum:08x}-{self.timestamp:08x}" if self.checksum or self.timestamp else None

    @cached_property
    def soname(self) -> str | None:
        """The name that the export directory gives the DLL, in lower case."""
        from midflight.image import petables

        name = petables.export_name(self)
        return name.lower() if name else None

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The DLLs that it imports from, in lower case, each once."""
        return tuple(dict.fromkeys(item.library for item in self.imports))

    # --- segments and addresses ------------------------------------------------------------------------------------

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is mapped: the headers first, then every section."""
        return self.loads

    @property
    def tls(self) -> None:
        """No segment of ELF's kind: offsets in thread-local storage are those of the section .tls."""
        return None

    def thread_pointer_offset(self, value: int) -> int:
        """Raises ImageError: on Windows no thread-local variable is at a fixed distance of the thread's register."""
        raise ImageError(f"{self.name}: thread-local storage of a PE image has no fixed place")

    def read_vaddr(self, vaddr: int, size: int) -> bytes:
        """``size`` bytes as they are mapped, before relocation; what the file does not hold reads as zeros. Raises
        ImageError when they are not all in one piece."""
        segment = self.segment_at(vaddr) if size >= 0 else None
        if segment is None or vaddr + size > segment.address + segment.memory_size:
            raise self._source.bad(f"memory at {vaddr:#x} (size {size}) is in no section")
        if size > MAX_READ:
            raise self._source.bad(f"memory at {vaddr:#x} is too large ({size} bytes)")
        start = vaddr - segment.address
        in_file = max(0, min(size, segment.file_size - start))
        data = self._source.read(segment.offset + start, in_file, "a section") if in_file else b""
        return data.ljust(size, b"\0")

    def read_table(self, vaddr: int, size: int, what: str) -> bytes:
        """As :meth:`read_vaddr`, of what is in the file alone: sizes that tables claim are no reason to make zeros."""
        segment = self.segment_at(vaddr)
        if segment is None or size < 0 or vaddr + size > segment.address + segment.file_size:
            raise self._source.bad(f"{what} lies outside of the image")
        return self.read_vaddr(vaddr, size)

    def read_string(self, vaddr: int, what: str) -> str:
        """The zero-terminated text at an RVA."""
        segment = self.segment_at(vaddr)
        room = 0 if segment is None else segment.address + segment.file_size - vaddr
        if room <= 0:
            raise self._source.bad(f"{what} lies outside of the image")
        for size in (256, 16384):
            text, zero, _ = self.read_vaddr(vaddr, min(size, room)).partition(b"\0")
            if zero:
                return decode(text)
        raise self._source.bad(f"{what} does not end")

    def bad(self, what: str) -> ImageError:
        """The error that says that this image is malformed, and how."""
        return self._source.bad(what)

    # --- sections --------------------------------------------------------------------------------------------------

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All sections by their one-based number, a null section first; sizes are those in memory."""
        found = [Section(0, "", 0, 0, 0, 0, 0, 0, 0, 0, 0)]
        for index, header in enumerate(self._section_headers, 1):
            size = header.virtual_size or header.raw_size
            type_ = coff.SHT_PROGBITS if header.raw_at and header.raw_size else coff.SHT_NOBITS
            flags = coff.section_flags(header, image=True)
            found.append(
                Section(index, header.name, type_, flags, header.virtual_address, header.raw_at, size, 0, 0, 16, 0)
            )
        return tuple(found)

    def section(self, name: str) -> Section | None:
        """The first section of that name, or None."""
        return next((s for s in self.sections if s.name == name), None)

    def section_data(self, section: Section) -> bytes:
        """The section's bytes; what is not in the file reads as zeros, and a section without bytes there has none."""
        return self.read_vaddr(section.address, section.size) if section.type == coff.SHT_PROGBITS else b""

    def relocations(self, section: Section) -> tuple[Relocation, ...]:
        """(): of an image, :meth:`dynamic_relocations` are what there is."""
        return ()

    @cached_property
    def comments(self) -> tuple[str, ...]:
        """What compilers wrote of themselves: gcc leaves its name among the constants; others say nothing."""
        constants = self.section(".rdata")
        data = self.section_data(constants) if constants is not None else b""
        return tuple(sorted({decode(name) for name in _GCC.findall(data)}))

    @property
    def is_lto(self) -> bool:
        return False

    @cached_property
    def has_debug(self) -> bool:
        """Whether DWARF is in the file."""
        return any(s.name in (".debug_info", ".zdebug_info") for s in self.sections)

    # --- symbols ---------------------------------------------------------------------------------------------------

    @cached_property
    def _symbols(self) -> tuple[Symbol, ...]:
        from midflight.image import petables

        return petables.coff_symbols(self, self._source, self._header)

    def symbols(self) -> tuple[Symbol, ...]:
        """The COFF symbols that GNU linkers leave in an image, a null symbol first, their values RVAs; () without."""
        return self._symbols

    @cached_property
    def symbols_by_name(self) -> Mapping[str, tuple[Symbol, ...]]:
        """:meth:`symbols` by name (unnamed, section and file symbols left out), in file order."""
        names: dict[str, list[Symbol]] = {}
        for symbol in self._symbols:
            if symbol.name and symbol.type not in ("section", "file"):
                names.setdefault(symbol.name, []).append(symbol)
        return {name: tuple(found) for name, found in names.items()}

    def symbol(self, name: str) -> Symbol | None:
        """The one defined symbol with this name: the global one, or else the only local one; None otherwise."""
        found = [s for s in self.symbols_by_name.get(name, ()) if s.defined]
        outer = [s for s in found if s.binding != "local"]
        if outer:
            return outer[0]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _dynamic_symbols(self) -> tuple[Symbol, ...]:
        found = [Symbol(0, "", 0, 0, "local", "notype", 0, None)]
        for export in self.exports:
            if export.name and export.forward is None:
                section = self._section_of(export.rva)
                code = section is not None and bool(section.flags & coff.SHF_EXECINSTR)
                found.append(
                    Symbol(
                        len(found),
                        export.name,
                        export.rva,
                        0,
                        "global",
                        "func" if code else "object",
                        0,
                        section.index if section is not None else None,
                        absolute=section is None,
                    )
                )
        for item in self.imports:
            found.append(Symbol(len(found), item.name, 0, 0, "global", "notype", 0, None))
        return tuple(found)

    def _section_of(self, rva: int) -> Section | None:
        return next((s for s in self.sections[1:] if s.address <= rva < s.address + s.size), None)

    def dynamic_symbols(self) -> tuple[Symbol, ...]:
        """A null symbol, the named exports that are not forwarded, then every import (undefined), in their order. An
        import by ordinal is called ``library#ordinal``."""
        return self._dynamic_symbols

    def dynamic_symbol(self, name: str, version: str | None = None) -> Symbol | None:
        """The export with this name, or None when there is none or it is forwarded to another DLL."""
        return self._exported.get(name) if version is None else None

    @cached_property
    def _exported(self) -> Mapping[str, Symbol]:
        return {s.name: s for s in self._dynamic_symbols if s.index and s.defined}

    def library_of(self, symbol: Symbol) -> str | None:
        """The DLL, in lower case, that an import of :meth:`dynamic_symbols` comes from."""
        first = len(self._dynamic_symbols) - len(self.imports)
        number = symbol.index - first
        return self.imports[number].library if 0 <= number < len(self.imports) else None

    # --- relocations, import slots and stubs -----------------------------------------------------------------------

    @cached_property
    def _dynamic_relocations(self) -> tuple[Relocation, ...]:
        from midflight.image import petables

        found = [
            Relocation(rva, R_RELATIVE, 0, value - self.image_base) for rva, value in petables.base_relocations(self)
        ]
        first = len(self._dynamic_symbols) - len(self.imports)
        found += [Relocation(item.slot, R_GLOB_DAT, first + n, 0) for n, item in enumerate(self.imports)]
        return tuple(found)

    def dynamic_relocations(self) -> tuple[Relocation, ...]:
        """What the loader fills: pointers (R_RELATIVE, the addend an RVA) and import slots (R_GLOB_DAT)."""
        return self._dynamic_relocations

    @cached_property
    def got_entries(self) -> tuple[GotSlot, ...]:
        """The slots of the import address table."""
        from midflight.image.plt import GotSlot

        symbols = self._dynamic_symbols[len(self._dynamic_symbols) - len(self.imports) :]
        return tuple(GotSlot(item.slot, symbol, False) for item, symbol in zip(self.imports, symbols, strict=True))

    @cached_property
    def irelative(self) -> Mapping[int, int]:
        """{}: Windows has no functions that choose themselves when they are bound."""
        return {}

    @cached_property
    def plt_entries(self) -> tuple[PltEntry, ...]:
        """Jumps through an import slot, by address: the stubs that callers without __declspec(dllimport) go through. A
        jump in the middle of a function looks the same, and is one by its effect."""
        from midflight.image.plt import PltEntry

        slots = {entry.vaddr: entry.symbol for entry in self.got_entries}
        found = []
        for segment in self.segments:
            if not segment.executable:
                continue
            code = self.read_vaddr(segment.address, segment.file_size)
            for match in _STUB.finditer(code):
                slot = segment.address + match.end() + int.from_bytes(match[1], "little", signed=True)
                if slot in slots:
                    found.append(PltEntry(segment.address + match.start(), slot, slots[slot], None))
        return tuple(sorted(found, key=lambda entry: entry.vaddr))

    @cached_property
    def _plt(self) -> Mapping[str, tuple[int, ...]]:
        from midflight.image import plt

        return plt.entries_by_name(self.plt_entries)

    def plt(self) -> Mapping[str, tuple[int, ...]]:
        """Import to the RVAs of its stubs."""
        return self._plt

    def function_extents(self) -> Sequence[tuple[int, int]]:
        """(start, end) of every stretch of code that .pdata describes, by start."""
        return [(item.begin, item.end) for item in self.runtime_functions]

    # --- what PE alone has -----------------------------------------------------------------------------------------

    @cached_property
    def exports(self) -> tuple[Export, ...]:
        """What it exports, by ordinal, forwarders included."""
        from midflight.image import petables

        return petables.read_exports(self)

    @cached_property
    def imports(self) -> tuple[ImportedSymbol, ...]:
        """What it imports, and through which slots."""
        from midflight.image import petables

        return petables.read_imports(self)

    @cached_property
    def runtime_functions(self) -> tuple[RuntimeFunction, ...]:
        """.pdata, by address."""
        from midflight.image import petables

        return petables.read_runtime_functions(self)

    @cached_property
    def load_config(self) -> LoadConfig | None:
        """The load configuration, or None."""
        from midflight.image import petables

        return petables.read_load_config(self)

    @cached_property
    def codeview(self) -> CodeView | None:
        """Which PDB has its symbols, by its debug directory; None when it names none."""
        from midflight.image import petables

        return petables.read_codeview(self)

    @cached_property
    def hotpatch_info(self) -> HotPatchInfo | None:
        """What an image says that is itself a hotpatch of Windows: which base images it is for; None for others."""
        from midflight.image import pehotpatch

        return pehotpatch.read_hotpatch_info(self)
