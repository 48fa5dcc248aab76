"""Which atoms of post go into the payload, and what the payload needs to know of the running image.

Replaced functions go in, and whatever they need that the running image does not have. Strings and constants are copied;
existing data and unchanged functions stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from midflight.forge import relocs as r
from midflight.forge.difference.diff import is_cold
from midflight.forge.difference.escapes import NAME_STRING
from midflight.forge.matching.facts import Names
from midflight.forge.matching.match import Key, Wanted
from midflight.forge.model import Atom, ObjectCode, ObjectDiff, Reference
from midflight.forge.objects import Frame, frames

_TYPE_DATA = re.compile(r"^\?\?_R[0-4]")


def is_type_data(name: str) -> bool:
    """Whether a name is that of data of the MSVC ABI that describes a type: a type descriptor, or what is said of its
    bases (names as undname(1) and the ABI's runtime have them: ??_R0 to ??_R4)."""
    return _TYPE_DATA.match(name) is not None


@dataclass(frozen=True, slots=True)
class Target:
    """What a reference of post means: an atom that goes into the payload, one of pre that runs, or a name."""

    included: Key | None = None
    """(object, post key)."""
    old: Key | None = None
    """(object, pre key): what it is (or, for a replaced function, was) in run."""
    symbol: str | None = None


@dataclass(slots=True)
class Selection:
    """The result, and the questions that the linker asks again."""

    diffs: Mapping[Path, ObjectDiff]
    names: Names
    """Of the post objects."""
    exists: Callable[[str], bool]
    """Whether the running image defines a global symbol."""
    absent: frozenset[Key]
    """Functions of pre that run does not have."""
    changed: dict[Key, Key] = field(default_factory=dict)
    """(object, post key) to (object, pre key) of all replaced functions, .cold parts included; one per global name."""
    included: dict[Key, None] = field(default_factory=dict)
    wanted_atoms: set[Key] = field(default_factory=set)
    wanted_symbols: set[str] = field(default_factory=set)
    frames: dict[Path, Mapping[str, tuple[Frame, ...]]] = field(default_factory=dict)

    def atom(self, key: Key) -> Atom:
        return self.names.atom(*key)

    @property
    def replaced(self) -> dict[Key, Key]:
        """Functions with an entry of their own that run has: post key to pre key."""
        return {
            post: pre for post, pre in self.changed.items() if not is_cold(self.atom(post)) and pre not in self.absent
        }

    @property
    def wanted(self) -> Wanted:
        replaced = {pre for pre in self.changed.values() if pre not in self.absent}
        inlined = frozenset(self.changed.values()) & self.absent
        for path, key in list(replaced):
            code = self.diffs[path].pre
            assert code is not None
            replaced |= {(path, child) for child, a in code.atoms.items() if a.parent == key and is_cold(a)}
        return Wanted(frozenset(replaced), frozenset(self.wanted_atoms), frozenset(self.wanted_symbols), inlined)

    def in_order(self) -> list[Key]:
        """The included atoms: objects in link order, atoms in section order."""
        order = {path: index for index, path in enumerate(self.names.objects)}
        position = {
            (path, key): (order[path], index)
            for path, code in self.names.objects.items()
            for index, key in enumerate(code.atoms)
        }
        return sorted(self.included, key=position.__getitem__)

    def frames_of(self, key: Key) -> tuple[Frame, ...]:
        if key[0] not in self.frames:
            self.frames[key[0]] = frames(self.names.objects[key[0]])
        return self.frames[key[0]].get(key[1], ())

    # --- what a reference means --------------------------------------------------------------------------------------

    def target(self, path: Path, reference: Reference, holder: Key | None = None) -> Target:
        """What ``reference`` of an atom of the post object ``path`` means."""
        if reference.atom is not None:
            if reference.type == r.RVA32 and is_type_data(reference.atom):
                # Distances from the beginning of the payload end in the payload; types are equal when their names are.
                return Target(included=self.names.definers.get(reference.atom, (path, reference.atom)))
            return self._atom_target((path, reference.atom), holder)
        return self._name_target(reference.symbol or "")

    def _name_target(self, name: str) -> Target:
        place = self.names.definers.get(name)
        if place is None:
            return Target(symbol=name)
        return self._atom_target(place, None)

    def _atom_target(self, key: Key, holder: Key | None) -> Target:
        atom = self.atom(key)
        if atom.binding != "local":
            # Of several equal copies (vague linkage, COMDAT) one stands for all.
            key = self.names.definers.get(atom.name, key)
            atom = self.atom(key)
        if key in self.changed:
            old = self.changed[key]
            return Target(included=key, old=None if old in self.absent else old)
        diff = self.diffs[key[0]]
        old_key = diff.correlation.get(key[1])
        replaced = any(post == key[1] for _, post in diff.replaced_constants)
        if self._copied(key, atom, holder) or replaced:
            return Target(included=key)
        if old_key is not None and (key[0], old_key) not in self.absent:
            return Target(old=(key[0], old_key))
        if atom.binding != "local" and self.exists(atom.name):
            return Target(symbol=atom.name)
        return Target(included=key)

    def _copied(self, key: Key, atom: Atom, holder: Key | None) -> bool:
        """Whether every user has its own copy: strings, unnamed constants, tables that belong to a function, and slots
        with the address of a personality routine or type information."""
        if atom.kind in ("string", "other"):
            return True
        if atom.kind == "rodata":
            return not atom.name or (NAME_STRING.match(atom.name) is not None and not atom.references)
        if atom.kind == "data" and atom.size == 8 and len(atom.references) == 1 and atom.references[0].type == r.R_64:
            from_table = holder is not None and self.atom(holder).kind == "other"
            return atom.name.startswith("DW.ref.") or (not atom.name and from_table)
        return False

    # --- building ----------------------------------------------------------------------------------------------------

    def add(self, key: Key) -> None:
        """Include an atom, and everything that it needs."""
        work = [key]
        while work:
            key = work.pop()
            if key in self.included:
                continue
            self.included[key] = None
            atom = self.atom(key)
            references = list(atom.references)
            if atom.kind == "function":
                for frame in self.frames_of(key):
                    references += [item for item in (frame.personality, frame.lsda) if item is not None]
            locator = self.locator(key)
            if locator is not None:
                work.append(locator)
            for reference in references:
                if reference.type in r.MARKS:
                    continue
                target = self.target(key[0], reference, key)
                if target.included is not None:
                    work.append(target.included)
                    self._want_string(target.included)
                if target.old is not None:
                    self.wanted_atoms.add(target.old)
                if target.symbol is not None:
                    self.wanted_symbols.add(target.symbol)

    def locator(self, key: Key) -> Key | None:
        """What leads to the type of an object: the MSVC ABI has a pointer to it right before the table of virtual
        functions, without a name of its own."""
        table = self.atom(key)
        if not table.name.startswith("??_7"):
            return None
        for other, atom in self.names.objects[key[0]].atoms.items():
            beside = atom.section == table.section and atom.offset + atom.size == table.offset
            if beside and any((item.atom or item.symbol or "").startswith("??_R4") for item in atom.references):
                return key[0], other
        return None

    def _want_string(self, key: Key) -> None:
        """The program may hold and compare the address of a string that it has already, so that one is used."""
        old = self.diffs[key[0]].correlation.get(key[1])
        if old is not None and self.atom(key).kind == "string":
            self.wanted_atoms.add((key[0], old))


def select(
    diffs: Sequence[ObjectDiff],
    exists: Callable[[str], bool],
    hooks: ObjectCode | None = None,
    hook_names: Iterable[str] = (),
    absent: frozenset[Key] = frozenset(),
) -> Selection:
    """Choose what goes into the payload.

    Args:
        diffs: differences of the objects, in link order.
        exists: tells whether the running image defines a global symbol.
        hooks: the author's hooks, compiled.
        hook_names: which functions of it are hooks.
        absent: functions of pre that the running image does not have (a result of the match).
    """
    by_path = {diff.post.path: diff for diff in diffs}
    if hooks is not None:
        by_path[hooks.path] = ObjectDiff(pre=None, post=hooks, new=tuple(hooks.atoms))
    names = _prefer_old(Names.of({path: diff.post for path, diff in by_path.items()}), by_path)
    selection = Selection(by_path, names, exists, absent)
    for path, diff in by_path.items():
        for pre, post in diff.changed:
            atom = diff.post.atoms[post]
            if atom.binding == "local" or selection.names.definers.get(atom.name) == (path, post):
                selection.changed[(path, post)] = (path, pre)
    for key, old in selection.changed.items():
        # A function that was inlined everywhere has no entry to lead elsewhere; callers that need it bring it along.
        if old not in absent:
            selection.add(key)
    if hooks is not None:
        for name in hook_names:
            selection.add((hooks.path, name))
    return selection


def _prefer_old(names: Names, diffs: Mapping[Path, ObjectDiff]) -> Names:
    """Let a copy that run has, and the fix changes, stand for all copies (vague linkage), not one in an object that had
    none: that one replaces nothing."""
    definers = dict(names.definers)
    for path, diff in diffs.items():
        for _, post in diff.changed:
            atom = diff.post.atoms[post]
            for name in (atom.name, *atom.aliases) if atom.binding != "local" else ():
                place = definers[name]
                if names.atom(*place).binding != "global" and place[1] not in diffs[place[0]].correlation:
                    definers[name] = (path, post)
    return replace(names, definers=definers)
