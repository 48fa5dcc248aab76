"""An image that differs from pre in anything that matters is refused, and no mutant brings out a wrong address.

Mutants are made of every instruction of the functions at hand, systematically; only padding is left alone, and jumps
that are led to the padding before the same instruction are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge.matching.building import Kit
from tests.forge.matching.trials import Trial, some

KITS = (
    Kit(),
    Kit("gcc", "-O1", "shared", "bfd"),
    Kit("gcc", "-O3", "no-pie", "lld"),
    Kit("gcc", "-Os", "pie", "gold", ("-fcf-protection",)),
    Kit("gcc", "-O0", "shared", "lld", ("-fno-plt",)),
    Kit("clang", "-O2", "shared", "lld"),
    Kit("clang", "-O1", "pie", "bfd", ("-fno-plt",), ("-Wl,-z,now",)),
    Kit("clang", "-O3", "no-pie", "gold"),
    Kit("clang", "-Os", "no-pie", "bfd"),
)


@pytest.mark.parametrize("which", ["plain", "stripped"])
@pytest.mark.parametrize("seed", range(len(KITS)), ids=[str(kit) for kit in KITS])
def test_every_mutant_of_an_instruction_is_refused(
    tmp_path: Path, seed: int, which: str, record_property: Callable[[str, object], None]
) -> None:
    trial = Trial.of(tmp_path / "program", seed, KITS[seed], which)
    draw = random.Random(f"mutants {seed}")
    for key, place in trial.functions(draw, 3):
        for mutant in trial.mutants(key, place, draw):
            trial.put(key, mutant)
    record_property("figures of mutants", dict(trial.tried))
    assert trial.tried.total() > 80
    assert not trial.complaints, some(trial.complaints)
