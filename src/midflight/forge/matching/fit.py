"""Compares one function, or one piece of data, of an object with one place of the running image, once.

What depends on nothing else is decided here: every instruction, the contents of the data that the function refers to,
the symbol tables. Whether it also agrees with what other matches have shown is the prover's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from midflight.forge.matching import decode
from midflight.forge.matching.decode import Different, Same
from midflight.forge.matching.facts import Contradiction, Fact, Interpreter, Key, Names, Source, agreement
from midflight.forge.matching.runimage import RunImage

MSVC_HANDLERS = ("__CxxFrameHandler", "__C_specific_handler")
"""Who reads the tables of exceptions that compilers for the MSVC ABI make."""


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
        if len(atom.stretches) > 1:
            end = vaddr + size  # the unwind information has an entry for each part, compared below
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

    def _handlers(self, key: Key, same: Same) -> tuple[Fact, ...]:
        """Where the unwind information of a function with handlers of the MSVC ABI is, by .pdata. Raises Contradiction
        when run's describes other stretches of code."""
        atom = self.names.atom(*key)
        infos = [self.names.atom(key[0], item.info) for item in atom.stretches]
        if len(infos) < 2 and not any(
            (r.symbol or "").startswith(MSVC_HANDLERS) for info in infos for r in info.references
        ):
            return ()
        found = []
        for item in atom.stretches:
            start, end = same.places.get(item.start), same.places.get(item.end)
            described = self.run.unwinding.get(-1 if start is None else start)
            if described is None or described[0] != end:
                raise Contradiction(f"the unwind information of +{item.start:#x} is for another stretch of code in run")
            how = Source(key, item.start, f"unwind information of {atom.name or key[1]}+{item.start:#x}")
            id_ = self.names.id_of(key[0], item.info)
            found.append(Fact(id_, "address", described[1] - item.info_offset, how))
        return tuple(found)

    def _facts(self, key: Key, same: Same) -> Iterator[Fact]:
        """Facts from the code, and from the data of this object that it leads to, whose contents are compared; of the
        handlers of exceptions of the MSVC ABI also their tables."""
        work: list[Fact] = []
        seen: set[Key] = set()
        handlers = self._handlers(key, same)
        for fact in (*self.interpreter.code_facts(*key, same), *handlers):
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
            kind = self.names.atom(*place).kind
            if kind in ("function", "tls") or (kind == "other" and not handlers):
                continue
            for learnt in self.data(place, fact.value):
                if learnt.what == "inside" and learnt.id == key:
                    _check_label(same, learnt)
                yield learnt
                work.append(learnt)


def is_label(same: Same, offset: int, vaddr: int) -> bool:
    """Whether an address in run is that of an offset in a matched function. Tables of exceptions name return addresses
    by the byte after them, which is in the middle of an instruction."""
    place = same.places.get(offset)
    if place is None and offset - 1 in same.places:
        place = same.places[offset - 1] + 1
    return place == vaddr


def _check_label(same: Same, fact: Fact) -> None:
    if not is_label(same, fact.offset, fact.value):
        raise Contradiction(f"{fact.how} leads to {fact.value:#x}, which is not +{fact.offset:#x} of the function")
