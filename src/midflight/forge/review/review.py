"""What a reviewer must see of one object: calls that own, lock or order, where the fix touches them; and inlining.

Debug information ties each call to a source line, and the fix says which lines it touches. So a bounds check in front
of a call that stays says nothing, and one call that moves by a line says something, whatever the compiler made of it.
None of this proves that a fix is right or wrong: it finds what a person has to look at (docs/adr/0035).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midflight.errors import ImageError
from midflight.forge.calls import is_branch
from midflight.forge.difference import layout
from midflight.forge.difference.diff import is_cold
from midflight.forge.difference.lines import LineTables
from midflight.forge.families import base_name
from midflight.forge.model import Atom, Finding, ObjectCode, ObjectDiff
from midflight.forge.refusals import finding
from midflight.forge.review import reviewnames
from midflight.forge.review.callsites import CallSite, call_sites
from midflight.forge.review.touched import Touched, TouchedFile

_SHOWN = 4

Where = tuple[str, int]
"""A source line: the path of a touched file in the tree, and the number."""


def review(diff: ObjectDiff, touched: Touched) -> list[Finding]:
    """The sign-offs, warnings and notes of one object."""
    return _Review(diff, touched).findings()


@dataclass(frozen=True, slots=True)
class _Function:
    """One function as both sides have it; its own name, without the compiler's additions."""

    name: str
    pre: Atom | None
    post: Atom | None


@dataclass(slots=True)
class _Calls:
    """Touched calls of one callee in one source function: the lines before and after."""

    before: set[Where] = field(default_factory=set)
    after: set[Where] = field(default_factory=set)


class _Side:
    """One side of the difference: 0 before, 1 after."""

    def __init__(self, side: int, code: ObjectCode | None, touched: Touched) -> None:
        self.side, self.code, self.touched = side, code, touched
        self.lines = LineTables(code.file, code.path) if code is not None else None
        self._calls: dict[str, tuple[CallSite, ...]] = {}
        self._starts: dict[str, list[tuple[int, str]]] | None = None

    def atoms(self, atom: Atom) -> Iterator[Atom]:
        """A function and its cold parts."""
        assert self.code is not None
        yield atom
        yield from (other for other in self.code.atoms.values() if other.parent == atom.key and is_cold(other))

    def calls(self, atom: Atom) -> tuple[CallSite, ...]:
        assert self.code is not None and self.lines is not None
        if atom.key not in self._calls:
            code, lines = self.code, self.lines
            self._calls[atom.key] = tuple(site for a in self.atoms(atom) for site in call_sites(code, a, lines))
        return self._calls[atom.key]

    def place(self, file: str, line: int) -> tuple[TouchedFile, int] | None:
        """The touched file that a line belongs to."""
        found = self.touched.find(file) if line else None
        return None if found is None else (found, line)

    # --- which source function a line belongs to -----------------------------------------------------------------

    def owner(self, file: str, line: int) -> str | None:
        """The source function whose definition is the last before a line."""
        best = None
        for start, name in self._definitions().get(file, ()):
            if start > line:
                break
            best = name
        return best

    def _definitions(self) -> dict[str, list[tuple[int, str]]]:
        if self._starts is None:
            found: dict[str, list[tuple[int, str]]] = defaultdict(list)
            if self.code is not None and self.lines is not None:
                names = self.lines.files
                for item in layout.definitions(self.code.file):
                    if item.file in names:
                        found[names[item.file]].append((item.line, item.name))
            self._starts = {file: sorted(set(items)) for file, items in found.items()}
        return self._starts

    def touched_owners(self, file: str) -> frozenset[str]:
        """Source functions of a file (as debug information calls it) with a line that the fix touches."""
        found = self.touched.find(file)
        if found is None:
            return frozenset()
        marked = (found.removed, found.added)[self.side]
        owners = (self.owner(file, line) for line in marked if found.line(self.side, line).strip(" \t{}"))
        return frozenset(owner for owner in owners if owner is not None)

    def culprits(self, atom: Atom) -> tuple[str | None, frozenset[str]]:
        """The source function that this is, and those that the fix touches among all that its code comes from."""
        assert self.lines is not None
        owners: dict[str, set[str]] = {}
        rows = [row for a in self.atoms(atom) for row in self.lines.rows(a)]
        own = next((self.owner(row.file, row.line) for row in rows if row.line), None)
        for file, line in {(row.file, row.line) for row in rows if row.line}:
            owner = self.owner(file, line)
            if owner is not None:
                owners.setdefault(file, set()).add(owner)
        found = {name for file, names in owners.items() for name in names & self.touched_owners(file)}
        return own, frozenset(found)


class _Review:
    """One object under review."""

    def __init__(self, diff: ObjectDiff, touched: Touched) -> None:
        self.diff, self.touched = diff, touched
        self.sides = _Side(0, diff.pre, touched), _Side(1, diff.post, touched)
        self.units = list(self._units())
        self.culprits: dict[str, frozenset[str]] = {}

    def _units(self) -> Iterator[_Function]:
        pre, post = self.diff.pre, self.diff.post
        for before, after in self.diff.changed:
            atom = post.atoms[after]
            if not is_cold(atom) and pre is not None:
                yield _Function(base_name(atom.name), pre.atoms[before], atom)
        for key in self.diff.new:
            atom = post.atoms[key]
            if atom.kind == "function" and not is_cold(atom):
                yield _Function(base_name(atom.name), None, atom)
        for key in self.diff.gone if pre is not None else ():
            assert pre is not None
            atom = pre.atoms[key]
            if atom.kind == "function" and not is_cold(atom):
                yield _Function(base_name(atom.name), atom, None)

    def findings(self) -> list[Finding]:
        try:
            found = [*self._inlined(), *self._called(), *self._ordered()]
        except ImageError:
            return []  # Without line tables there is MF104 already.
        return list(dict.fromkeys(found))

    def find(self, code: str, symbol: str, **detail: object) -> Finding:
        return finding(code, self.diff.post.path, symbol, **detail)

    # --- inlining ------------------------------------------------------------------------------------------------

    def _inlined(self) -> Iterator[Finding]:
        for unit in self.units:
            if unit.pre is None or unit.post is None:
                continue
            own, before = self.sides[0].culprits(unit.pre)
            _, after = self.sides[1].culprits(unit.post)
            touched = before | after
            self.culprits[unit.post.key] = touched
            inlined = sorted(touched - {own, unit.name})
            if inlined and own not in touched:
                yield self.find("MF174", unit.name, source=" and ".join(inlined))

    # --- calls ---------------------------------------------------------------------------------------------------

    def _called(self) -> Iterator[Finding]:
        by_owner: dict[str, dict[str, _Calls]] = {}
        for unit in self.units:
            for side, atom in ((0, unit.pre), (1, unit.post)):
                if atom is not None:
                    self._collect(side, unit.name, atom, by_owner)
        if any(file.preprocessor for file in self.touched.files.values()):
            self._count(by_owner)
        for owner, calls in sorted(by_owner.items()):
            for code, concerns in _RULES:
                concerned = {callee: lines for callee, lines in calls.items() if concerns(callee)}
                if concerned:
                    places = min(place for lines in concerned.values() for place in (*lines.before, *lines.after))
                    file = places[0] if places[0] in self.touched.files else self.diff.post.path
                    yield finding(code, file, owner, what=self._describe(concerned))

    def _collect(self, side: int, name: str, atom: Atom, by_owner: dict[str, dict[str, _Calls]]) -> None:
        for site in self.sides[side].calls(atom):
            place = self.sides[side].place(site.file, site.line)
            if place is None or not any(concerns(site.callee) for _, concerns in _RULES):
                continue
            file, line = place
            if file.touches(side, line):
                owner = self.sides[side].owner(site.file, line) or name
                calls = by_owner.setdefault(owner, {}).setdefault(site.callee, _Calls())
                (calls.before, calls.after)[side].add((file.path, line))

    def _count(self, by_owner: dict[str, dict[str, _Calls]]) -> None:
        """Where macros are touched, lines that stay may call something else: then their number tells."""
        for unit in self.units:
            if unit.pre is None or unit.post is None:
                continue
            counts: list[dict[str, set[Where]]] = []
            for side, atom in ((0, unit.pre), (1, unit.post)):
                lines: dict[str, set[Where]] = defaultdict(set)
                for site in self.sides[side].calls(atom):
                    if any(concerns(site.callee) for _, concerns in _RULES):
                        lines[site.callee].add((Path(site.file).name, site.line))
                counts.append(lines)
            known = {callee for calls in by_owner.values() for callee in calls}
            for callee in (counts[0].keys() | counts[1].keys()) - known:
                before, after = counts[0].get(callee, set()), counts[1].get(callee, set())
                if len(before) != len(after):
                    more, less = (after, before) if len(after) > len(before) else (before, after)
                    which = set(sorted(more)[: len(more) - len(less)])
                    calls = _Calls(after=which) if more is after else _Calls(before=which)
                    by_owner.setdefault(unit.name, {})[callee] = calls

    def _describe(self, calls: Mapping[str, _Calls]) -> str:
        """ "the fix adds a call of free (part.c:12) and moves the call of malloc (part.c:8, now :9)" """
        parts = [self._describe_call(callee, lines) for callee, lines in sorted(calls.items())]
        more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"the fix {', '.join(parts[:_SHOWN])}{more}"

    def _describe_call(self, callee: str, calls: _Calls) -> str:
        before, after = sorted(calls.before), sorted(calls.after)
        if not before:
            return f"adds {_calls(len(after))} of {callee} ({_places(after)})"
        if not after:
            return f"takes out {_calls(len(before))} of {callee} ({_places(before)} before)"
        texts = [sorted(self._text(side, w) for w in lines) for side, lines in ((0, before), (1, after))]
        verb = "moves" if texts[0] == texts[1] else "changes"
        return f"{verb} {_calls(len(after), 'the call')} of {callee} ({_places(before)} before, {_places(after)} now)"

    def _text(self, side: int, where: Where) -> str:
        file = self.touched.files.get(where[0])
        return "" if file is None else file.statement(side, where[1])

    # --- hashes and orders ---------------------------------------------------------------------------------------

    def _ordered(self) -> Iterator[Finding]:
        callbacks = self._callbacks()
        for unit in self.units:
            if unit.pre is None or unit.post is None:
                continue
            for name in sorted(self.culprits.get(unit.post.key, frozenset()) or {unit.name}):
                what = None
                if unit.pre.key in callbacks and name == unit.name:
                    what = f"which is handed to {callbacks[unit.pre.key]}"
                elif reviewnames.orders(name):
                    what = "which by its name computes a hash or an order"
                if what is not None:
                    yield self.find("MF171", name, what=f"the fix changes {name}, {what}")

    def _callbacks(self) -> Mapping[str, str]:
        """Functions of pre whose address is handed to one that sorts, searches or makes a table, by key."""
        code = self.diff.pre
        found: dict[str, str] = {}
        if code is None:
            return found
        concerned = {unit.pre.key for unit in self.units if unit.pre is not None}
        for atom in code.atoms.values():
            taken = [r for r in atom.references if r.atom in concerned and atom.kind == "function"]
            for reference in taken:
                if is_branch(atom, reference):
                    continue
                user = next((s for s in self.sides[0].calls(atom) if s.offset > reference.offset), None)
                if user is not None and reviewnames.takes_callback(user.callee):
                    found[reference.atom or ""] = user.callee
        return found


def _locking(name: str) -> bool:
    return reviewnames.locks(name) or reviewnames.unlocks(name)


_RULES: Sequence[tuple[str, Callable[[str], bool]]] = (
    ("MF170", reviewnames.owns),
    ("MF171", reviewnames.calls_order),
    ("MF172", _locking),
)


def _calls(count: int, one: str = "a call") -> str:
    return one if count == 1 else f"{count} calls" if one == "a call" else f"{count} of the calls"


def _places(lines: Iterable[Where]) -> str:
    shown = list(lines)
    more = " …" if len(shown) > _SHOWN else ""
    return ", ".join(f"{file}:{line}" for file, line in shown[:_SHOWN]) + more
