"""Tells which symbol of post is which symbol of pre: by name, and where compilers number names, by who refers to them.

Mistaking one function for another is harmless here (more functions count as changed); mistaking one variable for
another is not, so a numbered static variable is only taken for an old one when every function that uses it agrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from midflight.forge.families import base_name
from midflight.forge.model import Atom, AtomKind, ObjectCode
from midflight.forge.objects import field_size

Storage = Literal["function", "writable", "constant", "tls", "other"]
STORAGE: Mapping[AtomKind, Storage] = {
    "function": "function",
    "data": "writable",
    "bss": "writable",
    "rodata": "constant",
    "string": "constant",
    "tls": "tls",
    "other": "other",
}

# gcc: x.12, __func__.3, CSWTCH.7, and for C++ _ZZ1fvE1x_0; clang: f.x.1 beside f.x
_NUMBERED = re.compile(r"^(?P<base>.+?)\.\d+$")
_CXX_LOCAL = re.compile(r"^(?P<base>_ZZ.+E.+?)_\d+_?$")
_CLONE = re.compile(r"\.(?P<what>part|isra|constprop|cold|lto_priv)\.\d+")
_INITIALISER = re.compile(r"^(_GLOBAL__sub_[ID]_).+")
# Names for which the preprocessor pasted a line number, in sections that are read as one list.
_ENTRY = re.compile(r"^(?P<base>.*[^\d])\d+$")
COLLECTED = re.compile(r"^(?!COMMON$)[A-Za-z_][A-Za-z0-9_]*$")
"""Section names for which the linker makes __start_NAME and __stop_NAME."""


@dataclass(slots=True)
class Correlation:
    """Post keys to pre keys, and back. ``unclear`` are post variables that may or may not be one of the old ones."""

    pre: ObjectCode
    post: ObjectCode
    to_pre: dict[str, str] = field(default_factory=dict)
    to_post: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, pre_key: str, post_key: str) -> None:
        """Record that two atoms are the same thing."""
        self.to_pre[post_key] = pre_key
        self.to_post[pre_key] = post_key


def masked(atom: Atom) -> bytes:
    """The bytes of an atom with every relocated field zeroed."""
    data = bytearray(atom.data)
    for reference in atom.references:
        size = field_size(reference.type)
        data[reference.offset : reference.offset + size] = bytes(size)
    return bytes(data)


def group_of(atom: Atom) -> str | None:
    """The name without the numbers that a compiler chose freely; None when the name has none."""
    if atom.binding != "local" or not atom.name:
        return None
    if found := _INITIALISER.match(atom.name):
        return found.group(1)
    if atom.kind == "function" and _CLONE.search(atom.name):
        return _CLONE.sub(r".\g<what>", atom.name)
    if found := _NUMBERED.match(atom.name) or _CXX_LOCAL.match(atom.name):
        return found["base"]
    if ("." in atom.name and atom.kind != "function") or atom.name.startswith("_ZZ"):
        return atom.name  # clang's first of several; gcc's first C++ one
    return None


def correlate(pre: ObjectCode, post: ObjectCode) -> Correlation:
    """Correlate the named atoms of two objects."""
    correlation = Correlation(pre, post)
    _entries(correlation)
    _by_name(correlation)
    groups = _groups(correlation)
    for old, new in groups:
        if STORAGE[old[0].kind] == "function":
            _functions(correlation, old, new)
    _renamed_functions(correlation)
    for old, new in groups:
        if STORAGE[old[0].kind] != "function":
            _variables(correlation, old, new)
    _unnamed_data(correlation)
    return correlation


def _entries(correlation: Correlation) -> None:
    """Entries of lists that are read through their bounds, named after lines: the same in the same order, when there
    are as many as before and no code names one. (What they hold is compared afterwards.)"""
    found: dict[tuple[str, str], tuple[list[Atom], list[Atom]]] = {}
    for side, code in enumerate((correlation.pre, correlation.post)):
        named = {r.atom for atom in code.atoms.values() if atom.kind == "function" for r in atom.references}
        for atom in code.atoms.values():
            name = _ENTRY.match(atom.name) if atom.binding == "local" and COLLECTED.match(atom.section) else None
            if name is not None and atom.kind != "function" and atom.key not in named:
                found.setdefault((atom.section, name["base"]), ([], []))[side].append(atom)
    for old, new in found.values():
        if len(old) == len(new):
            for a, b in zip(sorted(old, key=_place), sorted(new, key=_place), strict=True):
                correlation.add(a.key, b.key)


def _place(atom: Atom) -> int:
    return atom.offset


def _by_name(correlation: Correlation) -> None:
    names: dict[str, str] = {}
    for key, atom in correlation.pre.atoms.items():
        if atom.name and group_of(atom) is None:
            for name in (*atom.aliases, atom.name):
                names[name] = key
    for key, atom in correlation.post.atoms.items():
        if not atom.name or group_of(atom) is not None or key in correlation.to_pre:
            continue
        for name in (atom.name, *atom.aliases):
            found = names.get(name)
            if found is not None and found not in correlation.to_post and _comparable(correlation, found, key):
                correlation.add(found, key)
                break


def _comparable(correlation: Correlation, pre_key: str, post_key: str) -> bool:
    one, other = (STORAGE[a.kind] for a in (correlation.pre.atoms[pre_key], correlation.post.atoms[post_key]))
    return (one == "function") == (other == "function")


def _groups(correlation: Correlation) -> list[tuple[list[Atom], list[Atom]]]:
    """Atoms of pre and of post with the same name but for numbers, and the same storage; both sides have some."""
    found: dict[tuple[str, Storage], tuple[list[Atom], list[Atom]]] = {}
    for side, code in enumerate((correlation.pre, correlation.post)):
        for atom in code.atoms.values():
            group = group_of(atom)
            if group is not None:
                found.setdefault((group, STORAGE[atom.kind]), ([], []))[side].append(atom)
    return [pair for pair in found.values() if pair[0] and pair[1]]


def _functions(correlation: Correlation, old: list[Atom], new: list[Atom]) -> None:
    """Clones: the only one of its kind whatever its number, else those with equal bytes, else with equal names."""
    if len(old) == len(new) == 1:
        correlation.add(old[0].key, new[0].key)
        return
    for a, b in [*_equal_bytes(old, new), *((a, b) for a in old for b in new if a.name == b.name)]:
        if a.key not in correlation.to_post and b.key not in correlation.to_pre:
            correlation.add(a.key, b.key)


def _equal_bytes(old: Iterable[Atom], new: Iterable[Atom]) -> Iterator[tuple[Atom, Atom]]:
    """Pairs with equal masked bytes that nothing else on either side has."""
    contents: dict[tuple[bytes, int], tuple[list[Atom], list[Atom]]] = {}
    for side, atoms in enumerate((old, new)):
        for atom in atoms:
            contents.setdefault((masked(atom), len(atom.references)), ([], []))[side].append(atom)
    for one, other in contents.values():
        if len(one) == len(other) == 1:
            yield one[0], other[0]


def _renamed_functions(correlation: Correlation) -> None:
    """Static functions with a new name and the very same code, when there is no other candidate."""
    old = [
        a
        for a in correlation.pre.atoms.values()
        if a.kind == "function" and a.binding == "local" and a.key not in correlation.to_post
    ]
    new = [
        a
        for a in correlation.post.atoms.values()
        if a.kind == "function" and a.binding == "local" and a.key not in correlation.to_pre
    ]
    for a, b in list(_equal_bytes(old, new)):
        targets_a = [r.symbol or correlation.to_post.get(r.atom or "") for r in a.references]
        targets_b = [r.symbol or r.atom for r in b.references]
        alike = all(x == y or x is None for x, y in zip(targets_a, targets_b, strict=True))
        if alike and a.size >= 16 and a.name and b.name and ".cold" not in a.name and ".cold" not in b.name:
            correlation.add(a.key, b.key)


def _variables(correlation: Correlation, old: list[Atom], new: list[Atom]) -> None:
    """Numbered variables: constants by content first; then by unanimous votes of the functions that refer to them."""
    constant = STORAGE[old[0].kind] == "constant"
    if constant:
        for a, b in _equal_bytes(old, new):
            if not a.references:
                correlation.add(a.key, b.key)
    for strong in (True, False):
        left = {a.key for a in old if a.key not in correlation.to_post}
        right = {b.key for b in new if b.key not in correlation.to_pre}
        if not left or not right:
            return
        votes = _votes(correlation, left, right, strong=strong)
        for one, other in votes:
            if sum(x == one or y == other for x, y in votes) == 1:  # nobody says otherwise
                correlation.add(one, other)
    left = {a.key for a in old if a.key not in correlation.to_post}
    right = {b.key for b in new if b.key not in correlation.to_pre}
    if left and not constant:
        for key in right:
            correlation.unclear[key] = tuple(sorted(left))


def _votes(correlation: Correlation, left: set[str], right: set[str], *, strong: bool) -> set[tuple[str, str]]:
    """Which old variable is which new one, as the correlated functions see it.

    Strong votes come from functions with equal code, field by field. Weak ones come from changed functions, when either
    version uses one such variable; with several they abstain.
    """
    votes: set[tuple[str, str]] = set()
    for post_key, pre_key in list(correlation.to_pre.items()):
        one, other = correlation.pre.atoms[pre_key], correlation.post.atoms[post_key]
        if one.kind == "string":
            continue
        equal = one.data == other.data and [r.offset for r in one.references] == [r.offset for r in other.references]
        if equal:
            votes.update(
                (r.atom, s.atom)
                for r, s in zip(one.references, other.references, strict=True)
                if r.atom in left and s.atom in right and r.addend == s.addend
            )
        elif not strong:
            uses = list(dict.fromkeys(r.atom for r in one.references if r.atom in left))
            others = list(dict.fromkeys(r.atom for r in other.references if r.atom in right))
            if len(uses) == len(others) == 1 and _alike(correlation, uses[0] or "", others[0] or ""):
                votes.add((uses[0] or "", others[0] or ""))
    if not strong and not votes and len(left) == len(right) == 1:
        a, b = next(iter(left)), next(iter(right))
        if _users(correlation.pre, a) & _users(correlation.post, b):
            votes.add((a, b))
    return votes


def _alike(correlation: Correlation, a: str, b: str) -> bool:
    one, other = correlation.pre.atoms[a], correlation.post.atoms[b]
    return one.size == other.size and one.kind == other.kind


def _users(code: ObjectCode, key: str) -> set[str]:
    """Source functions (clones under their base name) that refer to an atom."""
    return {base_name(a.name or a.key) for a in code.atoms.values() if any(r.atom == key for r in a.references)}


def _unnamed_data(correlation: Correlation) -> None:
    """Unnamed writable data stays what it is when its section holds nothing else than before."""
    for key, atom in correlation.post.atoms.items():
        twin = correlation.pre.atoms.get(key)
        if atom.name or twin is None or twin.name or twin.kind != atom.kind or twin.size != atom.size:
            continue
        if STORAGE[atom.kind] in ("writable", "tls") and key not in correlation.to_pre:
            correlation.add(key, key)


__all__ = ["COLLECTED", "STORAGE", "Correlation", "Storage", "correlate", "group_of", "masked"]
