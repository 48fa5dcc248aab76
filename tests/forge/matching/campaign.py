"""Property runs over seeds: generate, build, match, and hold every address against the truth.

``python -m tests.forge.matching.campaign FIRST LAST`` runs the seeds FIRST <= seed < LAST and prints the figures; a
wrong address keeps the program's folder and makes it end with 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from midflight.forge.matching.match import Wanted, match
from midflight.forge.model import ObjectCode
from midflight.forge.objects import read_object
from midflight.image.elf import ElfFile
from tests.forge.matching.building import Built, Kit, Unbuildable, build, kit_of
from tests.forge.matching.programs import generate
from tests.forge.matching.truth import Labels, Truth
from tests.forge.matching.verdict import Known, Verdict, describe, everything, judge

FILES, FUNCTIONS = 4, 90
"""Size of a program."""


def read_known(built: Built) -> Mapping[Path, Known]:
    """The pre objects of a program by path."""
    known = {}
    for name, file in built.objects.items():
        path = Path("/src") / name
        known[path] = Known(read_object(file, path), name, Labels(built.labelled[name]))
    return known


def handful(code: ObjectCode, draw: random.Random) -> Wanted:
    """A few functions of one object, and what they refer to: as a fix would want them."""
    functions = sorted(key for key, atom in code.atoms.items() if atom.kind == "function")
    chosen = set(draw.sample(functions, min(len(functions), draw.randint(4, 30))))
    references = [item for key in chosen for item in code.atoms[key].references]
    atoms = {item.atom for item in references if item.atom is not None} - chosen
    return Wanted(
        frozenset((code.path, key) for key in chosen),
        frozenset((code.path, key) for key in atoms),
        frozenset(item.symbol for item in references if item.symbol),
    )


def questions(seed: int, known: Mapping[Path, Known]) -> Iterator[tuple[Mapping[Path, ObjectCode], Wanted]]:
    """What is asked of a program: all of it at once, every object by itself, or a handful of functions of each."""
    codes = {path: item.code for path, item in known.items()}
    draw = random.Random(f"questions {seed}")
    if seed % 3 == 0:
        yield codes, everything(codes.values())
        return
    for path, code in codes.items():
        for _ in range(1 if seed % 3 == 1 else 3):
            objects = {path: code} if draw.random() < 0.7 else codes
            yield objects, everything([code]) if seed % 3 == 1 else handful(code, draw)


def examine(folder: Path, built: Built, texts: Mapping[str, str], seed: int, which: str = "stripped") -> Verdict:
    """Match a built program's image, with or without names, and judge all answers."""
    truth = Truth(built.named, [name for name in texts if name in built.objects or name == "main.c"])
    known = read_known(built)
    verdict = Verdict()
    for objects, wanted in questions(seed, known):
        with ElfFile.open(folder / which) as run, ElfFile.open(built.linked) as linked:
            verdict.add(judge(match(run, objects, wanted, linked), wanted, truth, known))
    return verdict


def one_seed(folder: Path, seed: int, kit: Kit | None = None) -> Verdict:
    """Everything about one seed, in an empty folder. Every fourth program is asked with its names too.

    Raises:
        Unbuildable: compiler or linker said no, which no seed of the tests may bring about.
    """
    texts = generate(seed, FILES, FUNCTIONS, cplusplus=seed % 4 == 1)
    built = build(folder, texts, kit or kit_of(seed))
    verdict = examine(folder, built, texts, seed)
    if seed % 4 == 3:
        named = examine(folder, built, texts, seed, "plain")
        verdict.wrong += [f"with names: {item}" for item in named.wrong]
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--hard", action="store_true", help="no unwind tables, dropped and folded functions too")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "matching")
    options = parser.parse_args()
    total, unbuildable = Verdict(), 0
    for seed in range(options.first, options.last):
        folder, started = options.keep / str(seed), time.monotonic()
        kit = kit_of(seed, options.hard)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            verdict = one_seed(folder, seed, kit)
        except Unbuildable as error:
            unbuildable += 1
            print(f"{seed} ({kit}): unbuildable: {error}", flush=True)
            continue
        total.add(verdict)
        print(f"{seed} ({kit}) {time.monotonic() - started:.1f} s: {verdict}", flush=True)
        for line in describe(verdict.wrong):
            print(f"    {line}", flush=True)
        if not verdict.wrong:
            shutil.rmtree(folder)
    print(f"{options.last - options.first} programs, {unbuildable} unbuildable: {total}")
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
