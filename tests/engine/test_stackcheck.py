"""The conservative half of the stack check: every return address is found, wherever it stands."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from midflight.engine.stackcheck import Range, StackCheck
from midflight.process.model import RIP, RSP, Stack, Thread


def thread(pc: int, words: list[int], start: int = 0x7FFF_0000_0000) -> Thread:
    registers = [0] * 17
    registers[RIP], registers[RSP] = pc, start + 128
    return Thread(1, tuple(registers), [Stack(start, struct.pack(f"<{len(words)}Q", *words))])


def check(*ranges: tuple[int, int]) -> StackCheck:
    return StackCheck([Range(a, b, "f") for a, b in ranges], lambda _: None)


@given(
    st.integers(1 << 12, 1 << 46),
    st.integers(1, 200_000),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=50),
    st.data(),
)
def test_a_return_address_anywhere_on_the_stack_is_found(
    start: int, size: int, noise: list[int], data: st.DataObject
) -> None:
    inside = data.draw(st.integers(start, start + size - 1))
    noise = [w for w in noise if not start <= w < start + size]
    at = data.draw(st.integers(0, len(noise)))
    busy = check((start, start + size)).busy([thread(8, [*noise[:at], inside, *noise[at:]])])
    assert [b.function for b in busy] == ["f"]


@given(st.integers(1 << 12, 1 << 46), st.integers(1, 100_000), st.lists(st.integers(0, (1 << 64) - 1), max_size=80))
def test_a_stack_without_one_is_free(start: int, size: int, noise: list[int]) -> None:
    words = [w for w in noise if not start <= w < start + size]
    assert check((start, start + size)).busy([thread(8, words)]) == []


def test_the_instruction_pointer_counts() -> None:
    assert check((0x1000, 0x1010)).busy([thread(0x100F, [])])
    assert not check((0x1000, 0x1010)).busy([thread(0x1010, [])])


def test_a_thread_that_could_not_be_read_is_in_the_way() -> None:
    one = thread(8, [])
    one.complete = False
    assert check((0x1000, 0x1010)).busy([one])


@given(
    st.lists(st.tuples(st.integers(4096, 5000), st.integers(1, 400)), min_size=1, max_size=12), st.integers(4000, 5500)
)
def test_ranges_may_nest_and_overlap(pieces: list[tuple[int, int]], address: int) -> None:
    found = check(*((start, start + size) for start, size in pieces)).covering(address)
    assert (found is not None) == any(start <= address < start + size for start, size in pieces)
