"""Binding a payload: what each relocation kind and form becomes, checked by decoding the result."""

from __future__ import annotations

import struct

import pytest

from midflight.engine.linker import ISLAND_SIZE, Islands, link
from midflight.errors import EngineError
from midflight.patch.manifest import Relocation, RelocationForm, RelocationKind, Segment, Target

BASE, BIAS = 0x7F00_0000_0000, 0x7F00_1000_0000


def target(*relocations: Relocation, size: int = 64) -> Target:
    segments = (Segment("code", 0, size, 0, size), Segment("data", 4096, 4096, size, 0))
    return Target(
        "i", "b", "x86_64", "p", "", size, segments, (), relocations, (), (), None, "strict", None, (), (), False
    )


def one(kind: RelocationKind, form: RelocationForm, value: int, addend: int = 0, at: int = 8, **kw: bool) -> Relocation:
    return Relocation(at, kind, form, value, addend, **kw)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("payload", 0x40, BASE + 0x40),
        ("image", 0x1234, BIAS + 0x1234),
        ("slot", 0x99, BIAS + 0x99),
        ("import", 0, 0xABC),
    ],
)
def test_absolute_fields_hold_the_address(kind: RelocationKind, value: int, expected: int) -> None:
    segments = link(target(one(kind, "abs64", value, 3)), bytes(64), BASE, BIAS, [0xABC])
    assert struct.unpack_from("<Q", segments[0].contents, 8)[0] == expected + 3


def test_relative_fields_lead_from_their_own_place() -> None:
    segments = link(target(one("image", "pc32", 0x5000, -4)), bytes(64), BASE, BIAS, [])
    displacement = struct.unpack_from("<i", segments[0].contents, 8)[0]
    assert segments[0].address + 8 + 4 + displacement == BIAS + 0x5000


def test_data_out_of_reach_is_an_error_and_names_the_place() -> None:
    with pytest.raises(EngineError, match="0x8"):
        link(target(one("import", "pc32", 0, -4)), bytes(64), BASE, BIAS, [0x1000])


def test_a_far_call_goes_through_one_island() -> None:
    islands = Islands(BASE + 0x10000, 4096)
    calls = [one("import", "pc32", 0, -4, at=at, branch=True) for at in (8, 16)]
    segments = link(target(*calls), bytes(64), BASE, BIAS, [0x1234], islands)
    for at in (8, 16):
        displacement = struct.unpack_from("<i", segments[0].contents, at)[0]
        assert segments[0].address + at + 4 + displacement == islands.base
    assert bytes(islands.contents[:14]) == b"\xff\x25\0\0\0\0" + struct.pack("<Q", 0x1234)
    assert len(islands.contents) == ISLAND_SIZE


def test_a_page_of_islands_ends() -> None:
    islands = Islands(0x1000, 2 * ISLAND_SIZE)
    islands.to(1), islands.to(2), islands.to(1)
    with pytest.raises(EngineError, match="islands"):
        islands.to(3)


@pytest.mark.parametrize(("form", "low"), [("abs32", -1), ("abs32", 1 << 32), ("abs32s", 1 << 31)])
def test_short_absolute_fields_are_checked(form: RelocationForm, low: int) -> None:
    with pytest.raises(EngineError, match="out of reach"):
        link(target(one("import", form, 0)), bytes(64), BASE, BIAS, [low])


def test_relocations_beyond_the_file_bytes_of_a_segment_are_applied() -> None:
    segments = link(target(one("payload", "abs64", 0, at=4096 + 16)), bytes(64), BASE, BIAS, [])
    assert segments[1].contents == bytes(16) + struct.pack("<Q", BASE)
