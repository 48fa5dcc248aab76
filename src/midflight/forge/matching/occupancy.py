"""Who has which memory: two variables cannot lie in the same place, and a variable lies where the image has memory for
it that is written to."""

from __future__ import annotations

import bisect

from midflight.forge.matching.facts import Contradiction, Fact, Id, Names, show
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom


class Occupancy:
    """The places of variables that are known. Constants may share theirs, as the linker merges equal ones."""

    def __init__(self, run: RunImage, names: Names) -> None:
        self._run = run
        self._names = names
        self._atoms: dict[Id, Atom | None] = {}
        self._taken: list[tuple[int, int, Id]] = []

    def atom(self, id_: Id) -> Atom | None:
        """The function or variable behind an id; None for what no object that was read defines."""
        if id_ not in self._atoms:
            path = self._names.path_of(id_)
            if path is None or (self._names.inputs is not None and not self._names.inputs.is_read(path)):
                return None
            place = self._names.place_of(id_)
            self._atoms[id_] = self._names.atom(*place) if place is not None else None
        return self._atoms[id_]

    def check(self, fact: Fact) -> None:
        """Raises Contradiction when a function or variable cannot be there."""
        atom = self.atom(fact.id) if fact.what == "address" else None
        if atom is None:
            return
        problem = ""
        if atom.kind == "function":
            problem = self._function(fact.value)
        elif atom.kind in ("data", "bss") and atom.name:
            problem = self._variable(fact, atom)
        elif atom.name and fact.value % atom.aligned:
            problem = f"which is not aligned to {atom.aligned}"
        if problem:
            raise Contradiction(f"{fact.how} says that {show(self._names, fact.id)} is at {fact.value:#x}, {problem}")

    def _function(self, vaddr: int) -> str:
        if not self._run.is_code(vaddr):
            return "where no code is"
        return "in the middle of another function" if self._run.is_inside(vaddr) else ""

    def _variable(self, fact: Fact, atom: Atom) -> str:
        if not self._run.is_writable(fact.value):
            return "where nothing can be written"
        if fact.value % atom.aligned:
            return f"which is not aligned to {atom.aligned}"
        position = bisect.bisect_left(self._taken, (fact.value + atom.size, 0))
        for start, end, other in reversed(self._taken[max(position - 2, 0) : position]):
            if end > fact.value and other != fact.id:
                return f"where {show(self._names, other)} is ({start:#x})"
        return ""

    def note(self, fact: Fact) -> None:
        """A fact is established."""
        atom = self.atom(fact.id) if fact.what == "address" else None
        if atom is not None and atom.kind in ("data", "bss") and atom.name and atom.size:
            bisect.insort(self._taken, (fact.value, fact.value + atom.size, fact.id), key=lambda item: item[:2])
