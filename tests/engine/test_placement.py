"""Where a payload may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from midflight.engine.placement import REACH, candidates
from midflight.process.model import Mapping

PAGE = 4096


def mapping(start: int, size: int, path: str = "") -> Mapping:
    return Mapping(start, start + size, True, False, False, True, 0, (0, 0), 0, path)


@given(
    st.lists(st.tuples(st.integers(16, 1 << 35), st.integers(1, 1 << 20)), min_size=1, max_size=40),
    st.integers(1, 64),
)
def test_a_place_is_free_within_reach_and_touches_no_neighbour(pieces: list[tuple[int, int]], pages: int) -> None:
    maps, end = [], 0
    for start, size in sorted(pieces):
        if start * PAGE > end:
            maps.append(mapping(start * PAGE, size * PAGE))
            end = maps[-1].end
    image = (maps[len(maps) // 2].start, maps[len(maps) // 2].end)
    size = pages * PAGE
    for at in candidates(maps, image, size):
        assert at % PAGE == 0
        assert all(at + size + PAGE <= m.start or at >= m.end + PAGE for m in maps)
        assert max(abs(at + size - image[0]), abs(image[1] - at)) < REACH + (1 << 20)


def test_the_heap_may_grow() -> None:
    image = mapping(0x5555_0000_0000, 0x10000, "/bin/x")
    heap = mapping(0x5555_0002_0000, 0x20000, "[heap]")
    places = list(candidates([image, heap], (image.start, image.end), PAGE))
    assert places[0] < image.start
    assert all(at < heap.start or at >= heap.end + (1 << 29) for at in places)


def test_a_program_at_a_fixed_address_keeps_its_payload_below_2_gib() -> None:
    image = mapping(0x400000, 0x10000, "/bin/x")
    places = list(candidates([image], (image.start, image.end), PAGE))
    assert places and all(at + PAGE <= 1 << 31 for at in places)


def test_no_room_gives_no_place() -> None:
    wall = [mapping(0x10000, 0x7FFF_0000_0000)]
    assert list(candidates(wall, (0x5555_0000_0000, 0x5555_0001_0000), PAGE)) == []
