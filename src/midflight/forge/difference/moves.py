"""Finds global functions and variables that the fix defines in another object than the one that run has them from.

One object at a time, such a definition looks new, and the one that runs would go on being used in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from midflight.forge.difference.correlate import STORAGE
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom, Finding, ObjectCode, ObjectDiff
from midflight.forge.refusals import finding


def moved(diffs: Sequence[ObjectDiff], run: RunImage) -> Iterator[Finding]:
    """Findings for new strong definitions of names that the running image defines already."""
    old = {
        name: (diff.pre, atom)
        for diff in diffs
        if diff.pre is not None
        for atom in diff.pre.atoms.values()
        if atom.binding != "local"
        for name in (atom.name, *atom.aliases)
    }
    for diff in diffs:
        for key in diff.new:
            atom = diff.post.atoms[key]
            if atom.binding == "global" and run.global_symbol(atom.name) is not None:
                yield from _judge(diff.post, atom, old.get(atom.name))


def _judge(post: ObjectCode, new: Atom, was: tuple[ObjectCode, Atom] | None) -> Iterator[Finding]:
    path: Path = post.path
    where = "an object that the fix does not change" if was is None else was[0].path.name
    if new.kind == "function":
        yield finding(
            "MF119", path, new.name, who=f"what runs is the one of {where}, which this one takes the place of"
        )
    elif was is None:
        yield finding("MF116", path, new.name, what=f"it moved here from {where}")
    elif STORAGE[was[1].kind] != STORAGE[new.kind]:
        yield finding("MF153", path, new.name, pre=STORAGE[was[1].kind], post=STORAGE[new.kind])
    elif was[1].size != new.size or new.alignment > was[1].alignment:
        what = f"it moved here from {where}, and grew or shrank from {was[1].size} to {new.size} bytes"
        yield finding("MF116", path, new.name, what=what)
    elif new.references or was[1].references or _contents(was[1]) != _contents(new):
        yield finding("MF110", path, new.name, what=f"it moved here from {where}")


def _contents(atom: Atom) -> bytes:
    return atom.data.rstrip(b"\0")


__all__ = ["moved"]
