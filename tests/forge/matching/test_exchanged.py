"""Two things of an image exchanged: slots of imports, bodies of functions. And hotpatches for falsified images."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.forge.calls import uses
from midflight.forge.forge import RefusedWithFindings
from midflight.forge.matching.decode import is_near_branch
from midflight.forge.matching.match import Key
from midflight.forge.model import BuildPair
from midflight.image.elf import ElfFile
from tests.forge.matching.building import Kit
from tests.forge.matching.mutants import Mutant, exchanged_relocations, instructions, other_instructions
from tests.forge.matching.trials import Trial, ask, some
from tests.forge.matching.truth import Symbols, Truth
from tests.forge.matching.verdict import everything, judge
from tests.forge.selfpatching import Kit as PatchKit
from tests.forge.selfpatching import Project
from tests.forge.traps import MAIN

KITS = (
    Kit("gcc", "-O2", "shared", "bfd"),
    Kit("gcc", "-O2", "pie", "lld", ("-fno-plt",)),
    Kit("clang", "-O2", "pie", "gold", (), ("-Wl,-z,now",)),
)


@pytest.mark.parametrize("which", ["plain", "stripped"])
@pytest.mark.parametrize("kit", KITS, ids=str)
def test_exchanged_slots_refuse_whoever_uses_them(tmp_path: Path, kit: Kit, which: str) -> None:
    trial = Trial.of(tmp_path / "program", 21, kit, which, files=2, functions=60)
    assert not trial.complaints
    wanted = everything(trial.objects.values())
    dynamic = dynamic_names(trial.image)
    tried = 0
    for mutant, indexes in exchanged_relocations(trial.image):
        names = {dynamic[index] for index in indexes}
        users = [
            (path, key)
            for path, key in trial.base.functions
            if any(item.symbol in names for item in trial.objects[path].atoms[key].references)
        ]
        tried += len(users)
        falsified = tmp_path / "falsified"
        falsified.write_bytes(mutant.apply(trial.built.named.read_bytes()))
        found = ask(mutant.apply(trial.image), trial.built, trial.objects, wanted)
        verdict = judge(found, wanted, Truth(falsified, trial.truth.sources), trial.known)
        trial.complaints += [f"{names} exchanged: {item}" for item in verdict.wrong]
        trial.complaints += [f"{names} exchanged: {user} accepted" for user in users if user in found.functions]
    assert tried > 5
    assert not trial.complaints, some(trial.complaints)


def dynamic_names(image: bytes) -> list[str]:
    """Names of the dynamic symbols by index."""
    sections = Symbols(image).sections
    _, _, _, offset, size, link = next(section for section in sections if section[1] == 11)
    strings = sections[link][3]
    return [
        image[strings + name : image.index(b"\0", strings + name)].decode()
        for name, *_ in struct.iter_unpack("<IBBHQQ", image[offset : offset + size])
    ]


def moved(code: bytes, old: int, new: int) -> bytes | None:
    """Code of ``old`` so that it does the same at ``new``; None when it cannot."""
    made = bytearray(code)
    for item in instructions(code, old):
        target = item.decoded.near_branch_target if is_near_branch(item.decoded) else 0
        if item.decoded.is_ip_rel_memory_operand:
            target = item.decoded.ip_rel_memory_address
        elif not is_near_branch(item.decoded):
            continue
        if old <= target < old + len(code):
            continue
        if len(item.raw) < 5:
            return None
        at = item.vaddr - old + min(item.fields)
        (distance,) = struct.unpack_from("<i", made, at)
        struct.pack_into("<i", made, at, distance + old - new)
    return bytes(made)


def exchanged_bodies(trial: Trial, draw: random.Random) -> Iterator[tuple[Key, Key, list[Mutant]]]:
    """Pairs of different functions of one size that others call, each with the code of the other."""
    by_size: dict[int, list[Key]] = {}
    for key, place in sorted(trial.base.functions.items()):
        callers = {user.key for user, _ in uses(trial.objects[key[0]], key[1]) if user.kind == "function"} - {key[1]}
        if place.size >= 24 and trial.objects[key[0]].atoms[key[1]].binding == "local" and callers:
            by_size.setdefault(place.size, []).append(key)
    for size, keys in by_size.items():
        for one, two in zip(keys[::2], keys[1::2], strict=False):
            a, b = trial.base.functions[one].vaddr, trial.base.functions[two].vaddr
            first, second = trial.truth.read(a, size), trial.truth.read(b, size)
            there, here = moved(first, a, b), moved(second, b, a)
            if there is None or here is None or here == first or there == second:
                continue
            yield one, two, [Mutant("body", a, here, two[1]), Mutant("body", b, there, one[1])]


@pytest.mark.parametrize("which", ["plain", "stripped"])
@pytest.mark.parametrize("seed", [31, 33, 35])
def test_exchanged_bodies_are_refused(tmp_path: Path, seed: int, which: str) -> None:
    trial = Trial.of(tmp_path / "program", seed, Kit("gcc" if seed % 2 else "clang"), which, files=2, functions=80)
    pairs = list(exchanged_bodies(trial, random.Random(seed)))
    for one, two, mutants in pairs:
        image = trial.image
        for mutant in mutants:
            image = mutant.apply(image)
        for key in (one, two):
            # Its code stands somewhere else now, but who used it uses the other: that must not go unnoticed.
            found = ask(image, trial.built, trial.objects, trial.wanted(key))
            if not found.findings:
                trial.complaints.append(f"{one[1]} and {two[1]} exchanged: {key[1]} accepted")
    assert len(pairs) >= 2
    assert not trial.complaints, some(trial.complaints)


SOURCE = """
static int count = 3; static const int table[] = {5, 1, 4, 1, 9, 2, 6};
static __attribute__((noinline)) int helper(int x) { count += x; return table[x & 3] * 7 + count; }
__attribute__((noinline)) int f(int x) {
  int r = helper(x); for (int i = 0; i < (x & 7); i++) r += table[i % 7] * i + count;
  switch (x) { case 0: r ^= 3; break; case 1: return 9; case 2: r *= 5; break; case 3: puts("three"); break;
    case 4: r -= 8; break; case 5: return r >> 2; } return r > 1000 ? helper(r) : r + 11; }
int before(void) { return 0; }
int work(void) { for (int i = 0; i < 9; i++) printf("%d ", f(i)); puts("end"); return 0; }
"""
HEAD = "extern int printf(const char *, ...); extern int puts(const char *);\n"


@pytest.mark.parametrize("strip", [False, True], ids=["named", "stripped"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_no_hotpatch_is_made_for_a_falsified_image(tmp_path: Path, cc: str, strip: bool) -> None:
    """The whole way of the forge: it makes a hotpatch for the image, and refuses each mutant of it."""
    fixed = SOURCE.replace("r + 11", "r + 12")
    project = Project(tmp_path / "project", {"main.c": MAIN, "a.c": HEAD + SOURCE}, {"a.c": HEAD + fixed}, PatchKit(cc))
    pair = project.pair()
    assert pair.plain_image is not None
    named = tmp_path / "named"
    shutil.copy(pair.plain_image, named)
    assert outcome(project, pair, named, None, strip) == set()
    with ElfFile.open(named) as elf:
        symbol = elf.symbol("f")
        assert symbol is not None
        code = elf.read_vaddr(symbol.value, symbol.size)
    mutants = list(other_instructions(instructions(code, symbol.value), random.Random(cc)))
    for mutant in random.Random(cc).sample(mutants, 12):
        codes = outcome(project, pair, named, mutant, strip)
        assert codes and codes <= {"MF130", "MF131", "MF132", "MF133", "MF135"}, f"{mutant}: {codes or 'accepted'}"


def outcome(project: Project, pair: BuildPair, named: Path, mutant: Mutant | None, strip: bool) -> set[str]:
    """Codes of the refusal of a hotpatch for a mutant of an image; none when one was made."""
    image = named.read_bytes()
    assert pair.plain_image is not None
    pair.plain_image.write_bytes(image if mutant is None else mutant.apply(image))
    if strip:
        subprocess.run(["strip", pair.plain_image], check=True)
    try:
        project.forge(pair)
    except RefusedWithFindings as refused:
        return {item.code for item in refused.findings}
    return set()
