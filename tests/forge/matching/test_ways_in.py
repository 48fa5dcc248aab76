"""Whatever bytes run-pre matching is given as the running image: it answers, or says that the image is malformed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.errors import ImageError
from tests.forge.matching.building import Kit
from tests.forge.matching.trials import Trial, ask
from tests.forge.matching.truth import Symbols
from tests.forge.matching.verdict import everything

KITS = (Kit(), Kit("clang", "-O1", "shared", "lld"))


def broken(image: bytes, draw: random.Random) -> Iterator[bytes]:
    """Cut off, overwritten anywhere, and overwritten where the tables are that everything else is found by."""
    for _ in range(60):
        yield image[: draw.randrange(len(image))]
    tables = [(0, 64), (64, 56 * 13)]
    tables += [(offset, size) for name, type_, _, offset, size, _ in Symbols(image).sections if type_ not in (0, 8)]
    end = int.from_bytes(image[0x28:0x30], "little")
    tables.append((end, len(image) - end))
    for _ in range(300):
        data = bytearray(image)
        for _ in range(draw.choice((1, 1, 2, 8))):
            start, size = draw.choice(tables)
            at = draw.randrange(start, max(start + size, start + 1))
            width = draw.choice((1, 1, 2, 4, 8))
            values = (0, 1, 255, draw.getrandbits(8 * width), (1 << 8 * width) - 1, 1 << 8 * width - 1)
            data[at : at + width] = (draw.choice(values) & (1 << 8 * width) - 1).to_bytes(width, "little")
        yield bytes(data)
    for size in (0, 1, 4, 16, 64, 200, 5000):
        yield draw.randbytes(size)
        yield image[:64] + draw.randbytes(size)


@pytest.mark.parametrize("which", ["plain", "stripped"])
@pytest.mark.parametrize("kit", KITS, ids=str)
def test_broken_images_are_malformed_or_answered(tmp_path: Path, kit: Kit, which: str) -> None:
    trial = Trial.of(tmp_path / "program", 3, kit, which, files=2, functions=12)
    wanted = everything(trial.objects.values())
    outcomes: Counter[str] = Counter()
    for number, image in enumerate(broken(trial.image, random.Random(f"{kit} {which}"))):
        try:
            found = ask(image, trial.built, trial.objects, wanted)
        except ImageError as error:
            assert "\n" not in str(error)
            outcomes["malformed"] += 1
        except Exception as error:
            (tmp_path / "broken").write_bytes(image)
            raise AssertionError(f"image {number}, kept as {tmp_path / 'broken'}: {error!r}") from error
        else:
            assert found.total_functions >= found.matched_functions
            outcomes["answered"] += 1
    assert outcomes["malformed"] > 30 and outcomes["answered"] > 30, outcomes
