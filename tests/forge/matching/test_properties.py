"""Every address that run-pre matching derives for a stripped image is the one that its unstripped twin has.

The programs are generated (programs.py), built in as many ways as there are seeds (building.py), and all answers are
held against the truth (verdict.py). More seeds: ``make matching SEEDS="1000 2000"``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge.matching.campaign import one_seed
from tests.forge.matching.programs import generate
from tests.forge.matching.verdict import Verdict, describe

CHUNKS, SEEDS_OF_A_CHUNK = 12, 6
LEAST_FUNCTIONS = 20_000 // CHUNKS
"""Of each chunk, so that all together ask for 20,000 functions that are there."""
LEAST_RECALL = 0.75
"""Twins that nothing tells apart are rightly refused, and the programs are full of them; whoever refuses more refuses
what can be proven."""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_addresses_of_stripped_images_are_those_of_their_named_twins(
    tmp_path: Path, chunk: int, record_property: Callable[[str, object], None]
) -> None:
    total = Verdict()
    for seed in range(chunk * SEEDS_OF_A_CHUNK, (chunk + 1) * SEEDS_OF_A_CHUNK):
        verdict = one_seed(tmp_path / str(seed), seed)
        assert not verdict.wrong, "\n".join([f"seed {seed}:", *describe(verdict.wrong)])
        total.add(verdict)
    record_property("figures of run-pre matching on generated programs", total.figures())
    assert total.wanted - total.absent - total.gone >= LEAST_FUNCTIONS
    assert total.recall >= LEAST_RECALL, str(total)


def test_the_same_seed_gives_the_same_program() -> None:
    assert generate(7, 3, 20, True) == generate(7, 3, 20, True)
    assert generate(7, 3, 20, True) != generate(8, 3, 20, True)
