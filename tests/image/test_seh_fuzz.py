"""The unwinder of Windows on damaged information: it says what is wrong, or that it does not know; nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from midflight.errors import ImageError
from midflight.image.seh import FunctionTable, Module
from midflight.image.unwind import walk

SIZE = 4096


@given(
    st.binary(max_size=600), st.integers(0, 1 << 32), st.lists(st.integers(0, (1 << 64) - 1), min_size=17, max_size=17)
)
def test_damaged_tables_are_refused_or_end_the_walk(data: bytes, seed: int, registers: list[int]) -> None:
    noise = random.Random(seed)
    image = bytearray(noise.randbytes(SIZE))
    image[: len(data)] = data
    # Entries that are in order lead on into the information; those that are not are refused.
    for index in range(8):
        row = (256 * (index + 1)).to_bytes(4, "little") + (256 * (index + 2)).to_bytes(4, "little")
        image[12 * index : 12 * index + 12] = row + noise.randrange(SIZE).to_bytes(4, "little")
    registers[16] = noise.randrange(SIZE)
    registers[7] = noise.randrange(1 << 20) * 8

    def read(at: int, size: int) -> bytes:
        return bytes(image[at : at + size]) if 0 <= at < SIZE else b""

    def word(address: int) -> int:
        if address % 64 == 0:
            raise LookupError("not on the stack")
        return noise.choice((0, noise.randrange(SIZE), noise.randrange(1 << 64)))

    for table in (bytes(image[:96]), data):
        try:
            module = Module(0, FunctionTable.parse(table, read))
        except ImageError:
            continue
        stack = walk(registers, _inside(module), word, limit=64)
        assert stack.complete or stack.reason


def _inside(module: Module) -> Callable[[int], Module | None]:
    return lambda at: module if at < SIZE else None
