"""Who has which memory: two variables cannot lie in the same place, and a variable lies where the image has memory for
it that is written to."""

from __future__ import annotations

import bisect

from midflight.forge.facts import Contradiction, Fact, Id, Names, show
from midflight.forge.runimage import RunImage


class Occupancy:
    """The places of variables that are known. Constants may share theirs, as the linker merges equal ones."""

    def __init__(self, run: RunImage, names: Names) -> None:
        self._run = run
        self._names = names
        self._sizes: dict[Id, int] = {}
        self._taken: list[tuple[int, int, Id]] = []

    def size(self, id_: Id) -> int:
        """The size of a variable; 0 for everything else, and for what no object that was read defines."""
        if id_ not in self._sizes:
            path = self._names.path_of(id_)
            if path is None or (self._names.inputs is not None and not self._names.inputs.is_read(path)):
                return 0
            place = self._names.place_of(id_)
            atom = self._names.atom(*place) if place is not None else None
            # Weak variables, and those in a group, may have their place in another object.
            plain = atom is not None and atom.kind in ("data", "bss") and bool(atom.name)
            self._sizes[id_] = atom.size if atom is not None and plain else 0
        return self._sizes[id_]

    def check(self, fact: Fact) -> None:
        """Raises Contradiction when a variable cannot be there."""
        size = self.size(fact.id) if fact.what == "address" else 0
        if not size:
            return
        if not self._run.is_writable(fact.value):
            what = show(self._names, fact.id)
            raise Contradiction(f"{fact.how} says that {what} is at {fact.value:#x}, where nothing can be written")
        position = bisect.bisect_left(self._taken, (fact.value + size, 0))
        for start, end, other in reversed(self._taken[max(position - 2, 0) : position]):
            if end > fact.value and other != fact.id:
                mine, theirs = show(self._names, fact.id), show(self._names, other)
                raise Contradiction(
                    f"{fact.how} says that {mine} is at {fact.value:#x}, where {theirs} is ({start:#x})"
                )

    def note(self, fact: Fact) -> None:
        """A fact is established."""
        size = self.size(fact.id) if fact.what == "address" else 0
        if size:
            bisect.insort(self._taken, (fact.value, fact.value + size, fact.id), key=lambda item: item[:2])
