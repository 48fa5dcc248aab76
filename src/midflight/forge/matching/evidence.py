"""Weighs what speaks for an address: how many witnesses there are that do not rest on each other.

A witness is a field in a proven function or in proven data (each field is one, but what a function was chosen by is not
proven by that function again), the contents compared, unwind information with the same bounds, a neighbour in the
object, or a symbol of the image. Two are enough; so is a proof of uniqueness: a symbol, or contents that occur once.
See docs/adr/0030.
"""

from __future__ import annotations

from midflight.forge.matching.facts import Contradiction, Id, Key, Sayers, What
from midflight.forge.matching.prove import Prover, weight
from midflight.forge.model import Atom, Place
from midflight.image.model import Symbol

ENOUGH = 2
_CODE_BYTES = 16
"""The contents of a function speak for a place when so many bytes of it were compared."""
_DATA_BYTES = 4
"""The contents of data speak for a place when it is so large, and not zero."""
_NEAR_PLACES = 4
"""A neighbour behind it speaks for its place when no more places than this would do (it may be aligned to more)."""
_TYPE_DEPTH = 4
"""From what is thrown to the types it can be caught as, each of them, and its name; and what that leads to."""
_OFFSETS: tuple[What, ...] = ("tpoff", "tlsvalue")


class Evidence:
    """Counts witnesses in what a prover has shown."""

    def __init__(self, prover: Prover) -> None:
        self._prover = prover
        self._names = prover.names

    def enough(self, id_: Id) -> bool:
        """Whether the place of a thing is known well enough to be used."""
        prover = self._prover
        place = self._names.place_of(id_)
        if place is not None and self._names.atom(*place).kind == "function":
            return place in prover.proven and self.function(place)[1]
        if prover.interpreter.symbol_values(id_):
            return True
        offsets = [hows for what in _OFFSETS for hows in prover.facts.values(id_, what).values()]
        if offsets:
            return all(self.enough_thread_local(id_, hows) for hows in offsets)
        learnt = prover.facts.values(id_, "address")
        return len(learnt) == 1 and self.symbol(id_, next(iter(learnt)))[1]

    # --- functions ---------------------------------------------------------------------------------------------------

    def function(self, key: Key) -> tuple[Place, bool]:
        """Place of a proven function, and whether the evidence is enough."""
        prover = self._prover
        proof = prover.proven[key]
        vaddr = proof.fit.vaddr
        id_ = self._names.id_of(*key)
        words: list[str] = []
        count = 0
        named = vaddr in prover.named(key)
        if named:
            words.append(self._symbol_words(id_))
            count += 1
        count += self._references(prover.facts.values(id_, "address").get(vaddr, {}), words, key)
        beside = prover.neighbours(key)
        if beside:
            words.append(f"beside {' and '.join(other[1] for other in beside)}")
            count += len(beside)
        if prover.run.has_frame(vaddr):
            words.append("unwind information")
            count += 1
        if proof.unique:
            words.append("contents, which occur once")
            count += 1
        elif weight(self._names.atom(*key)) >= _CODE_BYTES:
            words.append("contents")
            count += 1
        return Place(vaddr, proof.fit.size, count, ", ".join(words)), named or proof.unique or count >= ENOUGH

    def _symbol_words(self, id_: Id) -> str:
        exported = id_[0] is None and any(self._prover.run.is_exported(n) for n in self._names.names_of(id_))
        return "exported symbol" if exported else "symbol table"

    def _references(self, sayers: Sayers, words: list[str], itself: Key | None) -> int:
        """Fields that say so, and count; not those of the thing itself."""
        fields = [s for s, counts in sayers.items() if counts and s.holder != itself]
        if fields:
            several = f"{len(fields)} references" if len(fields) > 1 else "1 reference"
            more = ", …" if len(fields) > 2 else ""
            words.append(f"{several} from {', '.join(str(s) for s in fields[:2])}{more}")
        return len(fields)

    def said_once(self, id_: Id, vaddr: int) -> bool:
        """Whether one field alone leads there."""
        sayers = self._prover.facts.values(id_, "address").get(vaddr, {})
        return sum(1 for s in sayers if s.holder is not None) < ENOUGH

    # --- data --------------------------------------------------------------------------------------------------------

    def data(self, key: Key, vaddr: int) -> tuple[Place, bool]:
        """Place of an atom of data whose contents were compared at ``vaddr``."""
        prover = self._prover
        atom = self._names.atom(*key)
        id_ = self._names.id_of(*key)
        words: list[str] = []
        named = vaddr in prover.interpreter.symbol_values(id_)
        if named:
            words.append(self._symbol_words(id_))
        count = named + self._references(prover.facts.values(id_, "address").get(vaddr, {}), words, key)
        if _telling(atom) or (_is_thrown(atom) and self._same_type(key, vaddr)):
            words.append("contents")
            count += 1
        beside = self._beside(key, vaddr)
        if beside:
            words.append(f"beside {' and '.join(beside)}")
            count += len(beside)
        return Place(vaddr, atom.size, count, ", ".join(words)), named or count >= ENOUGH

    def _same_type(self, key: Key, vaddr: int, depth: int = 0) -> bool:
        """Whether all that the MSVC ABI says of a type that is thrown is the same in run, down to the type's name."""
        if depth > _TYPE_DEPTH:
            return False
        try:
            facts = self._prover.fitter.data(key, vaddr)
        except Contradiction:
            return False
        for fact in facts:
            place = self._names.place_of(fact.id) if fact.what == "address" else None
            if place is None or self._names.atom(*place).kind not in ("rodata", "data"):
                continue
            if not self._same_type(place, fact.value, depth + 1):
                return False
        return True

    def _beside(self, key: Key, vaddr: int) -> list[str]:
        """Variables right before and after it in the object that are right before and after it in run."""
        prover = self._prover
        atom = self._names.atom(*key)
        found = []
        before, after = prover.order.previous(key), prover.order.next(key)
        if before is not None:
            other = self._names.atom(*before)
            if any(vaddr in _behind(v + other.size, atom) for v in self._known(before)):
                found.append(before[1])
        if after is not None and self._names.atom(*after).alignment <= atom.aligned * _NEAR_PLACES:
            other = self._names.atom(*after)
            if any(v in _behind(vaddr + atom.size, other) for v in self._known(after)):
                found.append(after[1])
        return found

    def _known(self, key: Key) -> list[int]:
        """Where a field other than its own says that a thing is."""
        values = self._prover.facts.values(self._names.id_of(*key), "address")
        return [v for v, hows in values.items() if any(c and s.holder != key for s, c in hows.items())]

    # --- symbols -----------------------------------------------------------------------------------------------------

    def named(self, id_: Id, symbol: Symbol) -> Place:
        """What a symbol of the image names."""
        words = [self._symbol_words(id_)]
        count = 1 + self._references(self._prover.facts.values(id_, "address").get(symbol.value, {}), words, None)
        return Place(symbol.value, symbol.size, count, ", ".join(words))

    def symbol(self, id_: Id, vaddr: int) -> tuple[Place, bool]:
        """A global name that the image has no symbol for."""
        place = self._names.place_of(id_)
        if place is not None:
            if place in self._prover.proven and self._prover.proven[place].fit.vaddr == vaddr:
                return self.function(place)
            if self._names.atom(*place).kind not in ("function", "tls", "other"):
                return self.data(place, vaddr)
        words: list[str] = []
        count = self._references(self._prover.facts.values(id_, "address").get(vaddr, {}), words, None)
        return Place(vaddr, 0, count, ", ".join(words)), count >= ENOUGH

    def enough_thread_local(self, id_: Id, hows: Sayers) -> bool:
        """Whether the offset of a thread-local variable is known well enough."""
        if self._prover.interpreter.symbol_values(id_):
            return True
        return sum(counts for counts in hows.values()) >= ENOUGH


def _behind(end: int, atom: Atom) -> set[int]:
    """Where an atom is that comes right after ``end``: in a section of its own, or in one with others."""
    return {-(-end // alignment) * alignment for alignment in (atom.alignment, atom.aligned)}


def _is_thrown(atom: Atom) -> bool:
    """Whether this says of a type that is thrown what it can be caught as (MSVC ABI: ThrowInfo, and what it names)."""
    return bool(atom.name) and atom.kind == "rodata" and atom.section.startswith(".xdata")


def _telling(atom: Atom) -> bool:
    """Whether the contents of some data speak for its place: zeros do not, nor does a byte or two."""
    if atom.kind == "string":
        return True  # whatever has these contents is this string, for all that a program can know
    return len(atom.references) > 1 or (atom.size >= _DATA_BYTES and any(atom.data))


__all__ = ["ENOUGH", "Evidence"]
