"""Compares one function, or one piece of data, of an object with one place of the running image, once.

What depends on nothing else is decided here: every instruction, the contents of the data that the function refers to,
the symbol tables. Whether it also agrees with what other matches have shown is the prover's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from midflight.forge.matching import decode
from midflight.forge.matching.decode import Different, Same
from midflight.forge.matching.facts import Contradiction, Fact, Interpreter, Key, Names, agreement
from midflight.forge.matching.runimage import RunImage


@dataclass(frozen=True, slots=True)
class Fit:
    """The function can be what stands at ``vaddr``, and then ``facts`` hold."""

    vaddr: int
    same: Same
    size: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """It cannot; ``reach`` tells how many bytes were the same."""

    reach: int
    reason: str


class Fitter:
    """Keeps every answer: the same place is proposed again and again."""

    def __init__(self, run: RunImage, names: Names, interpreter: Interpreter) -> None:
        self.run = run
        self.names = names
        self.interpreter = interpreter
        self._functions: dict[tuple[Key, int], Fit | Misfit] = {}
        self._data: dict[tuple[Key, int], tuple[Fact, ...] | str] = {}

    def function(self, key: Key, vaddr: int) -> Fit | Misfit:
        """Compare a function of pre with the code at ``vaddr``."""
        found = self._functions.get((key, vaddr))
        if found is None:
            found = self._functions[key, vaddr] = self._compare(key, vaddr)
        return found

    def data(self, key: Key, vaddr: int) -> tuple[Fact, ...]:
        """What an atom of data says, if it lies at ``vaddr``. Raises Contradiction."""
        found = self._data.get((key, vaddr))
        if found is None:
            try:
                found = tuple(self.interpreter.data_facts(*key, vaddr))
            except Contradiction as error:
                found = str(error)
            self._data[key, vaddr] = found
        if isinstance(found, str):
            raise Contradiction(found)
        return found

    def _compare(self, key: Key, vaddr: int) -> Fit | Misfit:
        atom = self.names.atom(*key)
        end = self.run.function_end(vaddr)
        code = self.run.code(vaddr, len(atom.data) + len(atom.data) // 4 + 256)
        outcome = decode.compare_code(atom.data, atom.references, code, vaddr)
        if isinstance(outcome, Different):
            table = None if atom.references else decode.compare_bytes(atom.data, code, vaddr)
            if table is None:
                return Misfit(outcome.offset, outcome.describe())
            outcome = table
        size = outcome.size
        if end is not None and end - vaddr != size:
            rest = code[size : end - vaddr]
            if end - vaddr < size or not all(map(decode.is_padding, decode.decode(rest))):
                return Misfit(size, f"pre ends after {size:#x} bytes, run after {end - vaddr:#x}")
            size = end - vaddr
        try:
            facts = agreement(self._facts(key, outcome))
        except Contradiction as error:
            return Misfit(len(atom.data), str(error))
        return Fit(vaddr, outcome, size, facts)

    def _facts(self, key: Key, same: Same) -> Iterator[Fact]:
        """Facts from the code, and from the data of this object that it leads to, whose contents are compared."""
        work: list[Fact] = []
        seen: set[Key] = set()
        for fact in self.interpreter.code_facts(*key, same):
            yield fact
            work.append(fact)
        while work:
            fact = work.pop()
            # What another object defines is compared where that object is.
            if fact.what != "address" or self.names.path_of(fact.id) != key[0]:
                continue
            place = self.names.place_of(fact.id)
            if place is None or place in seen:
                continue
            seen.add(place)
            if self.names.atom(*place).kind in ("function", "tls", "other"):
                continue
            for learnt in self.data(place, fact.value):
                if learnt.what == "inside" and learnt.id == key:
                    _check_label(same, learnt)
                yield learnt
                work.append(learnt)


def _check_label(same: Same, fact: Fact) -> None:
    if same.places.get(fact.offset) != fact.value:
        raise Contradiction(f"{fact.how} leads to {fact.value:#x}, which is not +{fact.offset:#x} of the function")
