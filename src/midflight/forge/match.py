"""Run-pre matching: proves that what runs is what pre says, and reads addresses off the match.

Each wanted function of pre is looked for in the running image, and every one of its instructions is compared. The
fields that relocations fill then tell where everything it refers to lies. Missing, ambiguous or contradictory: a
finding, never a guess. Source of the idea: Arnold and Kaashoek, "Ksplice", EuroSys 2009, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge import decode
from midflight.forge.calls import uses
from midflight.forge.candidates import Candidates
from midflight.forge.decode import Different, Same
from midflight.forge.facts import Contradiction, Fact, Facts, Id, Interpreter, Names, name_of, settle, show
from midflight.forge.inputs import Inputs
from midflight.forge.model import Finding, Match, ObjectCode, Place
from midflight.forge.overruled import has_local_symbols
from midflight.forge.refusals import finding
from midflight.forge.runimage import RunImage
from midflight.image.elf import ElfFile

Key = tuple[Path, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be known of the running image."""

    functions: frozenset[Key] = frozenset()
    """Functions of pre that are to be replaced (their .cold parts too)."""
    atoms: frozenset[Key] = frozenset()
    """Functions and data of pre that the new code refers to."""
    symbols: frozenset[str] = frozenset()
    """Names that the new code refers to and none of its objects defines."""
    inlined: frozenset[Key] = frozenset()
    """Functions to be replaced that run was found not to have."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    vaddr: int
    same: Same
    size: int
    facts: list[Fact]
    how: str


@dataclass(slots=True)
class _Attempt:
    """The last try at one function: what fitted, or why nothing did."""

    accepted: list[_Accepted] = field(default_factory=list)
    reason: str = ""
    source: str = ""
    tried: int = 0


def match(run: ElfFile, objects: Mapping[Path, ObjectCode], wanted: Wanted, linked: ElfFile | None = None) -> Match:
    """Match objects against the running image.

    Args:
        run: the image that runs.
        objects: pre objects of the image by path, in link order: those that changed, and all others, which may help.
            Hand over :class:`~midflight.forge.inputs.Inputs`, and only those that do help are read.
        wanted: what must be known; everything about it that cannot be proven becomes a finding (MF130 to MF136).
        linked: the captured image of the unfixed tree, which tells what the linker drops.

    Raises:
        ImageError: the image is malformed.
    """
    inputs = Inputs.of(objects)
    return _Matcher(RunImage(run), inputs, wanted, None if linked is None else RunImage(linked)).result()


class _Matcher:
    def __init__(self, run: RunImage, inputs: Inputs, wanted: Wanted, linked: RunImage | None) -> None:
        self.run = run
        self.linked = linked
        self.inputs = inputs
        self.names = names = Names.of(inputs)
        self.wanted = wanted
        self.facts = Facts()
        self.interpreter = Interpreter(run, names)
        self.candidates = Candidates(run, names, self.facts)
        self.proven: dict[Key, _Accepted] = {}
        self.attempts: dict[Key, _Attempt] = {}
        self.data: dict[Key, Place] = {}
        self.findings: list[Finding] = []
        self.absent: set[Key] = set()

    def result(self) -> Match:
        functions = [key for key in self._sorted(self.wanted.functions | self.wanted.atoms) if self._is_function(key)]
        self._prove_all(functions)
        self._ask_others(functions)
        for key in functions:
            if key not in self.proven:
                self._unproven(key)
        self._prove_callers()
        for key in self._sorted(self.wanted.atoms - set(functions)):
            self._place_data(key)
        symbols = {name: place for name in sorted(self.wanted.symbols) if (place := self._symbol(name)) is not None}
        self._check_inside()
        self._check_shared()
        return self._match(functions, symbols)

    def _sorted(self, keys: Iterable[Key]) -> list[Key]:
        return sorted(keys, key=lambda k: (str(k[0]), self.names.atom(*k).section, self.names.atom(*k).offset, k[1]))

    def _is_function(self, key: Key) -> bool:
        return self.names.atom(*key).kind == "function"

    def _find(self, code: str, key: Key, **detail: object) -> None:
        self.findings.append(finding(code, key[0], self.names.atom(*key).name or key[1], **detail))

    # --- functions ---------------------------------------------------------------------------------------------------

    def _prove_all(self, keys: Iterable[Key]) -> None:
        """Try again and again: what one match teaches can decide another."""
        pending = [key for key in keys if key not in self.proven]
        while pending:
            left = [key for key in pending if not self._prove(key)]
            if len(left) == len(pending):
                return
            pending = left

    def _prove(self, key: Key) -> bool:
        attempt = self._attempt(key)
        self.attempts[key] = attempt
        if len(attempt.accepted) != 1:
            return False
        found = attempt.accepted[0]
        self.proven[key] = found
        for fact in found.facts:
            self.facts.add(fact)
        self.facts.add(Fact(self.names.id_of(*key), "address", found.vaddr, found.how))
        return True

    def _attempt(self, key: Key) -> _Attempt:
        source, addresses = self.candidates.of(*key)
        attempt = _Attempt(source=source, tried=len(addresses))
        furthest = -1
        for vaddr in addresses:
            outcome = self._examine(key, vaddr, source)
            if isinstance(outcome, _Accepted):
                attempt.accepted.append(outcome)
            elif outcome[0] > furthest:
                furthest, attempt.reason = outcome
        if len(attempt.accepted) > 1:
            same_file = set(self.candidates.from_same_file(key[0], [a.vaddr for a in attempt.accepted]))
            chosen = [a for a in attempt.accepted if a.vaddr in same_file]
            if len(chosen) == 1 and self.names.atom(*key).binding == "local":
                attempt.accepted = chosen
        return attempt

    def _examine(self, key: Key, vaddr: int, source: str) -> _Accepted | tuple[int, str]:
        """Compare one candidate; what is wrong with it, and how far it got, when it is not the function."""
        atom = self.names.atom(*key)
        code = self.run.code(vaddr, len(atom.data) + len(atom.data) // 4 + 256)
        outcome = decode.compare_code(atom.data, atom.references, code, vaddr)
        if isinstance(outcome, Different):
            return outcome.offset, outcome.describe()
        end = self.run.function_end(vaddr)
        size = outcome.size
        if end is not None and end - vaddr != size:
            rest = code[size : end - vaddr]
            if end - vaddr < size or not all(map(decode.is_padding, decode.decode(rest))):
                return size, f"pre ends after {size:#x} bytes, run after {end - vaddr:#x}"
            size = end - vaddr
        try:
            facts = settle(self._all_facts(key, outcome), self.facts)
            self._check_known(key, vaddr)
        except Contradiction as error:
            return len(atom.data), str(error)
        return _Accepted(vaddr, outcome, size, facts, source)

    def _all_facts(self, key: Key, same: Same) -> Iterable[Fact]:
        """Facts from the code, and from the data of this object that it refers to, whose contents are compared."""
        seen: set[Key] = set()
        for fact in self.interpreter.code_facts(*key, same):
            yield fact
            # What another object defines is compared where that object is.
            if fact.what != "address" or self.names.path_of(fact.id) != key[0]:
                continue
            place = self.names.place_of(fact.id)
            if place is None or place in seen:
                continue
            seen.add(place)
            if self.names.atom(*place).kind not in ("function", "tls", "other"):
                for learnt in self.interpreter.data_facts(*place, fact.value):
                    if learnt.what == "inside" and learnt.id == key:
                        self._check_label(same, learnt)
                    yield learnt

    def _check_label(self, same: Same, fact: Fact) -> None:
        if same.places.get(fact.offset) != fact.value:
            raise Contradiction(f"{fact.how} leads to {fact.value:#x}, which is not +{fact.offset:#x} of the function")

    def _check_known(self, key: Key, vaddr: int) -> None:
        known = self.facts.values(self.names.id_of(*key), "address")
        for value, hows in known.items():
            if value != vaddr:
                raise Contradiction(f"it is at {value:#x} by {hows[0]}")

    def _ask_others(self, functions: list[Key]) -> None:
        """For what no table names: functions of pre that refer to it may be found, and tell where it is."""
        for _ in range(3):
            unknown = {self.names.id_of(*key) for key in functions if key not in self.proven}
            unknown |= {self.names.id_of(*key) for key in self.wanted.atoms if not self._address_known(key)}
            if not unknown:
                return
            helpers = [
                (path, key)
                for path, code in self._mentioning(unknown)
                for key, atom in code.atoms.items()
                if atom.kind == "function" and (path, key) not in self.proven and (path, key) not in functions
                if any(self.names.id_of_reference(path, item) in unknown for item in atom.references)
            ]
            before = len(self.proven)
            self._prove_all(helpers)
            self._prove_all(functions)
            if len(self.proven) == before:
                return

    def _mentioning(self, ids: set[Id]) -> Iterable[tuple[Path, ObjectCode]]:
        """The objects that refer to one of these."""
        paths = {id_[0] for id_ in ids if id_[0] is not None}
        for name in {id_[1] for id_ in ids if id_[0] is None}:
            paths.update((*self.inputs.defining(name), *self.inputs.needing(name)))
        return [(path, self.inputs[path]) for path in self.inputs if path in paths]

    def _address_known(self, key: Key) -> bool:
        id_ = self.names.id_of(*key)
        if any(self.facts.values(id_, what) for what in ("address", "slot", "tpoff", "tlsvalue", "tlsgd", "gottpoff")):
            return True
        return len(self.interpreter.symbol_values(id_)) == 1

    def _unproven(self, key: Key) -> None:
        attempt = self.attempts[key]
        if len(attempt.accepted) > 1:
            places = ", ".join(f"{a.vaddr:#x}" for a in attempt.accepted[:4])
            self._find("MF131", key, count=len(attempt.accepted), places=places)
        elif attempt.tried == 0 or attempt.source == "contents":
            if self._cannot_exist(key):
                self.absent.add(key)
            else:
                self._find("MF132", key)
        else:
            self._find("MF130", key, difference=attempt.reason)

    def _cannot_exist(self, key: Key) -> bool:
        """Every function of the image has a name, and this one has not; or, where static functions have lost theirs
        (strip -x), the linker dropped it from the same image before."""
        if not self.run.has_symbols or self.candidates.is_named(*key):
            return False
        if has_local_symbols(self.run.elf):
            return True
        if self.linked is None or not has_local_symbols(self.linked.elf):
            return False
        atom, source = self.names.atom(*key), self.names.source_name(key[0])
        names = (atom.name, *atom.aliases)
        if atom.binding == "local":
            return not any(self.linked.local_symbols(name, source) for name in names)
        return not any(self.linked.global_symbol(name) for name in names)

    def _prove_callers(self) -> None:
        """Who calls a replaced function in pre must call it in run, too: other flags may have inlined the old code."""
        seen = set(self.wanted.functions | self.wanted.inlined)
        pending = self._sorted(seen)
        while pending:
            callers = [caller for key in pending for caller in self._callers(key) if caller not in seen]
            seen.update(callers)
            self._prove_all(callers)
            for caller in callers:
                if caller not in self.proven and not self.attempts[caller].accepted:
                    self._unproven(caller)
            pending = [caller for caller in callers if caller in self.absent]

    def _callers(self, key: Key) -> Iterable[Key]:
        """Functions that refer to it in its object, or to their own object's copy of it (vague linkage)."""
        atom = self.names.atom(*key)
        for path in [key[0]] if atom.binding == "local" else self.inputs.defining(atom.name):
            code = self.inputs[path]
            if key[1] in code.atoms and code.atoms[key[1]].name == atom.name:
                yield from ((path, user.key) for user, _ in uses(code, key[1]) if user.kind == "function")

    # --- data --------------------------------------------------------------------------------------------------------

    def _place_data(self, key: Key) -> None:
        atom = self.names.atom(*key)
        if atom.kind in ("tls", "other"):
            return
        id_ = self.names.id_of(*key)
        learnt = self.facts.values(id_, "address")
        symbols = self.interpreter.symbol_values(id_)
        addresses = set(learnt) or symbols
        if not addresses:
            return  # The linker says so if it cannot do without.
        if len(addresses) > 1 and atom.binding == "local":
            addresses = self._same_file_data(key) or addresses
        fitting, reason = [], ""
        for vaddr in sorted(addresses):
            try:
                facts = settle(self.interpreter.data_facts(*key, vaddr), self.facts)
            except Contradiction as error:
                reason = str(error)
                continue
            fitting.append((vaddr, facts))
        if not fitting:
            self._find("MF133", key, what=reason)
        elif len(fitting) > 1:
            places = ", ".join(f"{vaddr:#x}" for vaddr, _ in fitting[:4])
            self._find("MF131", key, count=len(fitting), places=places)
        else:
            vaddr, facts = fitting[0]
            for fact in facts:
                self.facts.add(fact)
            self.data[key] = _place(vaddr, atom.size, learnt.get(vaddr, ()), bool(symbols))

    def _same_file_data(self, key: Key) -> set[int]:
        source = self.names.source_name(key[0])
        name = self.names.atom(*key).name
        return {s.value for s in self.run.local_symbols(name, source) if s.file is not None and s.file == source}

    def _symbol(self, name: str) -> Place | None:
        """Where a symbol that the objects at hand do not define is, when the image defines it."""
        id_ = self.names.id_of_symbol(name)
        learnt = self.facts.values(id_, "address")
        symbol = self.run.global_symbol(name)
        if symbol is not None and symbol.type != "tls" and symbol.type != "ifunc":
            return _place(symbol.value, symbol.size, learnt.get(symbol.value, ()), True)
        if symbol is None and len(learnt) == 1:
            vaddr, hows = next(iter(learnt.items()))
            return _place(vaddr, 0, hows, False)
        return None

    # --- what must hold in the end -----------------------------------------------------------------------------------

    def _check_inside(self) -> None:
        """Labels of other functions (jump tables into .cold parts) must be where those functions were matched."""
        for (id_, what, offset), values in self.facts.known.items():
            if what != "inside" or id_[0] is None:
                continue
            found = self.proven.get((id_[0], id_[1]))
            if found is None:
                continue
            for value, hows in values.items():
                if found.same.places.get(offset) != value:
                    what_differs = f"{hows[0]} leads to {value:#x}, which is not +{offset:#x} of {id_[1]}"
                    self._find("MF133", (id_[0], id_[1]), what=what_differs)

    def _check_shared(self) -> None:
        """Code that several functions share (identical code folding) must not be replaced for one of them."""
        by_address: dict[int, Key] = {}
        for key in self._sorted(self.wanted.functions & self.proven.keys()):
            vaddr = self.proven[key].vaddr
            names = set(self.names.names_of(self.names.id_of(*key)))
            others = {s.name for s in self.run.function_symbols.get(vaddr, ())} - names
            if vaddr in by_address:
                others.add(by_address[vaddr][1])
            by_address[vaddr] = key
            if others:
                self._find("MF134", key, others=", ".join(sorted(others)))

    def _match(self, functions: list[Key], symbols: Mapping[str, Place]) -> Match:
        places = {}
        for key in functions:
            if key in self.proven:
                found = self.proven[key]
                hows = self.facts.values(self.names.id_of(*key), "address").get(found.vaddr, ())
                places[key] = _place(found.vaddr, found.size, hows, self.candidates.is_named(*key))
        return Match(
            functions=places,
            data=self.data,
            symbols=symbols,
            slots=self._lowest("slot"),
            plt=self._lowest("plt"),
            tls=self._lowest("tpoff"),
            findings=tuple(self.findings),
            matched_functions=len(places),
            total_functions=len(functions) - len(self.absent),
            layouts={key: self.proven[key].same.places for key in places},
            tls_offsets=self._lowest("tlsvalue"),
            tls_pairs=self._lowest("tlsgd"),
            tls_slots=self._lowest("gottpoff"),
            tls_module=min(self.facts.values((None, ""), "tlsld"), default=None),
            absent=frozenset(self.absent),
        )

    def _lowest(self, what: str) -> Mapping[str, int]:
        found = {name_of(id_): min(values) for (id_, kind, _), values in self.facts.known.items() if kind == what}
        return dict(sorted(found.items()))


def _place(vaddr: int, size: int, hows: Iterable[str], named: bool) -> Place:
    words = [how for how in hows if how not in ("symbol table", "contents")]
    sources = (["symbol table"] if named else []) + (
        [f"{len(words)} reference{'s' if len(words) > 1 else ''} from {words[0]}"] if words else []
    )
    return Place(vaddr, size, len(words) + named, ", ".join(sources) or "contents")


__all__ = ["Id", "Wanted", "match", "show"]
