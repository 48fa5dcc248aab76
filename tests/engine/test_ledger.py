"""The ledger's encoding: round trips, and nothing but LedgerError for damaged ones."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.engine import ledger
from midflight.engine.ledger import LedgerError, MappedSegment, PatchedFunction, Record, State, Write
from midflight.process.linux import LinuxProcess
from midflight.process.model import ImageFormat

address = st.integers(0, 1 << 47)
small = st.integers(1, 1 << 20)
text = st.text(max_size=30)
write = st.tuples(address, st.sampled_from([2, 5])).flatmap(
    lambda p: st.builds(
        Write, st.just(p[0]), *(st.binary(min_size=p[1], max_size=p[1]) for _ in ("before", "undo", "after"))
    )
)
function = st.builds(
    PatchedFunction,
    text,
    st.lists(st.tuples(address, small), min_size=1, max_size=3).map(tuple),
    st.tuples(address, small),
    st.lists(write, min_size=1, max_size=2).map(tuple),
)
record = st.builds(
    Record,
    name=text,
    sequence=st.integers(0, 1 << 30),
    digest=text,
    description=text,
    cves=st.lists(text, max_size=3).map(tuple),
    image_name=text,
    build_id=text,
    bias=address,
    functions=st.lists(function, max_size=3).map(tuple),
    segments=st.lists(st.builds(MappedSegment, text, address, small, text), max_size=3).map(tuple),
    symbols=st.lists(st.tuples(text, address, small), max_size=3).map(tuple),
    unwind=st.none() | st.tuples(address, small),
    unwind_object=st.none() | address,
    hooks=st.lists(st.tuples(text, address), max_size=2).map(tuple),
    replaces=st.lists(address, max_size=2).map(tuple),
    restores=st.lists(write, max_size=2).map(tuple),
    escapes=st.booleans(),
    policy=text,
    by=text,
    engine=text,
)


def parse(data: bytes) -> ledger.Ledger:
    return ledger.parse(0x10000, data[:256], lambda offset, length: data[offset : offset + length])


@given(record)
def test_a_ledger_is_read_back_as_it_was_written(one: Record) -> None:
    size = ledger.header_pages(one)
    data = ledger.build(one, size, 7, "elf")
    assert len(data) <= size
    found = parse(data)
    assert (found.record, found.state, found.order, found.size) == (one, State.PREPARED, 7, size)


EXAMPLE = Record(
    "n", 1, "d" * 64, "", ("CVE-1",), "i", "b", 0x1000,
    (PatchedFunction("f", ((0x2000, 10),), (0x3000, 12), (Write(0x2000, b"12345", b"12345", b"54321"),)),),
    (MappedSegment("code", 0x3000, 4096, "s"),), (("f", 0x3000, 12),), None, None, (), (), (), False, "strict", "me",
    "0",
)  # fmt: skip


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_ledger_is_refused_with_its_own_error(data: st.DataObject) -> None:
    raw = bytearray(ledger.build(EXAMPLE, 4096, 1, "elf"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(raw))
    except LedgerError:
        return
    # What is not covered by the checksum may change: state, order, times, flags.
    assert dataclasses.replace(found.record) == EXAMPLE


@given(st.binary(max_size=600))
def test_random_bytes_are_no_ledger(raw: bytes) -> None:
    with pytest.raises(LedgerError):
        parse(raw)
    with pytest.raises(LedgerError):
        ledger.decode(raw)


def test_a_later_format_is_refused_by_name() -> None:
    raw = bytearray(ledger.build(EXAMPLE, 4096, 1, "elf"))
    raw[16] = 2
    with pytest.raises(LedgerError, match="later Midflight"):
        parse(bytes(raw))


def test_a_body_that_inflates_without_end_is_refused() -> None:
    import zlib

    with pytest.raises(LedgerError, match="too large"):
        ledger.decode(zlib.compress(b"[" * (20 << 20)))


@pytest.mark.parametrize(("images", "found"), [("elf", 1), ("pe", 0)])
def test_a_windows_program_under_wine_is_not_ours(images: ImageFormat, found: int) -> None:
    """Its processes are processes of Linux too: to clear up there would take its hotpatches out."""
    data = ledger.build(EXAMPLE, 4096, 1, images)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    page = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    try:
        ctypes.memmove(page, data, len(data))
        assert libc.mprotect(ctypes.c_void_p(page), 4096, mmap.PROT_READ) == 0
        assert len(ledger.find(LinuxProcess(os.getpid()))) == found
    finally:
        libc.munmap(ctypes.c_void_p(page), 4096)
