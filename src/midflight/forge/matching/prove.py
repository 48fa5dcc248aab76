"""Proves where functions of the objects are in the running image, one leading to the next, and never by a guess.

A function is accepted at a place when every instruction of it stands there, everything it refers to agrees with what
is known, and something says that it is this place and no other: the image's symbols, a field of something proven, the
function next to it in its object, or that nothing else in the image and in the objects fits. See docs/adr/0030.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midflight.forge import relocs as r
from midflight.forge.matching.codeindex import CodeIndex, ObjectIndex
from midflight.forge.matching.entrypoint import main_address
from midflight.forge.matching.facts import Contradiction, Fact, Facts, Id, Interpreter, Key, Names, Source, against
from midflight.forge.matching.fit import Fit, Fitter, Misfit
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.occupancy import Occupancy
from midflight.forge.matching.order import Order
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom

How = Literal["symbol table", "references", "contents", "neighbours"]

UNIQUE_BYTES = 16
"""So many bytes that no relocation fills must be alike before it means something that nothing else is like them."""
START_UP = "the start-up code"
_MOST = 512
"""More candidates than this are not worth a look: something else must tell the place first."""
_DEPTH = 2
"""How far the functions that a candidate calls are looked at, to tell candidates apart."""


def weight(atom: Atom) -> int:
    """How many bytes of an atom no relocation fills."""
    return len(atom.data) - sum(r.FIELD_SIZE.get(item.type, 0) for item in atom.references)


@dataclass(frozen=True, slots=True)
class Proof:
    """Where a function is, and by what it was chosen."""

    fit: Fit
    how: How
    unique: bool = False
    """Nothing else in the image fits, and no other function of the objects fits there."""


@dataclass(slots=True)
class Attempt:
    """The last try at one function: what fitted, or why nothing did."""

    source: How
    fits: list[Fit] = field(default_factory=list)
    tried: int = 0
    reason: str = ""
    reach: int = -1
    rivals: list[Key] = field(default_factory=list)
    vague: bool = False
    """Not every place where it could be was looked at, as there are too many."""

    def miss(self, misfit: Misfit) -> None:
        if misfit.reach > self.reach:
            self.reach, self.reason = misfit.reach, misfit.reason


class Prover:
    """Everything that is proven so far; :meth:`prove` goes on from there."""

    def __init__(
        self,
        run: RunImage,
        inputs: Inputs,
        linked: RunImage | None = None,
        differing: frozenset[Path] = frozenset(),
        like: Prover | None = None,
    ) -> None:
        """``linked``: the captured image of the unfixed tree, when it has all its symbols. ``differing``: objects of
        which run has another build, so that contents and order tell nothing. ``like``: answers are taken from there."""
        self.run = run
        self.linked = linked
        self.differing = differing
        self.inputs = inputs
        self.facts = Facts()
        self.names: Names = Names.of(inputs) if like is None else like.names
        self.interpreter: Interpreter = Interpreter(run, self.names) if like is None else like.interpreter
        self.fitter: Fitter = Fitter(run, self.names, self.interpreter) if like is None else like.fitter
        self.code: CodeIndex = CodeIndex(run) if like is None else like.code
        self.objects: ObjectIndex = ObjectIndex(inputs, self.code) if like is None else like.objects
        self.order = Order(inputs, differing)
        self.occupancy = Occupancy(run, self.names)
        self.proven: dict[Key, Proof] = {}
        self.attempts: dict[Key, Attempt] = {}
        self.at: dict[int, list[Key]] = {}
        self._queue: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._watchers: dict[Id, set[Key]] = {}
        main = main_address(run)
        if main is not None and not self.interpreter.symbol_values((None, "main")):
            self.learn(Fact((None, "main"), "address", main, Source(None, 0, START_UP)), counts=True)

    def prove(self, keys: Iterable[Key]) -> None:
        """Prove as many of these as can be: what one match teaches can decide another."""
        for key in keys:
            if key not in self.proven:
                self._enqueue(key)
                self._watch(self.names.id_of(*key), key)
        while self._queue:
            key = self._queue.popleft()
            self._queued.discard(key)
            if key not in self.proven:
                self.attempts[key] = self._try(key)

    def _enqueue(self, key: Key) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._queue.append(key)

    def _watch(self, id_: Id, key: Key) -> None:
        self._watchers.setdefault(id_, set()).add(key)

    def others(self) -> frozenset[Path]:
        """Objects of which functions were proven by contents or order, but of which others turned out to be different:
        run has another build of them, and what looks like a function may be its twin."""
        suspects = {key[0] for key, proof in self.proven.items() if proof.how in ("contents", "neighbours")}
        suspects |= {key[0] for key in self.proven if self.neighbours(key)}
        different = set()
        for key, attempt in self.attempts.items():
            unfit = key not in self.proven and not attempt.fits and not attempt.vague
            # All instructions are there: only a text that it refers to is another one (a date, a version).
            whole = attempt.source in ("references", "symbol table") and attempt.reach >= len(
                self.names.atom(*key).data
            )
            if unfit and not whole and key[0] in suspects and not self.dropped(key):
                different.add(key[0])
        return frozenset(different)

    # --- one function ------------------------------------------------------------------------------------------------

    def _try(self, key: Key) -> Attempt:
        learnt = self.facts.values(self.names.id_of(*key), "address")
        if learnt:
            return self._among(key, "references", list(learnt))
        named = self.named(key)
        if named:
            return self._among(key, "symbol table", named)
        if self.dropped(key):
            # A twin elsewhere must not be taken for what the linker did not keep.
            return Attempt("contents")
        if key[0] in self.differing:
            reason = "other functions of its object are others in run, so that its contents alone tell nothing"
            return Attempt("contents", tried=1, reason=reason, reach=len(self.names.atom(*key).data))
        return self._by_contents(key)

    def dropped(self, key: Key) -> bool:
        """Whether the linker left a function out of the captured image, which was made of the same objects."""
        if self.linked is None:
            return False
        return bool(self.names.atom(*key).name) and not self._linked_places(key)

    def _linked_places(self, key: Key) -> set[int]:
        """Where a function is in the captured image."""
        atom = self.names.atom(*key)
        found: set[int] = set()
        if self.linked is None or not atom.name:
            return found
        for name in (atom.name, *atom.aliases):
            if atom.binding == "local":
                found |= {s.value for s in self.linked.local_symbols(name, self.names.source_name(key[0]))}
            else:
                found |= {s.value for s in self.linked.global_symbols(name)}
        return found

    def named(self, key: Key) -> list[int]:
        """Where the image's symbols say that a function is. Of a static one, other files may have namesakes."""
        atom = self.names.atom(*key)
        found: list[int] = []
        for name in (atom.name, *atom.aliases) if atom.name else ():
            if atom.binding == "local":
                symbols = self.run.local_symbols(name, self.names.source_name(key[0]))
                found += [s.value for s in symbols if s.type != "object"]
            else:
                found += [s.value for s in self.run.global_symbols(name) if not s.absolute]
        return list(dict.fromkeys(found))

    def _among(self, key: Key, source: How, places: Sequence[int]) -> Attempt:
        """Places that something says; one of them must fit."""
        attempt = Attempt(source, tried=len(places))
        for vaddr in places:
            self._look(key, vaddr, attempt, said=True)
        fits = attempt.fits
        if len(fits) > 1 and source == "symbol table":
            same_file = [fit for fit in fits if self._from_same_file(key, fit.vaddr)]
            fits = same_file if len(same_file) == 1 and self.names.atom(*key).binding == "local" else fits
            fits = fits if len(fits) == 1 else self._narrow(key, fits)
        if len(fits) == 1:
            self._accept(key, Proof(fits[0], source), frozenset())
        return attempt

    def _by_contents(self, key: Key) -> Attempt:
        """Look for it everywhere."""
        attempt = Attempt("contents")
        atom = self.names.atom(*key)
        places = self.code.candidates(atom)
        everywhere = places is not None and len(places) <= _MOST
        attempt.vague = not everywhere
        beside = self._beside(key)
        candidates = dict.fromkeys([*beside, *(places if places is not None and everywhere else ())])
        attempt.tried = len(candidates)
        rests_on: set[Id] = set()
        fitted = 0
        for vaddr in candidates:
            if self._may_be(key, vaddr):
                before = len(attempt.fits)
                clash = self._look(key, vaddr, attempt)
                rests_on.update(clash)
                fitted += bool(clash) or len(attempt.fits) > before
        fits = attempt.fits
        if len(fits) > 1:
            fits = self._narrow(key, fits)
        if len(fits) == 1:
            fit = fits[0]
            if fit.vaddr in beside:
                unique = fitted == 1 and everywhere and self._is_unique(key, fit, attempt)
                self._accept(key, Proof(fit, "contents" if unique else "neighbours", unique), frozenset(rests_on))
            elif everywhere and self._is_unique(key, fit, attempt) and self._is_there(key, fit):
                self._accept(key, Proof(fit, "contents", True), frozenset(rests_on))
        return attempt

    def _look(self, key: Key, vaddr: int, attempt: Attempt, said: bool = False) -> Sequence[Id]:
        """Compare one candidate. Returns what speaks against it, when its code fits all the same."""
        outcome = self.fitter.function(key, vaddr)
        if isinstance(outcome, Misfit):
            attempt.miss(outcome)
            return ()
        for fact in outcome.facts:
            self._watch(fact.id, key)
        try:
            self._agree(key, outcome, said)
        except _Clash as clash:
            attempt.miss(Misfit(len(self.names.atom(*key).data), str(clash)))
            return clash.ids
        attempt.fits.append(outcome)
        return ()

    def _agree(self, key: Key, fit: Fit, said: bool = False) -> None:
        """Hold a candidate against everything that is known. Raises _Clash."""
        id_ = self.names.id_of(*key)
        for value, hows in self.facts.values(id_, "address").items():
            if value != fit.vaddr:
                raise _Clash(f"it is at {value:#x} by {next(iter(hows))}", (id_,))
        if not said:
            others = [other for other in self.at.get(fit.vaddr, ()) if self.names.id_of(*other) != id_]
            if others:
                other = self.names.id_of(*others[0])
                raise _Clash(f"at {fit.vaddr:#x} is {others[0][1]}", (other,))
        for fact in fit.facts:
            try:
                against(fact, self.facts)
                self.occupancy.check(fact)
            except Contradiction as error:
                raise _Clash(str(error), (fact.id,)) from None

    # --- telling candidates apart ------------------------------------------------------------------------------------

    def _beside(self, key: Key) -> list[int]:
        """Where it must be if it is next to a neighbour that is proven."""
        found = []
        before, after = self.order.previous(key), self.order.next(key)
        if before in self.proven:
            fit = self.proven[before].fit
            found.append(self.code.after(fit.vaddr + fit.size))
        if after in self.proven:
            found.append(self.code.before(self.proven[after].fit.vaddr))
        return [vaddr for vaddr in dict.fromkeys(found) if vaddr is not None]

    def neighbours(self, key: Key) -> list[Key]:
        """Proven functions that stand right beside this proven one, as in the object."""
        fit = self.proven[key].fit
        found = []
        before, after = self.order.previous(key), self.order.next(key)
        if before in self.proven and self.code.before(fit.vaddr) == self.proven[before].fit.vaddr:
            found.append(before)
        if after in self.proven and self.code.after(fit.vaddr + fit.size) == self.proven[after].fit.vaddr:
            found.append(after)
        return found

    def _narrow(self, key: Key, fits: list[Fit]) -> list[Fit]:
        """Several places fit: those whose callees fit as well, and of these the one beside a proven neighbour."""
        left = [fit for fit in fits if self._callees_fit(fit, _DEPTH)]
        if len(left) == 1:
            return left
        beside = self._beside(key)
        return [fit for fit in left if fit.vaddr in beside]

    def _callees_fit(self, fit: Fit, depth: int) -> bool:
        for fact in fit.facts:
            path = self.names.path_of(fact.id) if fact.what == "address" else None
            if path is None or not self.inputs.is_read(path):
                continue
            place = self.names.place_of(fact.id)
            if place is None or place in self.proven or self.names.atom(*place).kind != "function":
                continue
            outcome = self.fitter.function(place, fact.value)
            if isinstance(outcome, Misfit):
                return False
            try:
                self._agree(place, outcome, said=True)
            except _Clash:
                return False
            if depth > 1 and not self._callees_fit(outcome, depth - 1):
                return False
        return True

    def _is_unique(self, key: Key, fit: Fit, attempt: Attempt) -> bool:
        """Whether no other function of any object could be what stands there. Twins that are known elsewhere, by
        symbols or by proof, are none."""
        atom = self.names.atom(*key)
        if weight(atom) < UNIQUE_BYTES:
            return False
        similar = self.objects.fitting(fit.vaddr, atom)
        if similar is None:
            return False
        id_ = self.names.id_of(*key)
        others = [other for other in similar if self.names.id_of(*other) != id_ and self._rival(other, fit)]
        # What the linker folded with it stands there, too.
        here = self._linked_places(key) if others else set()
        attempt.rivals = [other for other in others if not here & self._linked_places(other)]
        for other in attempt.rivals:
            self._watch(self.names.id_of(*other), key)
        return not attempt.rivals

    def _is_there(self, key: Key, fit: Fit) -> bool:
        """Whether run must have the function at all. Where no captured image tells, what stands next to the place must
        be what stands next to the function in its object."""
        if self.linked is not None:
            return True
        before, after = self.order.previous(key), self.order.next(key)
        places = (before, self.code.before(fit.vaddr)), (after, self.code.after(fit.vaddr + fit.size))
        return any(
            other is not None
            and vaddr is not None
            and weight(self.names.atom(*other)) >= UNIQUE_BYTES
            and isinstance(self.fitter.function(other, vaddr), Fit)
            for other, vaddr in places
        )

    def _rival(self, other: Key, fit: Fit) -> bool:
        if other in self.proven:
            return False
        named = self.named(other)
        if named and fit.vaddr not in named:
            return False
        outcome = self.fitter.function(other, fit.vaddr)
        if isinstance(outcome, Misfit):
            return False
        for fact in outcome.facts:
            self._watch(fact.id, other)
        try:
            self._agree(other, outcome)
        except _Clash:
            return False
        return True

    def _may_be(self, key: Key, vaddr: int) -> bool:
        """Whether no symbol says that the function at ``vaddr`` is another one."""
        symbols = self.run.function_symbols.get(vaddr, ())
        if not symbols:
            return True
        atom = self.names.atom(*key)
        source = self.names.source_name(key[0])
        local = atom.binding == "local"
        named = [s for s in symbols if s.name in (atom.name, *atom.aliases)]
        return any(not (local and source and s.file) or s.file == source for s in named)

    def _from_same_file(self, key: Key, vaddr: int) -> bool:
        source = self.names.source_name(key[0])
        return any(s.file == source for s in self.run.function_symbols.get(vaddr, ()) if s.file)

    # --- what follows ------------------------------------------------------------------------------------------------

    def _accept(self, key: Key, proof: Proof, rests_on: frozenset[Id]) -> None:
        fit = proof.fit
        self.proven[key] = proof
        self.at.setdefault(fit.vaddr, []).append(key)
        id_ = self.names.id_of(*key)
        self.learn(Fact(id_, "address", fit.vaddr, Source(None, 0, proof.how)), counts=False)
        for fact in fit.facts:
            # What it was chosen by is not proven by it, and neither is its own place.
            self.learn(fact, fact.id not in rests_on and fact.id != id_)
        for beside in (self.order.previous(key), self.order.next(key)):
            if beside is not None and beside in self.attempts and beside not in self.proven:
                self._enqueue(beside)

    def learn(self, fact: Fact, counts: bool) -> None:
        """Note a fact, and try those again who may have waited for it."""
        if self.facts.add(fact, counts):
            self.occupancy.note(fact)
            for key in self._watchers.get(fact.id, ()):
                if key not in self.proven:
                    self._enqueue(key)


class _Clash(Exception):
    """The code fits, but contradicts what is known about ``ids``."""

    def __init__(self, text: str, ids: Sequence[Id]) -> None:
        super().__init__(text)
        self.ids = ids
