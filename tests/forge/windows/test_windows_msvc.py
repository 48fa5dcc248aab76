"""C++ exceptions, __try and type information of the MSVC ABI, in programs that clang compiles and lld-link links."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from iced_x86 import Decoder

from midflight.errors import ImageError
from midflight.forge.forge import ForgeRequest, RefusedWithFindings, forge
from midflight.forge.model import Finding
from midflight.image.pe import PeFile
from midflight.patch.manifest import Target
from tests.forge.windows.programs import (
    CAUGHT,
    FAULTS,
    FINALLY,
    MSVC_CXX,
    SHAPES,
    THROWN,
    Changes,
    request,
)
from tests.forge.windows.test_windows import built, codes, images, refused

FUNC_INFO = struct.pack("<I", 0x19930522)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program is built."""
    return tmp_path_factory.mktemp("msvc-cxx")


def memory(target: Target, payload: bytes) -> bytes:
    """The payload as it is mapped."""
    found = bytearray(max(s.offset + s.size for s in target.segments))
    for s in target.segments:
        found[s.offset : s.offset + s.file_size] = payload[s.file_offset : s.file_offset + s.file_size]
    return bytes(found)


def made(asked: ForgeRequest) -> tuple[Target, bytes]:
    result, target = built(asked)
    return target, memory(target, result.payloads[target.payload])


def numbers(data: bytes, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}i", data, at)


def handlers(data: bytes) -> Iterator[tuple[int, int]]:
    """(type descriptor, handler) of every catch in the tables of C++ exceptions, by their distances from the base."""
    at = data.find(FUNC_INFO)
    while at >= 0:
        _, _, _, tries, try_map = numbers(data, at, 5)
        for number in range(tries):
            _, _, _, catches, array = numbers(data, try_map + 20 * number, 5)
            for row in range(catches):
                _, type_, _, handler, _ = numbers(data, array + 20 * row, 5)
                yield type_, handler
        at = data.find(FUNC_INFO, at + 4)


def test_new_code_catches_by_types_that_go_along(where: Path) -> None:
    """All that the tables name lies in the payload, at distances from its beginning."""
    target, data = made(request(where, MSVC_CXX, CAUGHT))
    (function,) = target.functions
    (found,) = handlers(data)
    type_, handler = found
    assert data[type_ + 16 :].split(b"\0")[0] == b".?AUError@@"
    assert function.new_offset < handler < function.new_offset + function.new_size
    (fixup,) = [r for r in target.relocations if r.offset == type_]
    with PeFile.open(images(request(where, MSVC_CXX, CAUGHT))[0]) as image:
        table = image.symbol("??_7type_info@@6B@")
        assert table is not None and (fixup.kind, fixup.target) == ("image", table.value)


def test_handlers_belong_to_what_threads_must_not_be_in(where: Path) -> None:
    """A thread in a handler of the old function is in the old function."""
    asked = request(where, MSVC_CXX, CAUGHT)
    target, _ = made(asked)
    (function,) = target.functions
    with PeFile.open(images(asked)[0]) as image:
        symbols = [s for s in image.symbols() if s.name.startswith(("?catch$", "?dtor$")) and "guarded" in s.name]
        assert len(symbols) == 2
        (code,) = function.ranges
        assert all(code.vaddr < s.value and s.value + s.size <= code.vaddr + code.size for s in symbols)


def test_new_code_throws_what_the_program_throws(where: Path) -> None:
    asked = request(where, MSVC_CXX, THROWN)
    target, _ = made(asked)
    with PeFile.open(images(asked)[0]) as image:
        thrown = {s.value for s in image.symbols() if s.name.startswith("_TI")}
    assert thrown and thrown <= {r.target for r in target.relocations if r.kind == "image"}


@pytest.mark.parametrize(
    "changes",
    [
        {"core.cpp": ("if (n > 40) throw Bad(7);", "if (n > 20) throw 2.5f;")},
        # A function that only throws has no handler and no table of its own.
        {"core.cpp": ("{ *hits += 1; return", "{ *hits += 1; if (code == 7) throw 'c'; return")},
    ],
)
def test_new_code_that_throws_another_type_is_refused(where: Path, changes: Changes) -> None:
    found = refused(request(where, MSVC_CXX, changes))
    assert codes(found) == {"MF182"} and all("never throws" in item.reason for item in found)


def test_other_handlers_are_refused(tmp_path: Path) -> None:
    plain, checked = ('__asm__ volatile("" : "+r"(p));', '__asm__ volatile(".seh_handler __GSHandlerCheck, @except");')
    core = MSVC_CXX["core.cpp"].replace(plain, plain + ' say("");')
    main = MSVC_CXX["main.cpp"] + 'extern "C" int __GSHandlerCheck(void) { return 1; }\n'
    source = {**MSVC_CXX, "core.cpp": core, "main.cpp": main}
    found = refused(request(tmp_path, source, {"core.cpp": (plain, plain + checked)}))
    assert any(item.code == "MF182" and "__GSHandlerCheck" in item.reason for item in found)


def test_filters_work_in_the_frame_of_their_function(where: Path) -> None:
    """The fix moves a variable that the filter reads: new frames get the new filter, old ones keep theirs."""
    target, data = made(request(where, MSVC_CXX, FAULTS))
    assert [function.name for function in target.functions] == ["?faults@@YAHPEAH@Z"], "the filter has no trampoline"
    names = {s.name: s for s in target.symbols}
    filters = [s for name, s in names.items() if name.startswith("?filt$")]
    assert len(filters) == 1
    assert target.unwind is not None
    end = target.unwind.offset + target.unwind.size
    rows = [struct.unpack_from("<III", data, at) for at in range(target.unwind.offset, end, 12)]
    (info,) = [info for begin, _, info in rows if begin == names["?faults@@YAHPEAH@Z"].offset]
    codes_ = data[info + 2]
    scopes = info + 4 + (codes_ + 1) // 2 * 4 + 4
    assert numbers(data, scopes, 1) == (1,) and numbers(data, scopes + 12, 1) == (filters[0].offset,)
    (function,) = target.functions
    assert len(function.ranges) == 2, "a thread in the old filter is in the old function"


def test_a_block_of_finally(where: Path) -> None:
    target, _ = made(request(where, MSVC_CXX, FINALLY))
    assert [function.name for function in target.functions] == ["?finally@@YAHPEAH@Z"]


def test_a_new_class_brings_what_says_its_type(where: Path) -> None:
    """The pointer before the table of virtual functions; distances in what it leads to are from the payload's start."""
    target, data = made(request(where, MSVC_CXX, SHAPES))
    (table,) = [s for s in target.symbols if s.name.startswith("??_7Big")]
    (locator,) = [r.target for r in target.relocations if r.offset == table.offset - 8 and r.kind == "payload"]
    signature, _, _, type_, hierarchy, itself = numbers(data, locator, 6)
    assert (signature, itself) == (1, locator)
    assert data[type_ + 16 :].startswith(b".?AUBig@")
    _, _, count, array = numbers(data, hierarchy, 4)
    bases = [numbers(data, base, 1)[0] for base in numbers(data, array, count)]
    assert [data[base + 16 :].split(b"@")[0] for base in bases] == [b".?AUBig", b".?AUSquare", b".?AUShape"]


def test_another_exception_table_is_another_baseline(where: Path, tmp_path: Path) -> None:
    """The code is the same, but what is caught is not: each number of the tables is proven."""
    asked = request(where, MSVC_CXX, CAUGHT)
    forge(asked)
    plain = images(asked)[0]
    original = plain.read_bytes()
    with PeFile.open(plain) as image:
        symbol = image.symbol("?guarded@@YAHPEBD@Z")
        assert symbol is not None
        (entry,) = [item for item in image.runtime_functions if item.begin == symbol.value]
        info = image.read_vaddr(entry.unwind, 24)
        tables = struct.unpack_from("<I", info, 4 + (info[2] + 1) // 2 * 4 + 4)[0]
        start = image.vaddr_to_offset(tables)
    assert start is not None and original[start : start + 4] == FUNC_INFO
    for at in (4, 12, 28):
        data = bytearray(original)
        data[start + at] ^= 4
        other = tmp_path / f"prog{at}.exe"
        other.write_bytes(data)
        with pytest.raises(RefusedWithFindings) as caught:
            forge(replace(asked, running=other))
        assert places(caught.value.findings) & {"?guarded@@YAHPEBD@Z"}, at


def places(findings: tuple[Finding, ...]) -> set[str]:
    return {item.symbol for item in findings if item.code in ("MF130", "MF131", "MF133")}


MORE = r"""
struct Error { int code; Error(int c) : code(c) {} };
int more(int n) { if (n == 3) throw n; if (n == 4) throw Error(n); return n; }
"""


def test_what_is_thrown_is_told_by_the_name_of_its_type(tmp_path: Path) -> None:
    """Two descriptions that differ in nothing but where they lead; the linker kept those of another object."""
    source = {
        **MSVC_CXX,
        "more.cpp": MORE,
        "Makefile": MSVC_CXX["Makefile"]
        .replace("core.obj main", "more.obj core.obj main")
        .replace("/debug:symtab", "/include:?more@@YAHH@Z"),
    }
    asked = request(tmp_path, source, THROWN)
    target, _ = made(asked)
    assert [function.name for function in target.functions] == ["?parse@@YAHPEBD@Z"]
    plain = images(asked)[0]
    data = bytearray(plain.read_bytes())
    with PeFile.open(plain) as image:
        assert not image.symbols()
        function = target.functions[0].ranges[0]
        used = {r.target for r in target.relocations if r.kind == "image"}
        names = {at: thrown_type(image, at) for at in used}
        whole, other = (next(at for at, name in names.items() if name == wanted) for wanted in (".H", ".?AUError@@"))
        moved = 0
        for item in Decoder(64, image.read_vaddr(function.vaddr, function.size), ip=function.vaddr):
            if item.is_ip_rel_memory_operand and item.ip_rel_memory_address in (whole, other):
                at = image.vaddr_to_offset(item.next_ip - 4)
                assert at is not None
                to = other if item.ip_rel_memory_address == whole else whole
                struct.pack_into("<i", data, at, to - item.next_ip)
                moved += 1
    assert moved == 2
    swapped = tmp_path / "prog.exe"
    swapped.write_bytes(data)
    with pytest.raises(RefusedWithFindings) as caught:
        forge(replace(asked, running=swapped))
    assert {f.code for f in caught.value.findings} <= {"MF130", "MF131", "MF133", "MF135"}


def thrown_type(image: PeFile, info: int) -> str:
    """The name of the type that a ThrowInfo at an RVA is about; "" when there is none."""
    try:
        array = int.from_bytes(image.read_vaddr(info + 12, 4), "little")
        first = int.from_bytes(image.read_vaddr(array + 4, 4), "little")
        type_ = int.from_bytes(image.read_vaddr(first + 4, 4), "little")
        return image.read_vaddr(type_ + 16, 32).split(b"\0")[0].decode("ascii", "replace")
    except ImageError:
        return ""
