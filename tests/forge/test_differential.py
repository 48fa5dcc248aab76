"""Random programs and random fixes: a patched program says what the fixed one says, or the fix is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forge.random_programs import generate
from tests.forge.selfpatching import Kit
from tests.forge.traps import MAIN, Trap

KITS = (
    Kit(),
    Kit(flags=("-O2", "-fcf-protection")),
    Kit("clang", flags=("-O2",)),
    Kit(flags=("-O3", "-fno-pie"), link=("-no-pie",)),
    Kit(library=True),
    Kit(flags=("-Os", "-ffunction-sections"), link=("-Wl,--gc-sections",)),
    Kit("clang", flags=("-O1", "-fno-plt"), link=("-Wl,-z,now",), library=True),
    Kit(flags=("-O1",), link=("-fuse-ld=lld",)),
)
"""Each seed has its own way of building."""
MAY_REFUSE = {"MF113", "MF118", "MF130", "MF131", "MF132", "MF142"}
"""A fix may use a thread-local variable that the image does not reach so, or a static that has namesakes."""


@pytest.mark.parametrize("seed", range(16))
def test_a_patched_program_says_what_the_fixed_one_says(tmp_path: Path, seed: int) -> None:
    versions = generate(seed)
    assert versions.before == generate(seed).before, "the same seed gives the same program"
    changed = {name: text for name, text in versions.after.items() if text != versions.before[name]}
    kit = KITS[seed % len(KITS)]
    outcome = Trap(tmp_path / "trap", {"main.c": MAIN, **versions.before}, changed, kit).spring()
    if outcome.refusals:
        assert {code for code, _ in outcome.codes} <= MAY_REFUSE, outcome.refusals
    else:
        assert outcome.patched == outcome.fixed, f"{kit}: {outcome.before}"
