"""Puts mutants before the matcher: which it takes for the real thing, and which wrong addresses it then tells."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.matching.match import Key, Wanted, match
from midflight.forge.model import Match, ObjectCode, Place
from midflight.image.elf import ElfFile
from tests.forge.matching.building import Built, Kit, build
from tests.forge.matching.campaign import read_known
from tests.forge.matching.mutants import (
    Mutant,
    instructions,
    only_padding,
    other_bytes,
    other_instructions,
    other_targets,
)
from tests.forge.matching.programs import generate
from tests.forge.matching.truth import Truth
from tests.forge.matching.verdict import Known, everything, judge

STRICT = frozenset({"instruction", "condition", "constant", "jump", "data"})
"""Kinds after which the function is another one. After the others it refers to something else, which is only seen where
somebody else tells where that is; nobody may then be told the false address."""


@dataclass(slots=True)
class Trial:
    """One program, its image with or without names, and what was found wrong about the answers."""

    built: Built
    truth: Truth
    known: Mapping[Path, Known]
    image: bytes
    objects: Mapping[Path, ObjectCode]
    base: Match
    """What is found in the image as it is."""
    complaints: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path, seed: int, kit: Kit, which: str, files: int = 2, functions: int = 40) -> Trial:
        """Generate, build, and match all of it once, which must be right."""
        texts = generate(seed, files, functions, cplusplus=seed % 3 == 2)
        built = build(folder, texts, kit)
        truth = Truth(built.named, [name for name in texts if name in built.objects or name == "main.c"])
        known = read_known(built)
        objects = {path: item.code for path, item in known.items()}
        image = (folder / which).read_bytes()
        wanted = everything(objects.values())
        trial = cls(built, truth, known, image, objects, ask(image, built, objects, wanted))
        trial.complaints += judge(trial.base, wanted, truth, known).wrong
        return trial

    def wanted(self, key: Key) -> Wanted:
        """A function, and all that it refers to."""
        references = self.objects[key[0]].atoms[key[1]].references
        atoms = frozenset((key[0], item.atom) for item in references if item.atom is not None and item.atom != key[1])
        return Wanted(frozenset({key}), atoms, frozenset(item.symbol for item in references if item.symbol))

    def functions(self, draw: random.Random, most: int) -> list[tuple[Key, Place]]:
        """Some functions that are found when they alone are asked for."""
        keys = sorted(self.base.functions)
        chosen = []
        for key in draw.sample(keys, len(keys)):
            found = ask(self.image, self.built, self.objects, self.wanted(key)).functions.get(key)
            if found is not None:
                chosen.append((key, found))
            if len(chosen) == most:
                break
        return chosen

    def mutants(self, key: Key, place: Place, draw: random.Random) -> Iterator[Mutant]:
        """Of every instruction of a function, of every reference, and of the data that it refers to."""
        items = instructions(self.truth.read(place.vaddr, place.size), place.vaddr)
        yield from other_instructions(items, draw)
        yield from other_targets(items, [p.vaddr for p in self.base.functions.values()], draw)
        for path, atom_key in sorted(self.wanted(key).atoms):
            atom, data = self.objects[path].atoms[atom_key], self.base.data.get((path, atom_key))
            if data is not None and atom.data and not atom.references:
                yield from other_bytes(data.vaddr, atom.data, draw, 3)

    def put(self, key: Key, mutant: Mutant) -> None:
        """Try one mutant of a function."""
        wanted = self.wanted(key)
        found = ask(mutant.apply(self.image), self.built, self.objects, wanted)
        verdict = judge(found, wanted, self.truth, self.known)
        accepted = key in found.functions
        self.tried[f"{mutant.kind} mutants"] += 1
        self.tried["refused" if not accepted else "harmless"] += not verdict.wrong
        if accepted and mutant.kind in STRICT and not self.same_place(mutant):
            self.complaints.append(f"{key[0].name}:{key[1]}: {mutant}: accepted")
        self.complaints += [f"{key[0].name}:{key[1]}: {mutant}: {item}" for item in verdict.wrong[:1]]

    def same_place(self, mutant: Mutant) -> bool:
        """Whether it jumps to the same instruction after all, over padding."""
        low, high = sorted(mutant.targets or (0, 0))
        return low < high < low + 64 and only_padding(self.truth.read(low, high - low))


def ask(image: bytes, built: Built | None, objects: Mapping[Path, ObjectCode], wanted: Wanted) -> Match:
    """Match an image in memory, with what the capture of ``built`` linked."""
    with ElfFile(image) as run:
        if built is None:
            return match(run, objects, wanted)
        with ElfFile.open(built.linked) as linked:
            return match(run, objects, wanted, linked)


def some(complaints: Iterable[str], most: int = 20) -> str:
    listed = list(complaints)
    return "\n".join([f"{len(listed)} complaints:", *listed[:most]])
