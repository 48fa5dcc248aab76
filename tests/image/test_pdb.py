"""PDB files as lld-link writes them, held against llvm-pdbutil; whatever the bytes, only ImageError escapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.errors import ImageError
from midflight.image.pdb import MAGIC, PdbFile
from midflight.image.pe import PeFile
from tests.image.samples import run
from tests.image.test_fuzz import FUZZ, damage, damaged
from tests.image.test_pe import tool

C = r"""
static int state = 4; int shared = 7; __declspec(thread) int tl = 3; int _tls_index;
static __attribute__((noinline)) int classify(int x) { return x * state++; }
__attribute__((noinline)) int grade(int x) { return classify(x) + classify(x + 1) + tl; }
int mainCRTStartup(void) { return grade(shared); }
"""
CXX = r"""
namespace inner { static int kept = 5; static __attribute__((noinline)) int helper(int x) { return x * kept++; } }
struct Shape { virtual int area(int); };
int Shape::area(int x) { return inner::helper(x); }
static Shape one;
extern "C" int area(int x) { Shape *volatile s = &one; return s->area(x); }
"""
CLANG = ("clang", "--target=x86_64-pc-windows-msvc", "-O2", "-g", "-gcodeview", "-fno-rtti", "-c")
LINK = ("lld-link", "/entry:mainCRTStartup", "/subsystem:console", "/nodefaultlib", "/debug", "/include:area")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with program.exe and program.pdb, and with another build of both."""
    where = tmp_path_factory.mktemp("pdb")
    (where / "main.c").write_text(C)
    (where / "shape.cpp").write_text(CXX)
    for name in ("main.c", "shape.cpp"):
        run(*CLANG, name, "-o", name.partition(".")[0] + ".obj", cwd=where)
    run(*LINK, "main.obj", "shape.obj", "/out:program.exe", cwd=where)
    run(*LINK, "main.obj", "shape.obj", "/out:other.exe", "/stack:0x300000", cwd=where)
    return where


def test_it_belongs_to_the_build_that_names_it(built: Path) -> None:
    with PeFile.open(built / "program.exe") as image, PdbFile.open(built / "program.pdb") as pdb:
        assert image.codeview is not None and image.codeview.name == "program.pdb"
        shown = tool("llvm-pdbutil-14", "dump", "-summary", built / "program.pdb")
        streams = tool("llvm-pdbutil-14", "pdb2yaml", "-pdb-stream", built / "program.pdb")
        guid = re.search(r"Guid: +'?\{([0-9A-F-]+)\}", streams)
        assert "Has Debug Info: true" in shown and guid is not None
        parts = guid[1].lower().split("-")
        order = "".join(bytes.fromhex(p)[::-1].hex() for p in parts[:3]) + "".join(parts[3:])
        assert pdb.identity.guid == image.codeview.guid == order and pdb.identity.age == image.codeview.age == 1
        assert pdb.belongs_to(image)
        with PdbFile.open(built / "other.pdb") as other:
            assert not other.belongs_to(image)


def test_one_byte_of_its_identity_is_another_build(built: Path) -> None:
    raw = (built / "program.pdb").read_bytes()
    with PeFile.open(built / "program.exe") as image:
        assert image.codeview is not None
        guid = bytes.fromhex(image.codeview.guid)
        assert raw.count(guid) == 1
        data = bytearray(raw)
        data[raw.index(guid) + 7] ^= 1
        assert not PdbFile(bytes(data)).belongs_to(image)


def test_symbols_are_where_llvm_says(built: Path) -> None:
    shown = tool("llvm-pdbutil-14", "dump", "-publics", built / "program.pdb")
    with PeFile.open(built / "program.exe") as image, PdbFile.open(built / "program.pdb") as pdb:
        expected = set()
        for name, flags, section, offset in re.findall(
            r"S_PUB32 \[size = \d+\] `(.+?)`\n +flags = (.+?), addr = (\d+):(\d+)", shown
        ):
            place = image.sections[int(section)] if int(section) < len(image.sections) else None
            if place is not None:
                base = 0 if place.name == ".tls" else place.address
                expected.add((name, base + int(offset), "function" in flags))
        assert {(s.name, s.value, s.type == "func") for s in pdb.symbols() if s.binding == "global"} == expected
        assert {"grade", "shared", "?area@Shape@@UEAAHH@Z", "tl"} <= {name for name, _, _ in expected}
        grade, entry = pdb.symbol("grade"), {item.begin: item.end for item in image.runtime_functions}
        assert grade is not None and entry[grade.value] == grade.value + grade.size


def test_static_symbols_are_those_of_c(built: Path) -> None:
    """Those of C++ have other names in objects: inner::helper is ?helper@inner@@YAHH@Z there."""
    with PeFile.open(built / "program.exe") as image, PdbFile.open(built / "program.pdb") as pdb:
        local = {s.name: s for s in pdb.symbols() if s.binding == "local" and s.name}
        assert set(local) == {"classify", "state"}
        assert {s.file for s in local.values()} == {"main.c"}
        code, data = image.section(".text"), image.section(".data")
        assert code is not None and data is not None
        assert code.address <= local["classify"].value < code.address + code.size and local["classify"].size
        assert image.read_vaddr(local["state"].value, 4) == (4).to_bytes(4, "little")
        assert pdb.symbol("classify") == local["classify"] and pdb.symbol("helper") is None


def test_what_is_no_pdb(built: Path) -> None:
    with pytest.raises(ImageError, match="not a PDB"):
        PdbFile.open(built / "program.exe")
    with pytest.raises(ImageError, match="not a PDB"):
        PdbFile(b"Microsoft C/C++ program database 2.00\r\n\x1aJG\0\0")


def test_images_without_a_pdb_name_none(built: Path) -> None:
    run(*LINK[:4], LINK[5], "main.obj", "shape.obj", "/out:bare.exe", cwd=built)
    with PeFile.open(built / "bare.exe") as image, PdbFile.open(built / "program.pdb") as pdb:
        assert image.codeview is None and not pdb.belongs_to(image)


# --- whatever the bytes --------------------------------------------------------------------------------------------


def use(data: bytes, image: PeFile) -> int:
    """Ask for all there is; returns how many questions had an answer."""
    answers = 0
    try:
        pdb = PdbFile(data, "fuzzed")
    except ImageError as error:
        assert "\n" not in str(error)
        return 0
    for question in (
        lambda: pdb.identity,
        lambda: pdb.belongs_to(image),
        lambda: pdb.symbols(),
        lambda: pdb.symbols_by_name,
        lambda: pdb.symbol("grade"),
    ):
        try:
            question()
        except ImageError as error:
            assert "\n" not in str(error)
            continue
        answers += 1
    return answers


@FUZZ
@given(data=st.data())
def test_damaged_files(built: Path, data: st.DataObject) -> None:
    raw = (built / "program.pdb").read_bytes()
    edits = data.draw(damage(len(raw)))
    with PeFile.open(built / "program.exe") as image:
        use(damaged(raw, edits, data.draw(st.sampled_from((1.0, 1.0, 0.9, 0.5)))), image)


@FUZZ
@given(where=st.integers(0, 2000), value=st.binary(min_size=1, max_size=8))
def test_damaged_directories_and_headers(built: Path, where: int, value: bytes) -> None:
    """Where one wrong number matters most: the header, the directory of streams, and the beginning of each stream."""
    raw = bytearray((built / "program.pdb").read_bytes())
    with PeFile.open(built / "program.exe") as image, PdbFile(bytes(raw)) as pdb:
        starts = [0, *(numbers[0] * pdb._block for _, numbers in pdb._streams if numbers)]
        at = starts[where % len(starts)] + where // len(starts)
        raw[at : at + len(value)] = value
        use(bytes(raw), image)


def test_undamaged_files_answer_everything(built: Path) -> None:
    with PeFile.open(built / "program.exe") as image:
        assert use((built / "program.pdb").read_bytes(), image) == 5


def test_every_truncation_of_a_file(built: Path) -> None:
    raw = (built / "program.pdb").read_bytes()
    with PeFile.open(built / "program.exe") as image:
        for size in (*range(0, 512, 7), *range(512, len(raw), 1500)):
            use(raw[:size], image)


@FUZZ
@given(st.binary(max_size=600))
def test_noise_behind_a_good_header(noise: bytes) -> None:
    use_nothing = MAGIC + (512).to_bytes(4, "little") + (1).to_bytes(4, "little") + noise
    try:
        PdbFile(use_nothing).symbols()
    except ImageError as error:
        assert "\n" not in str(error)
