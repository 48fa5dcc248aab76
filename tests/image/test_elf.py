"""ELF images, against what pyelftools and binutils say of the same files, and against what a live process shows."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection, GNUVerSymSection
from elftools.elf.relocation import RelocationSection, RelrRelocationSection
from elftools.elf.sections import NoteSection, SymbolTableSection

from midflight.errors import ImageError
from midflight.image.elf import ElfFile
from midflight.image.model import Symbol
from tests.image.samples import BARE, IMAGES, OBJECTS, SYSTEM

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
BINDINGS = {"STB_LOCAL": "local", "STB_GLOBAL": "global", "STB_WEAK": "weak", "STB_LOOS": "unique"}


def place(samples: dict[str, Path], name: str) -> Path:
    return Path(name) if name.startswith("/") else samples[name]


@pytest.mark.parametrize("name", (*IMAGES, *OBJECTS, *SYSTEM))
def test_headers_and_sections_are_those_that_pyelftools_reads(samples: dict[str, Path], name: str) -> None:
    path = place(samples, name)
    with path.open("rb") as file, ElfFile.open(path) as ours:
        theirs = ELFFile(file)
        assert ours.entry == theirs["e_entry"]
        rows = [
            (s["p_offset"], s["p_vaddr"], s["p_filesz"], s["p_memsz"], s["p_flags"]) for s in theirs.iter_segments()
        ]
        assert rows == [
            (s.offset, s.address, s.file_size, s.memory_size, 4 * s.readable + 2 * s.writable + s.executable)
            for s in ours.segments
        ]
        assert len(ours.sections) == theirs.num_sections()
        step = max(1, theirs.num_sections() // 500)
        for index in range(1, theirs.num_sections(), step):
            section, mine = theirs.get_section(index), ours.sections[index]
            assert (section.name, section["sh_addr"], section["sh_offset"], section["sh_size"], section["sh_link"]) == (
                mine.name,
                mine.address,
                mine.offset,
                mine.size,
                mine.link,
            )
            if section["sh_type"] != "SHT_NOBITS":
                assert ours.section_data(mine) == section.data() or section.compressed
        notes = [n for s in theirs.iter_sections() if isinstance(s, NoteSection) for n in s.iter_notes()]
        assert ours.build_id == next((n["n_desc"] for n in notes if n["n_type"] == "NT_GNU_BUILD_ID"), None)


def check_symbols(theirs: SymbolTableSection, ours: tuple[Symbol, ...]) -> None:
    assert len(ours) == theirs.num_symbols()
    for index in range(0, len(ours), max(1, len(ours) // 2000)):
        symbol, mine = theirs.get_symbol(index), ours[index]
        name = symbol.name.partition("@")[0] if theirs.name == ".symtab" else symbol.name
        assert (mine.index, mine.name, mine.value, mine.size) == (index, name, symbol["st_value"], symbol["st_size"])
        assert mine.binding == BINDINGS[symbol["st_info"]["bind"]]
        shndx = symbol["st_shndx"]
        assert mine.absolute == (shndx == "SHN_ABS")
        assert mine.common == (shndx == "SHN_COMMON")
        assert mine.defined == (shndx != "SHN_UNDEF")


@pytest.mark.parametrize("name", (*IMAGES, *OBJECTS[:4], *SYSTEM))
def test_symbols_are_those_that_pyelftools_reads(samples: dict[str, Path], name: str) -> None:
    path = place(samples, name)
    with path.open("rb") as file, ElfFile.open(path) as ours:
        theirs = ELFFile(file)
        for section in theirs.iter_sections():
            if not isinstance(section, SymbolTableSection):
                continue
            if section.name == ".symtab":
                check_symbols(section, ours.symbols())
            elif section.name == ".dynsym":
                check_symbols(section, ours.dynamic_symbols())
        if theirs.get_section_by_name(".symtab") is None:
            assert ours.symbols() == ()


@pytest.mark.parametrize("name", (*IMAGES, *SYSTEM))
def test_symbol_versions_are_those_that_pyelftools_reads(samples: dict[str, Path], name: str) -> None:
    path = place(samples, name)
    with path.open("rb") as file, ElfFile.open(path) as ours:
        theirs = ELFFile(file)
        names: dict[int, tuple[str, str | None]] = {}
        indices: GNUVerSymSection | None = None
        for section in theirs.iter_sections():
            if isinstance(section, GNUVerSymSection):
                indices = section
            elif isinstance(section, GNUVerDefSection):
                for definition, auxiliaries in section.iter_versions():
                    names[definition["vd_ndx"]] = next(a.name for a in auxiliaries), None
            elif isinstance(section, GNUVerNeedSection):
                for need, auxiliaries in section.iter_versions():
                    names |= {a["vna_other"]: (a.name, need.name) for a in auxiliaries}
        for index, mine in enumerate(ours.dynamic_symbols()):
            raw = 0
            if indices is not None:
                entry = indices.get_symbol(index)["ndx"]
                raw = entry if isinstance(entry, int) else {"VER_NDX_LOCAL": 0, "VER_NDX_GLOBAL": 1}[entry]
            version, library = names.get(raw & 0x7FFF, (None, None)) if raw & 0x7FFF > 1 else (None, None)
            assert (mine.version, ours.library_of(mine)) == (version, library), mine


@pytest.mark.parametrize("name", (*IMAGES, *SYSTEM))
def test_dynamic_relocations_are_those_that_pyelftools_reads(samples: dict[str, Path], name: str) -> None:
    path = place(samples, name)
    with path.open("rb") as file, ElfFile.open(path) as ours:
        theirs = ELFFile(file)
        expected = []
        packed = []
        for section in theirs.iter_sections():
            if isinstance(section, RelocationSection) and section["sh_flags"] & 2:
                expected += [
                    (r["r_offset"], r["r_info_type"], r["r_info_sym"], r["r_addend"])
                    for r in section.iter_relocations()
                ]
            elif isinstance(section, RelrRelocationSection):
                packed += [r["r_offset"] for r in section.iter_relocations()]
        mine = [(r.offset, r.type, r.symbol, r.addend) for r in ours.dynamic_relocations()]
        assert sorted(mine[: len(expected)]) == sorted(expected)
        assert [offset for offset, *_ in mine[len(expected) :]] == packed
        for offset, kind, symbol, addend in mine[len(expected) :]:
            assert (kind, symbol) == (8, 0)
            assert ours.read_vaddr(offset, 8) == addend.to_bytes(8, "little", signed=True)


def test_packed_relocations_are_in_the_samples_at_all(samples: dict[str, Path]) -> None:
    for name in ("libpacked.so", "liblld.so"):
        with ElfFile.open(samples[name]) as image:
            assert sum(r.type == 8 for r in image.dynamic_relocations()) >= 4


@pytest.mark.parametrize("name", OBJECTS)
def test_relocations_of_objects_are_those_that_pyelftools_reads(samples: dict[str, Path], name: str) -> None:
    with samples[name].open("rb") as file, ElfFile.open(samples[name]) as ours:
        theirs = ELFFile(file)
        seen = 0
        for section in theirs.iter_sections():
            if isinstance(section, RelocationSection):
                expected = [
                    (r["r_offset"], r["r_info_type"], r["r_info_sym"], r["r_addend"])
                    for r in section.iter_relocations()
                ]
                found = ours.relocations(ours.sections[section["sh_info"]])
                assert [(r.offset, r.type, r.symbol, r.addend) for r in found] == expected
                seen += len(found)
        assert seen or name == "many.o"


@pytest.mark.parametrize("name", BARE)
def test_without_section_headers_the_loader_s_view_is_the_same(samples: dict[str, Path], name: str) -> None:
    with ElfFile.open(samples[name]) as full, ElfFile.open(samples[f"{name} bare"]) as bare:
        assert bare.sections == () and bare.symbols() == ()
        facts = (
            "build_id",
            "kind",
            "is_pie",
            "soname",
            "needed",
            "interpreter",
            "flags_1",
            "irelative",
            "relro",
            "tls",
        )
        for fact in facts:
            assert getattr(bare, fact) == getattr(full, fact), fact
        assert bare.dynamic_symbols() == full.dynamic_symbols()
        assert bare.dynamic_relocations() == full.dynamic_relocations()
        assert bare.got_slots() == full.got_slots()
        assert bare.plt() == full.plt()
        assert bare.frame_table is not None and full.frame_table is not None
        assert list(bare.frame_table.functions()) == list(full.frame_table.functions())


@pytest.mark.parametrize("name", ("pie", "nopie", "ibt", "old", "libsample.so", "libplus.so", "lonely", LIBC))
def test_plt_entries_are_those_that_objdump_names(samples: dict[str, Path], name: str) -> None:
    path = place(samples, name)
    sections = [f"-j.plt{kind}" for kind in ("", ".sec", ".got")]
    text = subprocess.run(["objdump", "-d", *sections, str(path)], capture_output=True, text=True, check=True).stdout
    expected: dict[str, set[int]] = {}
    for address, symbol in re.findall(r"^([0-9a-f]+) <([^@>+]+)(?:@[^>]*)?@plt>:", text, re.MULTILINE):
        expected.setdefault(symbol, set()).add(int(address, 16))
    assert expected
    with ElfFile.open(path) as image:
        found: dict[str, set[int]] = {}
        for entry in image.plt_entries:
            if entry.symbol is not None:
                found.setdefault(entry.symbol.name, set()).add(entry.vaddr)
        # With IBT objdump also names the lazy halves in .plt, through which nothing calls.
        assert {symbol: vaddrs & found.get(symbol, set()) for symbol, vaddrs in expected.items()} == found
        assert expected.keys() == found.keys()
        if name != "ibt":
            assert expected == found


def test_the_plt_of_lld_leads_to_the_slots_of_its_relocations(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["lld"]) as image:
        lazy = {slot.symbol.name for slot in image.got_entries if slot.lazy}
        assert {"free", "printf", "thing", "twice"} <= lazy
        assert lazy <= image.plt().keys()


def test_kinds(samples: dict[str, Path]) -> None:
    kinds = {}
    for name in (*IMAGES, *OBJECTS, *SYSTEM):
        with ElfFile.open(place(samples, name)) as image:
            kinds[Path(name).name] = image.kind, image.is_pie
    pies = {"pie", "ibt", "noplt", "lld", "staticpie"}
    for name, (kind, is_pie) in kinds.items():
        expected = "relocatable" if name.endswith(".o") else "shared" if ".so" in name else "executable"
        assert (kind, is_pie) == (expected, name in pies), name


def test_versions_and_files_of_symbols(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["libsample.so"]) as image:
        assert image.defined_versions == ("SAMPLE_1.0", "SAMPLE_2.0")
        old, new = image.dynamic_symbol("thing", "SAMPLE_1.0"), image.dynamic_symbol("thing")
        assert old is not None and new is not None
        assert (old.default_version, new.default_version, new.version) == (False, True, "SAMPLE_2.0")
        assert old.value != new.value and image.dynamic_symbol("thing", "SAMPLE_2.0") == new
        assert image.dynamic_symbol("thing", "SAMPLE_3.0") is None and image.dynamic_symbol("strlen") is None
        local = image.symbol("counter")
        assert local is not None and (local.binding, local.file, local.type) == ("local", "lib.c", "object")
    with ElfFile.open(samples["pie"]) as image:
        thing = next(s for s in image.dynamic_symbols() if s.name == "thing")
        assert (thing.defined, thing.version, image.library_of(thing)) == (False, "SAMPLE_2.0", "libsample.so.1")
        assert any(need.version == "SAMPLE_2.0" and need.library == "libsample.so.1" for need in image.version_needs)
        assert "thing@SAMPLE_2.0" in image.plt() and "free@GLIBC_2.2.5" in image.got_slots()
        assert [s.version for s in image.symbols_by_name["thing"]] == ["SAMPLE_2.0"]
    with ElfFile.open(samples["nopie"]) as image:
        copied = image.dynamic_symbol("shared_value")
        assert copied is not None and copied.version == "SAMPLE_1.0" and image.library_of(copied) == "libsample.so.1"
    with ElfFile.open(samples["libplus.so"]) as image:
        assert any(s.binding == "unique" for s in image.dynamic_symbols())


def test_system_v_hash_serves_where_there_is_no_gnu_hash(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["libstripped.so"]) as image:
        assert image.build_id is None and image.symbols() == () and image.bind_now
        found = image.dynamic_symbol("twice")
        assert found is not None and found.type == "func"
        assert image.dynamic_symbol("nothing_of_that_name") is None


def test_more_sections_than_a_symbol_can_number(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["many.o"]) as image:
        assert len(image.sections) > 0xFF00
        last = image.symbol(f"f{0xFF10 - 1}")
        assert last is not None and last.section is not None
        assert image.sections[last.section].name == f".text.f{0xFF10 - 1}"


def test_compilers_lto_and_debug_are_told(samples: dict[str, Path]) -> None:
    marks = {}
    for name in ("gcc.o", "clang.o", "lto.o", "fat.o"):
        with ElfFile.open(samples[name]) as image:
            marks[name] = image.is_lto, image.has_debug, image.comments[0].split()[0]
    assert marks == {
        "gcc.o": (False, True, "GCC:"),
        "clang.o": (False, True, "Debian"),
        "lto.o": (True, False, "GCC:"),
        "fat.o": (True, False, "GCC:"),
    }
    with pytest.raises(ImageError, match="LLVM bitcode; compile without -flto"):
        ElfFile.open(samples["bitcode.o"])


def test_memory_of_the_program_reads_as_it_starts(samples: dict[str, Path]) -> None:
    with ElfFile.open(samples["nopie"]) as image:
        zero, helper = image.symbol("zero"), image.symbol("helper")
        assert zero is not None and helper is not None
        assert image.read_vaddr(zero.value, 256) == bytes(256) and image.vaddr_to_offset(zero.value) is None
        offset = image.vaddr_to_offset(helper.value)
        assert offset is not None
        raw = samples["nopie"].read_bytes()
        assert image.read_vaddr(helper.value, helper.size) == raw[offset : offset + helper.size]
        for vaddr, size in ((0, 1), (zero.value, 1 << 40), (helper.value, 1 << 30), (helper.value, -1), (1 << 64, 1)):
            with pytest.raises(ImageError):
                image.read_vaddr(vaddr, size)


def test_thread_pointer_offsets_are_where_the_variable_is(samples: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "tls.c"
    source.write_text(
        "#include <stdio.h>\n__thread long a = 5; __thread char b[100] __attribute__((aligned(64)));\n"
        'int main(void) { char *tp; __asm__("mov %%fs:0,%0" : "=r"(tp));'
        ' printf("%td %td\\n", (char *)&a - tp, b - tp); return 0; }\n'
    )
    for flags in (("-no-pie",), ("-static",), ("-pie", "-fPIE")):
        subprocess.run(["gcc", *flags, str(source), "-o", str(tmp_path / "tls")], check=True)
        shown = subprocess.run([str(tmp_path / "tls")], capture_output=True, text=True, check=True).stdout.split()
        with ElfFile.open(tmp_path / "tls") as image:
            offsets = [image.thread_pointer_offset(s.value) for n in "ab" if (s := image.symbol(n)) is not None]
        assert offsets == [int(text) for text in shown]


# --- against our own process -----------------------------------------------------------------------------------------


def own_mappings() -> list[tuple[int, int, str, int, str]]:
    rows = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, protection, offset, _, _, *path = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        rows.append((int(start, 16), int(end, 16), protection, int(offset, 16), path[0] if path else ""))
    return rows


def own_memory(address: int, size: int) -> bytes:
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)


def biases(image: ElfFile, path: str) -> Iterable[int]:
    for start, _, protection, offset, mapped in own_mappings():
        if mapped == path:
            yield image.load_bias(start, offset, "x" in protection)


def test_symbols_lie_where_the_loader_finds_them() -> None:
    library = ctypes.CDLL("libc.so.6")
    with ElfFile.open(LIBC) as image:
        [bias] = set(biases(image, os.path.realpath(LIBC)))
        for name in ("malloc", "free", "printf", "pthread_create", "qsort", "getenv", "mmap", "pthread_cond_wait"):
            symbol = image.dynamic_symbol(name)
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            assert symbol is not None and address == bias + symbol.value, name
        assert image.dynamic_symbol("memcpy") != image.dynamic_symbol("memcpy", "GLIBC_2.2.5")
        with pytest.raises(ImageError, match="no segment"):
            image.load_bias(0x1000, 1 << 40)


def test_got_slots_hold_what_the_loader_bound() -> None:
    library = ctypes.CDLL("libc.so.6")
    path = os.path.realpath("/usr/lib/x86_64-linux-gnu/libstdc++.so.6")
    ctypes.CDLL(path)
    with ElfFile.open(path) as image:
        [bias] = set(biases(image, path))
        slots = {slot.symbol.name: slot.vaddr for slot in image.got_entries if not slot.lazy}
        address = ctypes.cast(library.pthread_key_create, ctypes.c_void_p).value
        held = {name: int.from_bytes(own_memory(bias + vaddr, 8), "little") for name, vaddr in slots.items()}
        assert held["stdin"] == ctypes.addressof(ctypes.c_void_p.in_dll(library, "stdin"))
        assert held["pthread_key_create"] == address if "pthread_key_create" in held else len(held) > 100


def test_images_are_read_out_of_memory(tmp_path: Path) -> None:
    starts = {path: start for start, _, _, offset, path in reversed(own_mappings()) if offset == 0}
    vdso = ElfFile.read_remote(own_memory, starts["[vdso]"])
    assert vdso.soname == "linux-vdso.so.1" and vdso.kind == "shared"
    end = next(end for start, end, *_ in own_mappings() if start == starts["[vdso]"])
    dumped = tmp_path / "vdso"
    dumped.write_bytes(own_memory(starts["[vdso]"], end - starts["[vdso]"]))
    with dumped.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(table, SymbolTableSection)
        expected = {s.name: s["st_value"] for s in table.iter_symbols() if s["st_shndx"] != "SHN_UNDEF"}
    assert "__vdso_clock_gettime" in expected
    assert {s.name: s.value for s in vdso.dynamic_symbols() if s.defined} == expected
    assert vdso.frame_table is not None
    symbol = vdso.dynamic_symbol("__vdso_clock_gettime")
    assert symbol is not None and vdso.frame_table.find(symbol.value) is not None
    # The loader has written addresses into libc's dynamic section.
    path = os.path.realpath(LIBC)
    remote = ElfFile.read_remote(own_memory, starts[path], "libc")
    with ElfFile.open(path) as image:
        assert remote.dynamic_symbols() == image.dynamic_symbols()
        assert remote.dynamic_symbol("malloc") == image.dynamic_symbol("malloc")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_no_x86_64_elf_file_is_named(tmp_path: Path, samples: dict[str, Path]) -> None:
    raw = samples["pie"].read_bytes()
    aarch64 = raw[:18] + (183).to_bytes(2, "little") + raw[20:]
    core = raw[:16] + (4).to_bytes(2, "little") + raw[18:]
    i386 = raw[:4] + b"\1" + raw[5:18] + (3).to_bytes(2, "little") + raw[20:]
    for data, message in (
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (raw[:17], "cut short"),
        (raw[:30], "the header lies outside the file"),
        (raw[:100], "program header table lies outside"),
        (aarch64, "AArch64"),
        (i386, "32-bit ELF for i386"),
        (core, "core dump"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            ElfFile(data, "name\nof the file")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("name?of the file: ")
    with pytest.raises(ImageError, match="cannot be opened: No such file"):
        ElfFile.open(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ImageError, match="not a regular file"):
            ElfFile.open(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_crash(
    tmp_path: Path, samples: dict[str, Path]
) -> None:
    path = tmp_path / "shrinking"
    shutil.copy(samples["static"], path)
    with ElfFile.open(path) as image:
        os.truncate(path, 4096)
        with pytest.raises(ImageError, match="became shorter"):
            image.symbols()
