"""Whatever the bytes, only ImageError escapes: real files with damage, made-up tables, and noise."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midflight.errors import ImageError
from midflight.image.elf import ElfFile
from midflight.image.expression import evaluate
from midflight.image.unwind import FrameTable, Module, walk

FILES = (
    "libsample.so",
    "libpacked.so",
    "pie",
    "ibt bare",
    "liblld.so bare",
    "libstripped.so",
    "gcc.o",
    "libplus.so",
    "clang.o",
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FACTS = (
    *(
        "kind",
        "is_pie",
        "build_id",
        "interpreter",
        "soname",
        "needed",
        "is_dynamic",
        "flags_1",
        "bind_now",
        "has_textrel",
    ),
    *("has_relro", "comments", "is_lto", "has_debug", "tls", "sections", "symbols_by_name", "version_needs"),
    *("defined_versions", "got_entries", "irelative", "plt_entries", "unwind_tables", "frame_table"),
)
CALLS = ("symbols", "dynamic_symbols", "dynamic_relocations", "got_slots", "plt")

EDGES = (0, 1, 7, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1)
Damage = list[tuple[int, bytes]]


def words() -> st.SearchStrategy[bytes]:
    numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 15))
    sizes = st.sampled_from((1, 2, 4, 8))
    return st.builds(lambda number, size: number.to_bytes(8, "little")[:size], numbers, sizes)


def damage(positions: int) -> st.SearchStrategy[Damage]:
    """A few words written somewhere, mostly where headers and tables are."""
    place = st.one_of(
        st.integers(0, 0x400), st.integers(0, positions - 1), st.integers(max(0, positions - 0xA00), positions - 1)
    )
    return st.lists(st.tuples(place, words()), min_size=1, max_size=6)


def damaged(data: bytes, edits: Damage, keep: float) -> bytes:
    raw = bytearray(data)
    for at, word in edits:
        raw[at : at + len(word)] = word
    return bytes(raw[: int(len(raw) * keep)])


def use_everything(data: bytes) -> int:
    """Ask for all there is; returns how many questions had an answer."""
    answers = 0
    try:
        image = ElfFile(data, "fuzzed")
    except ImageError as error:
        assert "\n" not in str(error)
        return 0

    def ask(question: object, *arguments: object) -> object:
        nonlocal answers
        try:
            result = getattr(image, str(question))
            result = result(*arguments) if callable(result) else result
        except ImageError as error:
            assert "\n" not in str(error)
            return None
        answers += 1
        return result

    for fact in FACTS:
        ask(fact)
    for call in CALLS:
        ask(call)
    for name in ("twice", "thing", "no such name", "\udc80"):
        ask("dynamic_symbol", name)
        ask("dynamic_symbol", name, "SAMPLE_1.0")
        ask("symbol", name)
    sections = ask("sections")
    for section in list(sections)[:40] if isinstance(sections, tuple) else ():
        ask("section_data", section)
        ask("relocations", section)
    for segment in image.segments[:20]:
        ask("read_vaddr", segment.address, 16)
        ask("vaddr_to_offset", segment.address)
        ask("load_bias", 0x10000, segment.offset & -4096)
    ask("thread_pointer_offset", 0)
    table = ask("frame_table")
    if isinstance(table, FrameTable):
        use_table(table, [*(segment.address + 40 for segment in image.segments), image.entry])
    return answers


def use_table(table: FrameTable, pcs: list[int]) -> None:
    """Ask a frame table for all there is, and unwind with it."""
    try:
        for start, end in table.functions():
            pcs += [start, end - 1]
            if len(pcs) > 200:
                break
    except ImageError:
        pass
    for pc in pcs[:200]:
        try:
            found = table.row(pc)
        except ImageError:
            continue
        if found is not None:
            stack = walk(
                {7: 0x1000, 6: pc, 16: pc}, lambda at: Module(0, table), lambda at: at * 5 + 3 & 0xFFFF, limit=20
            )
            assert len(stack.frames) <= 20 and (stack.complete or stack.reason)


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(data=st.data())
def test_damaged_files(samples: dict[str, Path], name: str, data: st.DataObject) -> None:
    raw = samples[name].read_bytes()
    edits = data.draw(damage(len(raw)))
    keep = data.draw(st.sampled_from((1.0, 1.0, 1.0, 0.9, 0.5, 0.1)))
    use_everything(damaged(raw, edits, keep))


@pytest.mark.parametrize("name", FILES)
def test_undamaged_files_answer_nearly_everything(samples: dict[str, Path], name: str) -> None:
    """Otherwise the fuzzing would be of nothing."""
    assert use_everything(samples[name].read_bytes()) > 50


@pytest.mark.parametrize("name", ("libsample.so", "pie", "gcc.o"))
def test_every_truncation_of_a_file(samples: dict[str, Path], name: str) -> None:
    raw = samples[name].read_bytes()
    for size in (*range(0, 1024, 13), *range(1024, len(raw), 397)):
        use_everything(raw[:size])


@FUZZ
@given(st.binary(max_size=600), st.integers(0, 3), st.integers(0, 20), st.integers(0, 30))
def test_noise_behind_a_good_header(noise: bytes, kind: int, segments: int, sections: int) -> None:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", kind, 62, 1, 0x1000, 64, 64, 0, 64, 56, segments, 64, sections, 1)
    use_everything(ident + header + noise)


@FUZZ
@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    use_everything(noise)


@FUZZ
@given(data=st.data())
def test_damaged_unwind_tables(samples: dict[str, Path], data: st.DataObject) -> None:
    with ElfFile.open(samples["libplus.so"]) as image:
        tables = image.unwind_tables
    assert tables is not None and tables.header is not None
    edits = data.draw(st.lists(st.tuples(st.integers(0, len(tables.eh_frame) - 1), words()), max_size=8))
    others = data.draw(st.lists(st.tuples(st.integers(0, len(tables.header) - 1), words()), max_size=2))
    header = data.draw(st.booleans())
    frames = damaged(tables.eh_frame, edits, 1.0)
    use_table(
        FrameTable(frames, tables.vaddr, damaged(tables.header, others, 1.0) if header else None, tables.header_vaddr),
        [],
    )


@FUZZ
@given(st.binary(min_size=1, max_size=60))
def test_noise_as_a_call_frame_program(program: bytes) -> None:
    cie = bytes.fromhex("10000000 00000000 01 7a5200 01 78 10 01 04 00000000")
    body = bytes.fromhex("18000000") + (0x1000).to_bytes(8, "little") + (0x100).to_bytes(8, "little") + b"\0" + program
    table = FrameTable(cie + len(body).to_bytes(4, "little") + body + bytes(4), 0)
    use_table(table, [0x1000, 0x1001, 0x1080, 0x10FF])


@FUZZ
@given(st.binary(max_size=60))
def test_noise_as_an_expression(expression: bytes) -> None:
    try:
        value = evaluate(expression, {7: 0x7000, 6: 3}, lambda address: address * 3, (5, 6))
    except (ImageError, LookupError):
        return
    assert 0 <= value < 1 << 64
