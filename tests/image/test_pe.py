"""PE images and COFF objects, held against what GNU's and LLVM's own tools say of them."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midflight.errors import ImageError
from midflight.image.coffobject import R_RVA32, CoffObject
from midflight.image.elf import ElfFile
from midflight.image.pe import PeFile
from tests.image.test_fuzz import damage, damaged
from tests.image.windows import build_all

IMAGES = (
    "program.exe",
    "stripped.exe",
    "library.dll",
    "forwards.dll",
    "plus.exe",
    "bare.dll",
    "metadata.dll",
    "debug.dll",
)
OBJECTS = ("gcc.o", "plus.o", "clang.obj")
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled samples by name."""
    return build_all(tmp_path_factory.mktemp("windows"))


def tool(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


# --- what it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_the_identity_is_checksum_and_timestamp(windows: dict[str, Path], name: str) -> None:
    headers = tool("llvm-readobj-14", "--file-headers", windows[name])
    number = int(re.search(r"TimeDateStamp:.*\(0x([0-9A-F]+)\)", headers)[1], 16)  # type: ignore[index]
    with PeFile.open(windows[name]) as image:
        assert image.timestamp == number
        assert image.build_id == f"pe-{image.checksum:08x}-{number:08x}"
        assert image.kind == ("executable" if name.endswith(".exe") else "shared")
        assert image.is_pie or name == "metadata.dll"
        base = int(re.search(r"ImageBase: 0x([0-9A-F]+)", headers)[1], 16)  # type: ignore[index]
        assert image.image_base == base
    if name == "program.exe":
        shown = tool("x86_64-w64-mingw32-objdump", "-p", windows[name])
        checksum = int(re.search(r"CheckSum\s+([0-9a-f]+)", shown)[1], 16)  # type: ignore[index]
        assert image.checksum == checksum != 0


def test_an_image_that_says_nothing_of_itself_has_no_identity(windows: dict[str, Path]) -> None:
    data = bytearray(windows["program.exe"].read_bytes())
    at = int.from_bytes(data[60:64], "little")
    data[at + 8 : at + 12] = data[at + 24 + 64 : at + 24 + 68] = bytes(4)
    assert PeFile(bytes(data)).build_id is None


@pytest.mark.parametrize("name", IMAGES)
def test_sections_are_where_the_headers_say(windows: dict[str, Path], name: str) -> None:
    shown = tool("llvm-readobj-14", "--sections", windows[name])
    expected = [
        (n, int(address, 16), int(size, 16), int(raw))
        for n, size, address, raw in re.findall(
            r"Name: (\S+) \(.*?VirtualSize: 0x([0-9A-F]+).*?VirtualAddress: 0x([0-9A-F]+).*?RawDataSize: (\d+)",
            shown,
            re.DOTALL,
        )
    ]
    pages = [(a, max(n, min(raw, -(-n // 4096) * 4096))) for _, a, n, raw in expected]
    with PeFile.open(windows[name]) as image:
        assert [(s.name, s.address, s.size) for s in image.sections[1:]] == [row[:3] for row in expected]
        assert [(s.address, s.memory_size) for s in image.segments[1:]] == pages, "what fills the last page is mapped"
        assert image.read_vaddr(0, 2) == b"MZ"
        assert image.segment_at(image.entry).executable  # type: ignore[union-attr]


# --- tables --------------------------------------------------------------------------------------------------------


def test_exports_with_forwarders(windows: dict[str, Path]) -> None:
    with PeFile.open(windows["forwards.dll"]) as image:
        by_name = {item.name: item for item in image.exports}
        assert by_name["sleep"].forward == "kernel32.Sleep"
        assert by_name["byordinal"].forward == "outside.#7"
        assert by_name["api"].forward is None and by_name["other"].ordinal == 20
        assert by_name["other"].rva == by_name["api"].rva
        assert image.soname == "forwards.dll"
        api = image.dynamic_symbol("api")
        assert api is not None and api.type == "func" and api.value == by_name["api"].rva
        assert image.dynamic_symbol("sleep") is None


@pytest.mark.parametrize("name", [n for n in IMAGES if n != "metadata.dll"])
def test_imports_and_their_slots(windows: dict[str, Path], name: str) -> None:
    shown = tool("llvm-readobj-14", "--coff-imports", windows[name])
    expected: list[tuple[str, str]] = []
    library = ""
    for line in shown.splitlines():
        word, _, rest = line.strip().partition(": ")
        if word == "Name":
            library = rest.lower()
        elif word == "Symbol":
            import_, _, ordinal = rest.rpartition(" (")
            expected.append((library, import_ or f"{library}#{ordinal.rstrip(')')}"))
    with PeFile.open(windows[name]) as image:
        assert [(item.library, item.name) for item in image.imports] == expected
        slots = {r.offset: r for r in image.dynamic_relocations() if r.type == 6}
        for item in image.imports:
            symbol = image.dynamic_symbols()[slots[item.slot].symbol]
            assert symbol.name == item.name and not symbol.defined and image.library_of(symbol) == item.library
        for stub in image.plt_entries:
            code = image.read_vaddr(stub.vaddr, 7)
            assert b"\xff\x25" in code and stub.symbol is not None


@pytest.mark.parametrize("name", IMAGES)
def test_base_relocations_are_pointers_into_the_image(windows: dict[str, Path], name: str) -> None:
    shown = tool("llvm-readobj-14", "--coff-basereloc", windows[name])
    expected = [int(a, 16) for a in re.findall(r"Type: DIR64\s+Address: 0x([0-9A-F]+)", shown)]
    with PeFile.open(windows[name]) as image:
        found = [r for r in image.dynamic_relocations() if r.type == 8]
        assert [r.offset for r in found] == expected
        for item in found:
            assert 0 <= item.addend <= image.size_of_image


@pytest.mark.parametrize("name", ["program.exe", "plus.exe", "bare.dll"])
def test_functions_are_what_pdata_says(windows: dict[str, Path], name: str) -> None:
    shown = tool("llvm-readobj-14", "--unwind", windows[name])
    with PeFile.open(windows[name]) as image:
        pairs = re.findall(
            r"StartAddress: .*?\(?0x([0-9A-F]+)\)?\s+EndAddress: .*?\(?0x([0-9A-F]+)\)?\s+UnwindInfoAddress", shown
        )
        base = image.image_base
        assert [(a + base, b + base) for a, b in image.function_extents()] == [
            (int(a, 16), int(b, 16)) for a, b in pairs
        ]
        assert pairs


def test_symbols_of_an_image(windows: dict[str, Path]) -> None:
    listed = tool("x86_64-w64-mingw32-nm", windows["program.exe"])
    with PeFile.open(windows["program.exe"]) as image:
        for name in ("helper", "choose", "scale", "main", "shared", "counter"):
            address = int(re.search(rf"^([0-9a-f]+) . {name}$", listed, re.MULTILINE)[1], 16)  # type: ignore[index]
            symbol = image.symbol(name)
            assert symbol is not None and symbol.value + image.image_base == address
        helper = image.symbol("helper")
        assert helper is not None and helper.binding == "local" and helper.size > 0
        assert helper.file == "main.c" and helper.type == "func"
    with PeFile.open(windows["stripped.exe"]) as image:
        assert image.symbols() == () and image.imports and image.runtime_functions


def test_an_image_is_read_out_of_memory_too(windows: dict[str, Path]) -> None:
    with PeFile.open(windows["library.dll"]) as disk:
        memory = bytearray(disk.size_of_image)
        for segment in disk.segments:
            memory[segment.address : segment.address + segment.memory_size] = disk.read_vaddr(
                segment.address, segment.memory_size
            )
        base = 0x7FF0_0000
        image = PeFile.read_remote(lambda at, size: bytes(memory[at - base : at - base + size]), base, "remote")
        assert image.build_id == disk.build_id and image.exports == disk.exports and image.imports == disk.imports
        assert image.runtime_functions == disk.runtime_functions and image.soname == "library.dll"
        assert [s.address for s in image.segments] == [s.address for s in disk.segments]


# --- Microsoft's hot patch metadata --------------------------------------------------------------------------------


def test_the_metadata_of_a_hotpatch_of_windows(windows: dict[str, Path]) -> None:
    with PeFile.open(windows["metadata.dll"]) as image:
        info = image.hotpatch_info
    assert info is not None
    assert (info.version, info.sequence, info.extra_patch_size, len(info.bases)) == (3, 7, 0x1000, 2)
    first, second = info.bases
    assert first.identity == "pe-0001f00d-662a7c63" and first.meanings == ("can roll back", "x64")
    assert first.sha256 == "ab" * 32 and first.patches == 0x20
    assert second.identity == "pe-000beef0-5ec0ffee" and second.meanings == ("obligatory", "x64", "0x100")
    assert second.sha256 is None and second.patches == 0


def test_other_images_have_no_such_metadata(windows: dict[str, Path]) -> None:
    for name in ("program.exe", "bare.dll"):
        with PeFile.open(windows[name]) as image:
            assert image.hotpatch_info is None


# --- objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_relocations_of_objects_are_those_that_objdump_shows(windows: dict[str, Path], name: str) -> None:
    shown = tool("llvm-objdump-14", "-r", windows[name])
    expected = re.findall(r"^([0-9a-f]{16}) (IMAGE_REL_AMD64_\w+)", shown, re.MULTILINE)
    kinds = {
        "ADDR64": {1}, "ADDR32": {10}, "ADDR32NB": {R_RVA32}, "SECREL": {10, 21},
        **{f"REL32{n}": {2, 9} for n in ("", "_1", "_2", "_3", "_4", "_5")},
    }  # fmt: skip
    with CoffObject.open(windows[name]) as code:
        found = [r for section in code.sections[1:] for r in code.relocations(section)]
        wanted = [(int(at, 16), kind.removeprefix("IMAGE_REL_AMD64_")) for at, kind in expected]
        wanted = [item for item in wanted if item[1] != "SECTION"]
        assert len(found) == len(wanted)
        for relocation, (at, kind) in zip(found, wanted, strict=True):
            assert relocation.offset == at and relocation.type in kinds[kind]
            assert relocation.symbol < len(code.symbols())


def test_functions_of_an_object_end_where_pdata_says(windows: dict[str, Path]) -> None:
    with CoffObject.open(windows["gcc.o"]) as code:
        sizes = {s.name: s.size for s in code.symbols() if s.type == "func" and s.defined}
        assert code.has_debug and not code.is_lto and code.comments and code.comments[0].startswith("GCC: ")
    with PeFile.open(windows["program.exe"]) as image:
        for name in ("helper", "api", "choose", "scale", "tick", "main"):
            symbol = image.symbol(name)
            assert symbol is not None and sizes[name] == symbol.size > 0


def test_imports_of_an_object_are_slots(windows: dict[str, Path]) -> None:
    with CoffObject.open(windows["clang.obj"]) as code:
        api = code.section(".text")
        names = [
            (code.symbols()[r.symbol].name, r.type)
            for s in code.sections if s.name == ".text"
            for r in code.relocations(s)
        ]  # fmt: skip
        assert api is not None and ("outside", 9) in names and ("tl", 21) in names and ("_tls_index", 2) in names
        leaf = next(s for s in code.symbols() if s.name == "leaf")
        assert leaf.size == len(code.section_data(code.sections[leaf.section or 0]))


def test_what_is_no_windows_file(samples: dict[str, Path], windows: dict[str, Path], tmp_path: Path) -> None:
    for path, message in (
        (samples["pie"], "not a PE image"),
        (windows["gcc.o"], "not a PE image"),
    ):
        with pytest.raises(ImageError, match=message):
            PeFile.open(path)
    with pytest.raises(ImageError, match="no object"):
        CoffObject.open(samples["gcc.o"])
    with pytest.raises(ImageError, match="not an ELF file"):
        ElfFile.open(windows["program.exe"])
    data = bytearray(windows["program.exe"].read_bytes())
    at = int.from_bytes(data[60:64], "little") + 4
    data[at : at + 2] = b"\x4c\x01"
    with pytest.raises(ImageError, match="i386"):
        PeFile(bytes(data))


# --- whatever the bytes --------------------------------------------------------------------------------------------

IMAGE_FACTS = (
    "kind", "is_pie", "build_id", "soname", "needed", "segments", "sections", "symbols_by_name", "got_entries",
    "plt_entries", "exports", "imports", "runtime_functions", "load_config", "hotpatch_info", "has_debug", "codeview",
    "comments",
    "symbols", "dynamic_symbols", "dynamic_relocations", "plt", "function_extents",
)  # fmt: skip
OBJECT_FACTS = (
    "sections", "comments", "directives", "is_lto", "has_debug", "associated", "runtime_functions", "symbols",
    "symbols_by_name",
)  # fmt: skip


def use_everything(data: bytes, kind: type[PeFile | CoffObject]) -> int:
    """Ask for all there is; returns how many questions had an answer."""
    answers = 0
    try:
        image = kind(data, "fuzzed")
    except ImageError as error:
        assert "\n" not in str(error)
        return 0
    questions: list[tuple[str, tuple[object, ...]]] = [
        (fact, ()) for fact in (IMAGE_FACTS if isinstance(image, PeFile) else OBJECT_FACTS)
    ]
    try:
        for section in image.sections[:40]:
            questions += [("section_data", (section,)), ("relocations", (section,))]
    except ImageError:
        pass
    if isinstance(image, PeFile):
        questions += [("symbol", ("main",)), ("dynamic_symbol", ("api",)), ("read_vaddr", (image.entry, 16))]
    for name, arguments in questions:
        try:
            result = getattr(image, name)
            if callable(result):
                result(*arguments)
        except ImageError as error:
            assert "\n" not in str(error)
            continue
        answers += 1
    return answers


@pytest.mark.parametrize("name", [*IMAGES, *OBJECTS])
@FUZZ
@given(data=st.data())
def test_damaged_files(windows: dict[str, Path], name: str, data: st.DataObject) -> None:
    raw = windows[name].read_bytes()
    edits = data.draw(damage(len(raw)))
    keep = data.draw(st.sampled_from((1.0, 1.0, 1.0, 0.9, 0.5, 0.1)))
    use_everything(damaged(raw, edits, keep), CoffObject if name in OBJECTS else PeFile)


@pytest.mark.parametrize("name", [*IMAGES, *OBJECTS])
def test_undamaged_files_answer_everything(windows: dict[str, Path], name: str) -> None:
    """Otherwise the fuzzing would be of nothing."""
    kind = CoffObject if name in OBJECTS else PeFile
    image = kind(windows[name].read_bytes())
    facts = OBJECT_FACTS if name in OBJECTS else IMAGE_FACTS
    sections = 2 * len(image.sections[:40])
    assert use_everything(windows[name].read_bytes(), kind) >= len(facts) + sections + (name not in OBJECTS) * 2


@pytest.mark.parametrize("name", ["bare.dll", "metadata.dll", "clang.obj"])
def test_every_truncation_of_a_file(windows: dict[str, Path], name: str) -> None:
    raw = windows[name].read_bytes()
    for size in (*range(0, 1024, 13), *range(1024, len(raw), 97)):
        use_everything(raw[:size], CoffObject if name in OBJECTS else PeFile)


@FUZZ
@given(st.binary(max_size=600), st.integers(0, 8), st.integers(0, 60))
def test_noise_behind_a_good_header(noise: bytes, sections: int, symbols: int) -> None:
    header = struct.pack("<HHIIIHH", 0x8664, sections, 1, 20 + 40 * sections, symbols, 0, 0)
    use_everything(header + noise, CoffObject)
    optional = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 0, 0, 0, 0, 0, 0x1000, 0, 0x140000000, 0x1000,
                           0x200, 0, 0, 0, 0, 0, 0, 0, 0x10000, 0x200, 0, 0, 0, 0, 0, 0, 0, 0, 16)  # fmt: skip
    image = struct.pack("<HHIIIHH", 0x8664, sections, 1, 0x300, symbols, len(optional) + 128, 0x2022)
    use_everything(b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0" + image + optional + noise, PeFile)
