"""ELF images: 64-bit x86-64 objects, libraries and executables, read lazily and safe against any bytes.

Nothing is parsed (and no module imported) before it is asked for; what was read is kept. Whatever the bytes, only
:class:`~midflight.errors.ImageError` escapes. What the loader sees is read through the program headers; section headers
serve where nothing else tells.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from midflight.errors import ImageError
from midflight.image import dynamic as dyn
from midflight.image.dynamic import Dynamic, VersionNeed
from midflight.image.layout import (
    ET_DYN,
    ET_REL,
    PAGE,
    PT_GNU_EH_FRAME,
    PT_GNU_RELRO,
    PT_INTERP,
    PT_NOTE,
    PT_TLS,
    Layout,
)
from midflight.image.model import Kind, Relocation, Section, Segment, Symbol
from midflight.image.notes import build_id_of
from midflight.image.reader import Reader
from midflight.image.sections import (
    SHF_ALLOC,
    SHT_NOBITS,
    SHT_NOTE,
    SHT_REL,
    SHT_RELA,
    SHT_SYMTAB,
    SHT_SYMTAB_SHNDX,
    read_sections,
)
from midflight.image.source import MAX_ENTRIES, RemoteSource, Source, Strings, decode
from midflight.image.symbols import ENTRY, R_IRELATIVE, read_relocations, read_symbols
from midflight.image.tables import UnwindTables, read_unwind_tables

if TYPE_CHECKING:
    from midflight.image.plt import GotSlot, PltEntry
    from midflight.image.unwind import FrameTable


class ElfFile(Reader):
    """One ELF file, or one image in memory. A context manager; closing gives the file back (what was read stays).

    ``data`` are the bytes, ``name`` is what error messages call it. All addresses are link-time virtual addresses.
    """

    format: Literal["elf", "pe"] = "elf"

    def __init__(self, data: bytes | bytearray | memoryview | mmap.mmap | Source, name: str = "image") -> None:
        super().__init__(data, name)
        self._layout = Layout(self._source)
        self._dynamic = Dynamic(self._layout)

    @classmethod
    def read_remote(cls, read: Callable[[int, int], bytes], base: int, name: str = "[vdso]") -> ElfFile:
        """An image that is only in a process's memory, its ELF header at address ``base``.

        ``read(address, size)`` reads the process. Section headers are used when they are loaded too, as in the vDSO."""
        # Header and program headers come first, and are in the first page of everything that a loader maps.
        first = Layout(RemoteSource(read, [(0, PAGE, base)], name))
        if not first.loads:
            raise first.source.bad("nothing is loadable")
        bias = base - (first.loads[0].address - first.loads[0].offset)
        pieces = []
        for segment in first.loads:
            # The last page of a read-only segment holds more of the file: the vDSO's section headers.
            tail = 0 if segment.writable else -(segment.offset + segment.file_size) % PAGE
            pieces.append((segment.offset, segment.file_size + tail, bias + segment.address))
        image = cls(RemoteSource(read, pieces, name))
        image._dynamic = Dynamic(image._layout, loaded_at=bias)
        return image

    # --- what it is ----------------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> Kind:
        """relocatable (.o), executable (position-independent or not), or shared (a library)."""
        if self._layout.type == ET_REL:
            return "relocatable"
        return "shared" if self._layout.type == ET_DYN and not self.is_pie else "executable"

    @cached_property
    def is_pie(self) -> bool:
        """A position-independent executable, static ones included: DF_1_PIE, or (linkers before 2017) an interpreter
        and no SONAME; libc.so has both."""
        if self._layout.type != ET_DYN:
            return False
        return bool(self.flags_1 & dyn.DF_1_PIE) or (self._layout.segment(PT_INTERP) is not None and not self.soname)

    @property
    def entry(self) -> int:
        """Virtual address of the entry point; 0: none."""
        return self._layout.entry

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build-id in lower-case hex, or None."""
        for segment in self.segments:
            if segment.type == PT_NOTE:
                raw = self._source.read(segment.offset, segment.file_size, "a note segment")
                found = build_id_of(raw, segment.alignment)
                if found is not None:
                    return found
        if self.segments and self._layout.type != ET_REL:
            return None
        for section in self.sections:
            if section.type == SHT_NOTE:
                found = build_id_of(self.section_data(section), section.alignment)
                if found is not None:
                    return found
        return None

    @cached_property
    def interpreter(self) -> str | None:
        """The program interpreter (the dynamic loader), or None."""
        segment = self._layout.segment(PT_INTERP)
        if segment is None:
            return None
        return decode(self._source.read(segment.offset, segment.file_size, "the interpreter").split(b"\0")[0])

    @property
    def soname(self) -> str | None:
        """DT_SONAME."""
        return self._dynamic.soname

    @property
    def needed(self) -> tuple[str, ...]:
        """DT_NEEDED."""
        return self._dynamic.needed

    @property
    def is_dynamic(self) -> bool:
        """Whether there is a dynamic section (static position-independent executables have one too)."""
        return bool(self._dynamic.entries)

    @cached_property
    def flags_1(self) -> int:
        """DT_FLAGS_1 (DF_1_* bits)."""
        return self._dynamic.value(dyn.DT_FLAGS_1) or 0

    @cached_property
    def bind_now(self) -> bool:
        """Whether the loader binds everything at start (then, with RELRO, the whole GOT is read-only)."""
        flags = self._dynamic.value(dyn.DT_FLAGS) or 0
        return bool(flags & dyn.DF_BIND_NOW or self.flags_1 & dyn.DF_1_NOW or dyn.DT_BIND_NOW in self._dynamic.entries)

    @cached_property
    def has_textrel(self) -> bool:
        """Whether the loader relocates code: then code in memory differs from the file."""
        flags = self._dynamic.value(dyn.DT_FLAGS) or 0
        return bool(flags & dyn.DF_TEXTREL) or dyn.DT_TEXTREL in self._dynamic.entries

    @property
    def has_relro(self) -> bool:
        return self.relro is not None

    @property
    def relro(self) -> Segment | None:
        """PT_GNU_RELRO: what becomes read-only after relocation."""
        return self._layout.segment(PT_GNU_RELRO)

    @cached_property
    def comments(self) -> tuple[str, ...]:
        """What the compilers and linkers wrote into .comment, once each: "GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"."""
        section = self.section(".comment")
        if section is None or section.type == SHT_NOBITS:
            return ()
        return tuple(dict.fromkeys(decode(part) for part in self.section_data(section).split(b"\0") if part))

    @cached_property
    def is_lto(self) -> bool:
        """Whether the object holds a compiler's intermediate code, slim or fat (GCC, or Clang's fat objects)."""
        marks = (".gnu.lto_", ".gnu.debuglto_", ".llvm.lto", ".llvmbc")
        return any(section.name.startswith(marks) for section in self.sections)

    @cached_property
    def has_debug(self) -> bool:
        """Whether DWARF is in the file."""
        return any(section.name in (".debug_info", ".zdebug_info") for section in self.sections)

    # --- segments and addresses ----------------------------------------------------------------------------------

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Program headers, in file order; () for relocatable files."""
        return self._layout.segments

    @property
    def tls(self) -> Segment | None:
        """PT_TLS."""
        return self._layout.segment(PT_TLS)

    def thread_pointer_offset(self, value: int) -> int:
        """Offset from the thread pointer (negative) of a TLS symbol's ``value``, for executables only (AMD64
        supplement, TLS variant II: the executable's block ends at the thread pointer). Raises ImageError if not so."""
        tls = self.tls
        if tls is None or self.kind != "executable":
            raise ImageError(f"{self.name}: not an executable with thread-local storage")
        alignment = max(tls.alignment, 1)
        return value - (tls.memory_size + alignment - 1) // alignment * alignment

    def segment_at(self, vaddr: int) -> Segment | None:
        """The loadable segment whose memory holds ``vaddr``, or None."""
        return self._layout.segment_at(vaddr)

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """The file offset behind a virtual address; None when nothing in the file stands there (.bss, a hole)."""
        return self._layout.vaddr_to_offset(vaddr)

    def read_vaddr(self, vaddr: int, size: int) -> bytes:
        """``size`` bytes as the program starts with them, before relocation; .bss reads as zeros. Raises ImageError
        when they are not all in one loadable segment."""
        return self._layout.read_vaddr(vaddr, size)

    def load_bias(self, start: int, offset: int, executable: bool | None = None) -> int:
        """What to add to virtual addresses when the page at file ``offset`` is mapped at ``start``.

        A page can belong to two segments; ``executable`` (as the mapping is) then decides. Raises ImageError when no
        segment, or no single bias, fits."""
        found = set()
        for segment in self._layout.loads:
            first = segment.offset & -PAGE
            fits = first <= offset < segment.offset + max(segment.file_size, 1)
            if fits and (executable is None or executable == segment.executable):
                found.add(start - (segment.address - segment.offset + offset))
        if len(found) != 1:
            what = "several segments" if found else "no segment"
            raise ImageError(f"{self.name}: {what} of the file can be the mapping of offset {offset:#x} at {start:#x}")
        return found.pop()

    # --- sections ------------------------------------------------------------------------------------------------

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All sections by index, the null section first; () when section headers are stripped."""
        return read_sections(self._layout)

    @cached_property
    def _sections_by_name(self) -> dict[str, Section]:
        names: dict[str, Section] = {}
        for section in self.sections:
            names.setdefault(section.name, section)
        return names

    def section(self, name: str) -> Section | None:
        """The first section of that name, or None (objects may have several of one name)."""
        return self._sections_by_name.get(name)

    def section_data(self, section: Section) -> bytes:
        """The section's bytes as they are in the file (compressed ones stay so). A NOBITS section has none: b""."""
        if section.type == SHT_NOBITS:
            return b""
        return self._source.read(section.offset, section.size, f"section {section.name or section.index}")

    def relocations(self, section: Section) -> tuple[Relocation, ...]:
        """Of a relocatable file: the relocations of ``section`` (or those in it, when it is a RELA section), in file
        order. They index :meth:`symbols`. Raises ImageError for REL relocations, which x86-64 does not have."""
        if section.type == SHT_RELA:
            return self._relocations_in(section)
        found: tuple[Relocation, ...] = ()
        for holder in self._relocation_sections.get(section.index, ()):
            found += self._relocations_in(holder)
            if len(found) > MAX_ENTRIES:
                raise self._source.bad(f"section {section.name} has too many relocations")
        return found

    @cached_property
    def _relocation_sections(self) -> dict[int, list[Section]]:
        holders: dict[int, list[Section]] = {}
        for section in self.sections:
            if section.type in (SHT_RELA, SHT_REL) and not section.flags & SHF_ALLOC:
                holders.setdefault(section.info, []).append(section)
        return holders

    def _relocations_in(self, section: Section) -> tuple[Relocation, ...]:
        if section.type == SHT_REL:
            raise self._source.bad("relocations without addend, which x86-64 does not have")
        found = read_relocations(self._source, self.section_data(section), f"section {section.name}")
        table = self.sections[section.link] if 0 < section.link < len(self.sections) else None
        count = table.size // ENTRY.size if table is not None else 1
        if max((r.symbol for r in found), default=0) >= max(count, 1):
            raise self._source.bad(f"section {section.name} refers to a symbol that does not exist")
        return tuple(found)

    # --- symbols -------------------------------------------------------------------------------------------------

    @cached_property
    def _symbols(self) -> tuple[Symbol, ...]:
        table = next((s for s in self.sections if s.type == SHT_SYMTAB), None)
        if table is None:
            return ()
        if not 0 < table.link < len(self.sections):
            raise self._source.bad("the symbol table has no string table")
        strings = Strings(self._source, self.section_data(self.sections[table.link]), "the symbol names")
        extended = next((s for s in self.sections if s.type == SHT_SYMTAB_SHNDX and s.link == table.index), None)
        return tuple(
            read_symbols(
                self._source,
                self.section_data(table),
                strings,
                sections=len(self.sections),
                extended=b"" if extended is None else self.section_data(extended),
            )
        )

    def symbols(self) -> tuple[Symbol, ...]:
        """The full symbol table (.symtab) by index, the null symbol first; () when stripped. Section symbols have the
        empty name that the file gives them. ``name@V`` is taken apart into name and version."""
        return self._symbols

    @cached_property
    def symbols_by_name(self) -> Mapping[str, tuple[Symbol, ...]]:
        """.symtab by name (unnamed, section and file symbols left out), in file order."""
        names: dict[str, list[Symbol]] = {}
        for symbol in self._symbols:
            if symbol.name and symbol.type not in ("section", "file"):
                names.setdefault(symbol.name, []).append(symbol)
        return {name: tuple(found) for name, found in names.items()}

    def symbol(self, name: str) -> Symbol | None:
        """The one defined symbol of .symtab with this name: the global or weak one, or else the only local one. None
        when there is none, or several locals share the name."""
        found = [s for s in self.symbols_by_name.get(name, ()) if s.defined]
        outer = [s for s in found if s.binding != "local"]
        if outer:
            return next((s for s in outer if s.default_version), outer[0])
        return found[0] if len(found) == 1 else None

    def dynamic_symbols(self) -> tuple[Symbol, ...]:
        """The dynamic symbols by index, the null symbol first, with versions. When section headers and DT_HASH are both
        missing, imports that nothing refers to may be missing at the end."""
        return self._dynamic.symbols

    def dynamic_symbol(self, name: str, version: str | None = None) -> Symbol | None:
        """The defined symbol that the loader would bind ``name`` to in this image, or None; without ``version`` the
        default one. Goes through DT_GNU_HASH and parses nothing else."""
        return self._dynamic.find(name, version)

    @property
    def version_needs(self) -> tuple[VersionNeed, ...]:
        """The versions asked of other libraries."""
        return self._dynamic.version_needs

    @property
    def defined_versions(self) -> tuple[str, ...]:
        """The versions that this library defines, in file order ("GCC_3.0" … tells releases apart)."""
        return tuple(self._dynamic.defined_versions.values())

    def library_of(self, symbol: Symbol) -> str | None:
        """The SONAME of the library that an imported dynamic symbol's version names, or None."""
        return self._dynamic.library_of(symbol)

    # --- dynamic relocations, GOT and PLT ------------------------------------------------------------------------

    @cached_property
    def _dynamic_relocations(self) -> tuple[Relocation, ...]:
        if self.is_dynamic or self._layout.type == ET_REL:
            return self._dynamic.relocations
        # A static executable's start-up code applies its IRELATIVE relocations itself; only sections tell where.
        found: list[Relocation] = []
        for section in self.sections:
            if section.type == SHT_RELA and section.flags & SHF_ALLOC:
                found += read_relocations(self._source, self.section_data(section), f"section {section.name}")
        return tuple(found)

    def dynamic_relocations(self) -> tuple[Relocation, ...]:
        """What is relocated at load time: DT_RELA, DT_JMPREL and DT_RELR (as R_X86_64_RELATIVE, with the addend that
        stands in the file). Symbols index :meth:`dynamic_symbols`. () for relocatable files."""
        return self._dynamic_relocations

    @cached_property
    def got_entries(self) -> tuple[GotSlot, ...]:
        """GOT slots that hold the address of a named symbol (GLOB_DAT, JUMP_SLOT)."""
        from midflight.image import plt as stubs

        return stubs.got_entries(self._source, self._dynamic_relocations, self._dynamic.symbols)

    @cached_property
    def _got_slots(self) -> dict[str, int]:
        from midflight.image import plt as stubs

        return stubs.slots_by_name(self.got_entries)

    def got_slots(self) -> Mapping[str, int]:
        """Symbol (name, and name@version) to its GOT slot, one that is bound at load time (GLOB_DAT) before one that
        may be bound lazily (JUMP_SLOT). A bare name with several versions is left out."""
        return self._got_slots

    @cached_property
    def irelative(self) -> Mapping[int, int]:
        """IRELATIVE relocations: vaddr of the slot to vaddr of the resolver."""
        return {r.offset: r.addend for r in self._dynamic_relocations if r.type == R_IRELATIVE}

    @cached_property
    def plt_entries(self) -> tuple[PltEntry, ...]:
        """PLT entries, decoded, by address."""
        from midflight.image import plt as stubs

        return stubs.plt_entries(self._layout, self.sections, self.got_entries, self.irelative)

    @cached_property
    def _plt(self) -> dict[str, tuple[int, ...]]:
        from midflight.image import plt as stubs

        return stubs.entries_by_name(self.plt_entries)

    def plt(self) -> Mapping[str, tuple[int, ...]]:
        """Symbol (name, and name@version) to the vaddrs of its PLT entries (.plt, .plt.sec, .plt.got). A bare name with
        several versions is left out."""
        return self._plt

    # --- unwinding -----------------------------------------------------------------------------------------------

    @cached_property
    def unwind_tables(self) -> UnwindTables | None:
        """.eh_frame and .eh_frame_hdr, through PT_GNU_EH_FRAME or the section; None when there is neither."""
        header = self._layout.segment(PT_GNU_EH_FRAME)
        return read_unwind_tables(self._layout, header, lambda: self.section(".eh_frame"))

    @cached_property
    def _function_extents(self) -> Sequence[tuple[int, int]]:
        return () if self.frame_table is None else tuple(self.frame_table.functions())

    def function_extents(self) -> Sequence[tuple[int, int]]:
        """(start, end) of every stretch of code that the unwind information describes."""
        return self._function_extents

    @cached_property
    def frame_table(self) -> FrameTable | None:
        """What unwinds frames of this image (addresses as everywhere here: link-time); None without unwind tables."""
        from midflight.image.unwind import FrameTable

        tables = self.unwind_tables
        return None if tables is None else FrameTable(tables.eh_frame, tables.vaddr, tables.header, tables.header_vaddr)
