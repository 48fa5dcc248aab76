"""What the linker made of functions, read in the captured image of the unfixed tree, where the running one is stripped.

That image was linked by the same command from the same objects, and it has its symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from midflight.forge.model import Atom, Build, Finding, ObjectCode, ObjectDiff
from midflight.forge.refusals import finding
from midflight.image.binary import ImageFile, open_object
from midflight.image.model import Symbol
from midflight.image.pdb import PdbFile

Key = tuple[Path, str]


def has_local_symbols(image: ImageFile | PdbFile) -> bool:
    """Whether the symbol table names static functions too (strip -x takes those away, strip all). A PDB does not, but
    those of modules in C that were compiled with debug information."""
    return not isinstance(image, PdbFile) and any(s.binding == "local" and s.type == "func" for s in image.symbols())


def folded(
    replaced: Iterable[Key], objects: Mapping[Path, ObjectCode], linked: ImageFile, known: frozenset[str]
) -> Iterator[Finding]:
    """Functions to be replaced that share their code with others in ``linked`` (identical code folding): MF134.

    ``known`` are the names that have such a finding already.
    """
    for path, key in replaced:
        atom = objects[path].atoms[key]
        mine = {atom.name, *atom.aliases}
        for address in sorted({s.value for s in _functions(linked, atom.name)} if atom.name not in known else ()):
            here = [s for s in linked.symbols() if s.defined and s.value == address and s.type in ("func", "ifunc")]
            others = {s.name for s in here} - mine
            namesakes = sum(s.name == atom.name and s.binding == "local" for s in here)
            if others or namesakes > 1:
                names = ", ".join(sorted(others)) or f"a static {atom.name} of another file"
                yield finding("MF134", path, atom.name, others=names)
                break


def overruled(diffs: Sequence[ObjectDiff], pre: Build, linked: ImageFile) -> Iterator[Finding]:
    """Changed weak functions in whose place a strong one runs, of an object that the fix does not change: MF119."""
    paths = {diff.post.path for diff in diffs}
    strong = {
        atom.name
        for diff in diffs
        for atom in (diff.pre.atoms.values() if diff.pre is not None else ())
        if atom.binding == "global"
    }
    others: Mapping[str, str] | None = None
    for diff in diffs:
        for old, _ in diff.changed:
            atom = diff.pre.atoms[old] if diff.pre is not None else None
            if atom is None or atom.binding != "weak" or atom.name in strong:
                continue
            winner = _winner(atom, linked)
            if winner == "unknown":
                others = _strong(pre, paths) if others is None else others
                winner = others.get(atom.name)
            if winner is not None:
                who = f"what runs is the one of {winner}, which takes the place of this weak one"
                yield finding("MF119", diff.post.path, atom.name, who=who)


def _winner(atom: Atom, linked: ImageFile) -> str | None:
    """Whose definition the linker took: None: a weak one; unknown: the image does not say."""
    bindings = {s.binding for s in _functions(linked, atom.name)} - {"local"}
    if not bindings:
        return "unknown"
    return "another object" if bindings == {"global"} else None


def _strong(build: Build, without: set[Path]) -> Mapping[str, str]:
    """Strong definitions in the objects of the image, by name: the object's name."""
    found: dict[str, str] = {}
    for path in build.inputs:
        if path in without or path not in build.objects:
            continue
        with open_object(build.objects[path].saved) as elf:
            found.update((s.name, path.name) for s in elf.symbols() if s.defined and s.binding == "global" and s.name)
    return found


def _functions(linked: ImageFile, name: str) -> list[Symbol]:
    symbols = linked.symbols_by_name.get(name, ())
    return [s for s in symbols if s.defined and s.type in ("func", "ifunc")]
