"""Pre-post differencing: what a fix changes in one object, and what of that must be refused.

The rule behind everything: a function stays when its code is equal but for relocated fields, and when everything that
it refers to is (by correlation) the old thing, or has equal content. All else is replaced, new, or a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from midflight.forge.calls import address_taken, uses
from midflight.forge.difference import layout, startup
from midflight.forge.difference.compare import Comparer
from midflight.forge.difference.correlate import COLLECTED, STORAGE, Correlation, correlate
from midflight.forge.difference.escapes import NAME_STRING, escaping
from midflight.forge.difference.lines import LineTables, only_lines_differ
from midflight.forge.families import is_outlined
from midflight.forge.model import Atom, Finding, ObjectCode, ObjectDiff, Reference
from midflight.forge.refusals import finding

_COLD = re.compile(r"\.cold(\.\d+)?$")


def difference(pre: ObjectCode | None, post: ObjectCode) -> ObjectDiff:
    """Compare one object without and with the fix.

    Args:
        pre: the object without the fix; None when the fix adds the object.
        post: the object with the fix.

    Raises:
        ImageError: the unwind or debug information of an object is malformed.
    """
    old = pre if pre is not None else ObjectCode(post.path, post.file, post.compiler, {})
    for side in (old, post):
        if side.lto:
            return ObjectDiff(pre, post, findings=(finding("MF101", side.path, side.path.name),))
    return _Difference(old, post, added=pre is None).result(pre)


def is_cold(atom: Atom) -> bool:
    """Whether this is a part of its parent's code that was moved away, without an entry of its own."""
    return atom.kind == "function" and (_COLD.search(atom.name) is not None or _is_in_frame(atom))


def _is_in_frame(atom: Atom) -> bool:
    """Whether it works in the frame of its parent (a filter of __except, a block of __finally): of old frames the old
    one, of new frames the new one."""
    return atom.parent is not None and is_outlined(atom.name)


class _Difference:
    """The state of one comparison. ``changed`` and ``replaced`` hold post keys and only ever grow."""

    def __init__(self, pre: ObjectCode, post: ObjectCode, *, added: bool) -> None:
        self.pre, self.post, self.added = pre, post, added
        self.correlation: Correlation = correlate(pre, post)
        self.comparer = Comparer(self.correlation)
        self.findings: list[Finding] = []
        self.changed: set[str] = set()
        self.line_only: set[str] = set()
        self.replaced: set[str] = set()
        self.stale: dict[str, str] = {}

    def result(self, pre: ObjectCode | None) -> ObjectDiff:
        if self.pre.compiler != self.post.compiler:
            self.find("MF102", self.post.path.name, pre=self.pre.compiler, post=self.post.compiler)
        self._compare_functions()
        self._compare_data()
        self._close()
        self._check_replaced()
        self._check_new_and_gone()
        self.findings.extend(startup.findings(self.correlation, self.changed))
        self._check_types()
        to_pre = self.correlation.to_pre
        return ObjectDiff(
            pre=pre,
            post=self.post,
            changed=tuple((to_pre[key], key) for key in self.post.atoms if key in self.changed),
            new=self.new,
            gone=self.gone,
            replaced_constants=tuple(
                (to_pre[key], key) for key in self.post.atoms if key in self.replaced and key in to_pre
            ),
            line_only=tuple(key for key in self.post.atoms if key in self.line_only),
            correlation={**to_pre, **self._equal_contents()},
            findings=tuple(sorted(set(self.findings), key=lambda f: (f.code, f.symbol, f.reason))),
        )

    def find(self, code: str, symbol: str, **detail: object) -> None:
        self.findings.append(finding(code, self.post.path, symbol, **detail))

    @property
    def pairs(self) -> list[tuple[Atom, Atom]]:
        """Correlated atoms, (pre, post), in the order of post."""
        to_pre = self.correlation.to_pre
        return [(self.pre.atoms[to_pre[k]], atom) for k, atom in self.post.atoms.items() if k in to_pre]

    # --- functions -----------------------------------------------------------------------------------------------

    def _compare_functions(self) -> None:
        differing = [
            (old, new)
            for old, new in self.pairs
            if new.kind == "function" and not self.comparer.same_code(old.key, new.key)
        ]
        if not differing:
            return
        lines = LineTables(self.pre.file, self.pre.path), LineTables(self.post.file, self.post.path)
        for old, new in differing:
            if self._lines_alone(old, new, lines):
                self.line_only.add(new.key)
            else:
                self.changed.add(new.key)
                if not new.sized or not old.sized:
                    self.find("MF103", new.name or new.key, what="its code changed")

    def _lines_alone(self, old: Atom, new: Atom, lines: tuple[LineTables, LineTables]) -> bool:
        if old.size != new.size or len(old.references) != len(new.references):
            return False
        if not all(map(self.comparer.same_reference, old.references, new.references)):
            return False
        return self.comparer.same_unwinding(old.key, new.key) and only_lines_differ(old, new, *lines)

    # --- data ----------------------------------------------------------------------------------------------------

    def _compare_data(self) -> None:
        for old, new in self.pairs:
            if new.kind in ("function", "other"):
                continue
            name = new.name or new.key
            kinds = STORAGE[old.kind], STORAGE[new.kind]
            if kinds[0] != kinds[1]:
                self.find("MF153", name, pre=f"{kinds[0]} data", post=f"{kinds[1]} data")
            elif kinds[0] == "constant":
                if new.alignment > old.alignment or not self.comparer.same(old.key, new.key):
                    self.replaced.add(new.key)
            elif old.size != new.size:
                self.find("MF116", name, what=f"its size changed from {old.size} to {new.size} bytes")
            elif new.alignment > old.alignment:
                self.find("MF116", name, what=f"its alignment changed from {old.alignment} to {new.alignment} bytes")
            elif not self.comparer.same(old.key, new.key):
                code = "MF151" if COLLECTED.match(new.section) else "MF110"
                self.find(code, name, what=self._what_differs(old, new), section=new.section)

    def _what_differs(self, old: Atom, new: Atom) -> str:
        for r, s in zip(old.references, new.references, strict=False):
            if not self.comparer.same_reference(r, s):
                return f"at +{s.offset:#x} it refers to {_target(self.post, s)} instead of {_target(self.pre, r)}"
        one, other = self.comparer.bytes_of(0, old), self.comparer.bytes_of(1, new)
        for at, (a, b) in enumerate(zip(one, other, strict=False)):
            if a != b:
                return f"the byte at +{at:#x} changed from {a:#04x} to {b:#04x}"
        return "it has more or fewer references"

    # --- what follows from what ----------------------------------------------------------------------------------

    def _close(self) -> None:
        """Let changes spread until nothing more follows."""
        size = -1
        while size != len(self.changed) + len(self.replaced):
            size = len(self.changed) + len(self.replaced)
            for key, atom in self.post.atoms.items():
                if atom.kind == "function":
                    if key in self.correlation.to_pre and key not in self.changed and self._must_change(atom):
                        self.changed.add(key)
                elif key not in self.replaced and any(self._is_stale(key, r) for r in atom.references):
                    self._outdate(atom)
            self._join_cold_parts()
        self.line_only -= self.changed

    def _must_change(self, atom: Atom) -> bool:
        return any(r.atom in self.replaced or self._is_stale(atom.key, r) for r in atom.references)

    def _is_stale(self, holder: str, reference: Reference) -> bool:
        """Whether the old holder of this reference would lead to something old: a replaced constant, or the middle of a
        function that changed (a label; the beginning has a trampoline)."""
        if reference.atom is None or reference.atom == holder:
            return False
        if reference.atom in self.replaced:
            return True
        return reference.atom in self.changed and reference.addend + reference.bias != 0

    def _outdate(self, atom: Atom) -> None:
        """An unchanged piece of data refers to something that is replaced: it goes along if it can."""
        if STORAGE[atom.kind] in ("constant", "other"):
            self.replaced.add(atom.key)
        elif atom.key in self.correlation.to_pre:
            self.stale[atom.key] = next(r.atom or "" for r in atom.references if self._is_stale(atom.key, r))

    def _join_cold_parts(self) -> None:
        """A function and its cold part jump into each other's middle, so they are replaced together."""
        for key, atom in self.post.atoms.items():
            if not is_cold(atom) or atom.parent is None:
                continue
            together = {k for k in (key, atom.parent) if k in self.correlation.to_pre}
            if together & self.changed or (len(together) == 1 and key in together):
                self.changed |= together

    def _check_replaced(self) -> None:
        """Constants may be replaced when all who can know their address are replaced with them."""
        for key, target in self.stale.items():
            code = "MF110" if self.post.atoms[target].kind == "function" else "MF115"
            what = f"it refers to {target}, which is replaced"
            self.find(code, key if code == "MF110" else target, what=what, who=f"the variable {key}")
        for key in self.replaced & self.correlation.to_pre.keys():
            atom = self.post.atoms[key]
            if atom.kind == "other":
                continue
            if atom.binding != "local":
                self.find("MF115", atom.name, who="other objects, which can refer to it by name,")
                continue
            old = self.pre.atoms[self.correlation.to_pre[key]]
            pointers = self._pointers_changed(old, atom)
            if pointers is not None:
                self.find("MF152", atom.name or key, what=pointers)
            elif not NAME_STRING.match(atom.name) and (holder := self._escapes.get(key)) is not None:
                self.find("MF115", atom.name or key, who=f"whoever got its address from {holder}")

    @cached_property
    def _escapes(self) -> Mapping[str, str]:
        """Replaced constants, by post key, whose address may be held by more than the functions that name them."""
        to_pre = self.correlation.to_pre
        found = dict(escaping(self.post, frozenset(self.replaced)))
        before = escaping(self.pre, frozenset(to_pre[key] for key in self.replaced if key in to_pre))
        found.update((key, before[to_pre[key]]) for key in self.replaced if to_pre.get(key) in before)
        return found

    def _pointers_changed(self, old: Atom, new: Atom) -> str | None:
        """What changed among the pointers to functions and variables in a constant; labels and strings do not count."""
        sides = []
        for code, atom in ((self.pre, old), (self.post, new)):
            pointers = {}
            for r in atom.references:
                target = code.atoms.get(r.atom or "")
                label = target is not None and target.kind == "function" and r.addend + r.bias != 0
                if not label and (target is None or STORAGE[target.kind] in ("function", "writable", "tls")):
                    pointers[r.offset] = r
            sides.append(pointers)
        for offset in sorted(sides[0].keys() | sides[1].keys()):
            a, b = sides[0].get(offset), sides[1].get(offset)
            if a is None or b is None or not self.comparer.same_reference(a, b):
                before = _target(self.pre, a) if a else "nothing"
                return f"at +{offset:#x}: {before} became {_target(self.post, b) if b else 'nothing'}"
        return None

    # --- new and gone --------------------------------------------------------------------------------------------

    @cached_property
    def new(self) -> tuple[str, ...]:
        to_pre = self.correlation.to_pre
        return tuple(
            key
            for key, atom in self.post.atoms.items()
            if key not in to_pre and atom.kind != "other" and (atom.name or STORAGE[atom.kind] in ("writable", "tls"))
        )

    @cached_property
    def gone(self) -> tuple[str, ...]:
        to_post = self.correlation.to_post
        return tuple(key for key, atom in self.pre.atoms.items() if atom.name and key not in to_post)

    def _check_new_and_gone(self) -> None:
        for key in self.new:
            atom = self.post.atoms[key]
            name = atom.name or key
            if atom.kind == "tls":
                self.find("MF113", name, what=f"the thread-local variable {name} is new")
            if key in self.correlation.unclear:
                others = ", ".join(self.correlation.unclear[key])
                self.find("MF118", name, what=f"the static variable {name} could be {others}")
            if COLLECTED.match(atom.section) and atom.kind != "function":
                self.find("MF151", name, what=f"{name} is a new entry", section=atom.section)
        self._check_collected()
        for key in self.gone:
            atom = self.pre.atoms[key]
            if atom.kind == "function" and not is_cold(atom):
                self._check_gone(atom)

    def _check_collected(self) -> None:
        """Unnamed entries (made by inline assembler) that lead into replaced code, or that run has not."""
        for key, atom in self.post.atoms.items():
            if atom.name or atom.kind == "function" or not COLLECTED.match(atom.section):
                continue
            twin = self.pre.atoms.get(key)
            leads = any(r.atom in self.changed or r.atom in self.replaced for r in atom.references)
            if leads or twin is None or twin.size != atom.size:
                self.find("MF151", atom.section, what="an entry for the new code would be needed", section=atom.section)

    def _check_gone(self, atom: Atom) -> None:
        holder = address_taken(self.pre, atom.key)
        if holder is not None:
            self.find("MF119", atom.name, who=f"the running program may hold its address (taken by {holder})")
        elif atom.binding == "global":
            self.find("MF119", atom.name, who="other objects and libraries can call it by name")

    # --- types ---------------------------------------------------------------------------------------------------

    def _check_types(self) -> None:
        if self.added:
            return
        for side, code in (("unfixed", self.pre), ("fixed", self.post)):
            if self.changed and not layout.has_types(code.file):
                self.find("MF104", self.post.path.name, side=side)
                return
        self.findings.extend(layout.compare_layouts(self.pre.file, self.post.file, self.post.path))
        self._check_variables()
        if not self.changed:
            return
        before, after = layout.signatures(self.pre.file), layout.signatures(self.post.file)
        for old, new in self.pairs:
            if new.key in self.changed and not is_cold(new):
                was, now = before.get(old.name), after.get(new.name)
                if was is not None and now is not None and was != now:
                    self._check_callers(old, new, was, now)

    def _check_variables(self) -> None:
        """What a variable holds must mean to the new code what it means to the old."""
        before, after = layout.variables(self.pre.file), layout.variables(self.post.file)
        for old, new in self.pairs:
            if STORAGE[new.kind] in ("writable", "tls") and old.size == new.size:  # else there is MF116
                was, now = before.get(old.name), after.get(new.name)
                if was is not None and now is not None and was != now:
                    self.find("MF111", new.name, what=f"the type of the variable changed from {was} to {now}")

    def _check_callers(self, old: Atom, new: Atom, was: str, now: str) -> None:
        holder = address_taken(self.pre, old.key)
        callers: str | None = None
        to_post = self.correlation.to_post
        unchanged = [
            atom.name
            for atom, _ in uses(self.pre, old.key)
            if atom.kind == "function" and atom.key in to_post and to_post[atom.key] not in self.changed
        ]
        if holder is not None:
            callers = f"{holder} gives its address to callers that know it"
        elif old.binding != "local":
            callers = "callers in other objects may call it"
        elif unchanged:
            callers = f"{unchanged[0]} calls it"
        if callers is not None:
            self.find("MF112", new.name, pre=was, post=now, callers=callers)

    # --- contents ------------------------------------------------------------------------------------------------

    def _equal_contents(self) -> dict[str, str]:
        """Strings and unnamed constants that pre has too, post key to pre key."""
        contents: dict[tuple[bytes, int], str] = {}
        for key, atom in self.pre.atoms.items():
            if _is_plain(atom):
                contents.setdefault((atom.data, atom.alignment), key)
        found = {}
        for key, atom in self.post.atoms.items():
            twin = contents.get((atom.data, atom.alignment)) if _is_plain(atom) else None
            if twin is not None and key not in self.correlation.to_pre:
                found[key] = twin
        return found


def _is_plain(atom: Atom) -> bool:
    return not atom.name and not atom.references and STORAGE[atom.kind] == "constant"


def _target(code: ObjectCode, reference: Reference) -> str:
    if reference.atom is None:
        return reference.symbol or "nothing"
    atom = code.atoms[reference.atom]
    if atom.kind == "string":
        at = max(reference.addend + reference.bias, 0)
        return repr(atom.data[at:].rstrip(b"\0").decode(errors="replace"))
    return atom.name or atom.key
