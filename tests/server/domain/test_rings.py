"""Rings: a partition, deterministic, stable when devices come and go, of the size that was asked for."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.server.domain.model import Gate, Ring, RingKind
from midflight.server.domain.rings import Candidate, RingsError, assign, validate
from tests.server.domain.things import REST

_rings = st.lists(
    st.one_of(
        st.builds(lambda n: (RingKind.FIRST, n, ""), st.integers(1, 5)),
        st.builds(lambda n: (RingKind.COUNT, n, ""), st.integers(1, 9)),
        st.builds(lambda n: (RingKind.PERCENT, n, ""), st.integers(1, 30)),
        st.builds(lambda g: (RingKind.GROUP, 0, g), st.sampled_from("ab")),
    ),
    max_size=3,
).map(lambda parts: (*(Ring(f"r{i}", kind, amount, group) for i, (kind, amount, group) in enumerate(parts)), REST))
_candidates = st.dictionaries(
    st.text("0123456789abcdef", min_size=1, max_size=6),
    st.builds(Candidate, st.frozensets(st.sampled_from("abc")), st.booleans()),
    max_size=40,
)


@given(_rings, _candidates, st.text(max_size=4))
def test_every_device_has_exactly_one_ring(
    rings: tuple[Ring, ...], candidates: dict[str, Candidate], deployment: str
) -> None:
    validate(rings)
    assigned = assign(rings, deployment, candidates)
    assert assigned.keys() == candidates.keys()
    assert all(0 <= ring < len(rings) for ring in assigned.values())
    assert assigned == assign(rings, deployment, dict(reversed(candidates.items())))


@given(_rings, _candidates, _candidates, st.data())
def test_who_has_a_ring_keeps_it_and_newcomers_join(
    rings: tuple[Ring, ...], before: dict[str, Candidate], newcomers: dict[str, Candidate], data: st.DataObject
) -> None:
    assigned = assign(rings, "dep", before)
    gone = data.draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
    staying = {device: ring for device, ring in assigned.items() if device not in gone}
    joining = {device: c for device, c in newcomers.items() if device not in staying}
    taken = [list(staying.values()).count(index) for index in range(len(rings))]
    more = assign(rings, "dep", joining, taken=taken)
    assert more.keys() == joining.keys()
    assert more == assign(rings, "dep", newcomers | joining, staying)
    both = staying | more
    for index, ring in enumerate(rings):
        if ring.kind in (RingKind.FIRST, RingKind.COUNT):
            assert list(both.values()).count(index) <= ring.amount


@given(_candidates, _candidates)
def test_the_percent_of_a_device_depends_on_nobody_else(
    some: dict[str, Candidate], others: dict[str, Candidate]
) -> None:
    rings = (Ring("a", RingKind.PERCENT, 20), Ring("b", RingKind.PERCENT, 30), REST)
    alone, together = assign(rings, "dep", some), assign(rings, "dep", others | some)
    assert all(together[device] == ring for device, ring in alone.items())


@given(_rings, _candidates, st.data())
def test_a_ring_is_kept_when_groups_and_readiness_change(
    rings: tuple[Ring, ...], before: dict[str, Candidate], data: st.DataObject
) -> None:
    assigned = assign(rings, "dep", before)
    groups = st.builds(Candidate, st.frozensets(st.sampled_from("abc")), st.booleans())
    after = {device: data.draw(groups) for device in before} | data.draw(_candidates)
    again = assigned | assign(rings, "dep", after, assigned)
    assert {device: again[device] for device in before} == assigned
    assert again.keys() == after.keys()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4).filter(lambda p: sum(p) <= 100), st.text(max_size=8))
def test_percent_rings_are_no_larger_than_chance_makes_them(percents: list[int], deployment: str) -> None:
    """Each device falls into a ring by its own number: the size is binomial, here within six standard deviations."""
    rings = (*(Ring(f"r{i}", RingKind.PERCENT, percent) for i, percent in enumerate(percents)), REST)
    count = 2000
    assigned = assign(rings, deployment, {f"d{i}": Candidate() for i in range(count)})
    sizes = [list(assigned.values()).count(index) for index in range(len(rings))]
    for size, percent in zip(sizes, percents, strict=False):
        share = percent / 100
        assert abs(size - count * share) <= 6 * sqrt(count * share * (1 - share))


@given(st.integers(1, 99), st.integers(1, 99), st.text(max_size=8))
def test_a_larger_percentage_takes_the_same_devices_and_more(one: int, other: int, deployment: str) -> None:
    small, large = sorted((one, other))
    candidates = {f"d{i}": Candidate() for i in range(300)}

    def of(percent: int) -> set[str]:
        assigned = assign((Ring("a", RingKind.PERCENT, percent), REST), deployment, candidates)
        return {device for device, ring in assigned.items() if ring == 0}

    assert of(small) <= of(large)


def test_sizes_are_those_asked_for() -> None:
    rings = (
        Ring("one", RingKind.FIRST, 1),
        Ring("ten", RingKind.COUNT, 10),
        Ring("lab", RingKind.GROUP, group="lab"),
        Ring("5 %", RingKind.PERCENT, 5),
        Ring("20 %", RingKind.PERCENT, 20),
        REST,
    )
    lab = frozenset({"lab"})
    candidates = {f"d{i}": Candidate(lab if i % 10 == 0 else frozenset()) for i in range(20_000)}
    sizes = [list(assign(rings, "dep", candidates).values()).count(ring) for ring in range(len(rings))]
    assert sizes[:2] == [1, 10]
    assert abs(sizes[2] - 2000) <= 11
    assert abs(sizes[3] / 18_000 - 0.05) < 0.01 and abs(sizes[4] / 18_000 - 0.2) < 0.01
    assert sum(sizes) == 20_000


def test_the_first_device_is_one_that_can_prove_something() -> None:
    candidates = {f"d{i}": Candidate(ready=i == 7) for i in range(50)}
    first = [d for d, ring in assign((Ring("one", RingKind.FIRST, 1), REST), "dep", candidates).items() if ring == 0]
    assert first == ["d7"]


def test_it_is_not_always_the_same_device_that_goes_first() -> None:
    rings = (Ring("one", RingKind.FIRST, 1), REST)
    candidates = {f"d{i}": Candidate() for i in range(50)}
    first = {next(d for d, r in assign(rings, f"dep{n}", candidates).items() if r == 0) for n in range(20)}
    assert len(first) > 10


@pytest.mark.parametrize(
    ("rings", "complaint"),
    [
        ((), "1 to 20 rings"),
        ((Ring("a", RingKind.FIRST, 1),), "last ring must be 'rest'"),
        ((REST, Ring("a", RingKind.FIRST, 1)), "last ring must be 'rest'"),
        ((Ring("rest", RingKind.FIRST, 1), REST), "same name"),
        ((Ring("a", RingKind.COUNT, 0), REST), "no number of devices"),
        ((Ring("a", RingKind.COUNT, 1.5), REST), "no number of devices"),
        ((Ring("a", RingKind.PERCENT, 60), Ring("b", RingKind.PERCENT, 60), REST), "1 to 100 together"),
        ((Ring("a", RingKind.GROUP), REST), "name its group"),
        ((Ring("a", RingKind.COUNT, 1, gate=Gate(min_sample=0)), REST), "sample from 1"),
    ],
)
def test_rings_that_make_no_sense_are_refused(rings: tuple[Ring, ...], complaint: str) -> None:
    with pytest.raises(RingsError, match=complaint):
        validate(rings)
