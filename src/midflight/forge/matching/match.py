"""Run-pre matching: proves that what runs is what pre says, and reads addresses off the match.

Every instruction of a function of pre is compared with the running image; the fields that relocations fill then tell
where everything it refers to lies. Missing, ambiguous, contradictory or said by one witness alone: a finding, never a
guess. Source of the idea: Arnold and Kaashoek, "Ksplice", EuroSys 2009, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.calls import uses
from midflight.forge.difference.overruled import has_local_symbols
from midflight.forge.matching.evidence import Evidence
from midflight.forge.matching.facts import Contradiction, Id, Key, What, against, name_of, show
from midflight.forge.matching.fit import Misfit, is_label
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.prove import Prover
from midflight.forge.matching.runimage import RunImage, SymbolTable
from midflight.forge.model import Finding, Match, ObjectCode, ObjectMatch, Place
from midflight.forge.refusals import finding
from midflight.image.binary import ImageFile

_HELPERS = 64
"""So many objects are read, at most, to find out about one thing."""


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
class Fixed:
    """The fixed build, to tell a running image that has the fix already from one that is something else."""

    objects: Mapping[Path, ObjectCode]
    functions: Mapping[Key, Key] = field(default_factory=dict)
    """Functions to be replaced: (object, pre key) to (object, post key)."""


def match(
    run: ImageFile,
    objects: Mapping[Path, ObjectCode],
    wanted: Wanted,
    linked: ImageFile | None = None,
    *,
    fixed: Fixed | None = None,
    debug: SymbolTable | None = None,
) -> Match:
    """Match objects against the running image.

    Args:
        run: the image that runs.
        objects: pre objects of the image by path, in link order: those that changed, and all others, which may help.
            Hand over :class:`~midflight.forge.matching.inputs.Inputs`, and only those that do help are read.
        wanted: what must be known; everything about it that cannot be proven becomes a finding (MF130 to MF135).
        linked: the captured image of the unfixed tree, which tells what the linker drops.
        fixed: post objects; a running image that has the fix already is then called so (MF163).
        debug: the external debug file of the image, see :mod:`midflight.forge.matching.debugfiles`.

    Raises:
        ImageError: the image is malformed.
    """
    image = RunImage(run, debug)
    inputs = Inputs.of(objects)
    whole = RunImage(linked) if linked is not None and has_local_symbols(linked) else None
    prover = Prover(image, inputs, whole)
    while True:
        found = _Matcher(image, inputs, wanted, prover).result(fixed)
        different = prover.others() - prover.differing
        if not different:
            return found
        # Once more, without what contents and order seemed to tell of these objects.
        prover = Prover(image, inputs, whole, prover.differing | different, prover)


class _Matcher:
    def __init__(self, run: RunImage, inputs: Inputs, wanted: Wanted, prover: Prover) -> None:
        self.run = run
        self.inputs = inputs
        self.wanted = wanted
        self.prover = prover
        self.names = self.prover.names
        self.facts = self.prover.facts
        self.evidence = Evidence(self.prover)
        self.data: dict[Key, Place] = {}
        self.findings: list[Finding] = []
        self.absent: set[Key] = set()
        self.resolvers: dict[str, int] = {}

    def result(self, fixed: Fixed | None) -> Match:
        self._check_debug()
        functions = [key for key in self._sorted(self.wanted.functions | self.wanted.atoms) if self._is_function(key)]
        concerned = list(dict.fromkeys(path for path, _ in (*functions, *self.wanted.atoms, *self.wanted.inlined)))
        for path in concerned:
            self.prover.prove((path, key) for key, atom in self.inputs[path].atoms.items() if atom.kind == "function")
        self._ask_others(functions, concerned)
        for key in functions:
            if key not in self.prover.proven:
                self._unproven(key)
        self._prove_callers()
        wrong = self._check_callees()
        places = {k: place for k in functions if k not in wrong and (place := self._function(k)) is not None}
        for key in self._sorted(self.wanted.atoms - set(functions)):
            self._place_data(key)
        symbols = {name: place for name in sorted(self.wanted.symbols) if (place := self._symbol(name)) is not None}
        self._check_inside()
        self._check_shared()
        if fixed is not None:
            self._check_fixed(fixed)
        return self._match(places, symbols, concerned)

    def _sorted(self, keys: Iterable[Key]) -> list[Key]:
        return sorted(keys, key=lambda k: (str(k[0]), self.names.atom(*k).section, self.names.atom(*k).offset, k[1]))

    def _is_function(self, key: Key) -> bool:
        return self.names.atom(*key).kind == "function"

    def _find(self, code: str, key: Key, **detail: object) -> None:
        self.findings.append(finding(code, key[0], self.names.atom(*key).name or key[1], **detail))

    # --- others that may help ----------------------------------------------------------------------------------------

    def _ask_others(self, functions: list[Key], concerned: Iterable[Path]) -> None:
        """For what is unknown, or has too few witnesses: other objects that refer to it may be found, and tell more."""
        asked = set(concerned)
        for key in functions:
            attempt = self.prover.attempts.get(key)
            rivals = (
                {path for path, _ in attempt.rivals} if attempt is not None and key not in self.prover.proven else ()
            )
            self._help(self.names.id_of(*key), [*rivals, *self._mentioning(self.names.id_of(*key))], asked)
        for key in self._sorted(self.wanted.atoms - set(functions)):
            self._help(self.names.id_of(*key), self._mentioning(self.names.id_of(*key)), asked)
        for name in sorted(self.wanted.symbols):
            id_ = self.names.id_of_symbol(name)
            if not self.prover.interpreter.symbol_values(id_):
                self._help(id_, self._mentioning(id_), asked)

    def _help(self, id_: Id, paths: Iterable[Path], asked: set[Path]) -> None:
        for path in list(dict.fromkeys(paths))[:_HELPERS]:
            if self.evidence.enough(id_):
                return
            if path not in asked:
                asked.add(path)
                atoms = self.inputs[path].atoms.items()
                self.prover.prove((path, key) for key, atom in atoms if atom.kind == "function")

    def _mentioning(self, id_: Id) -> Iterable[Path]:
        """The objects that define a thing, or refer to it."""
        if id_[0] is not None:
            return (id_[0],)
        return (*self.inputs.defining(id_[1]), *(p for n in self.names.names_of(id_) for p in self.inputs.needing(n)))

    # --- functions ---------------------------------------------------------------------------------------------------

    def _function(self, key: Key) -> Place | None:
        proof = self.prover.proven.get(key)
        if proof is None:
            return None
        place, enough = self.evidence.function(key)
        if not enough:
            self._find("MF135", key, places=f"{place.vaddr:#x}", how=place.how)
        return place

    def _unproven(self, key: Key) -> None:
        attempt = self.prover.attempts[key]
        if self._cannot_exist(key):
            self.absent.add(key)
        elif len(attempt.fits) > 1 or (attempt.fits and not attempt.rivals):
            places = ", ".join(f"{fit.vaddr:#x}" for fit in attempt.fits[:4])
            self._find("MF131", key, count=len(attempt.fits), places=places)
        elif attempt.fits:
            others = ", ".join(sorted({f"{rival[1]} of {rival[0].name}" for rival in attempt.rivals})[:4])
            self._find("MF131", key, count=1, places=f"{attempt.fits[0].vaddr:#x}; {others} would fit there, too")
        elif self._contradicts_debug(key):
            pass
        elif attempt.vague:
            self._find("MF131", key, count="many", places="its code is too short or too common to look for")
        elif attempt.source == "contents" and (attempt.tried == 0 or attempt.reach < len(self.names.atom(*key).data)):
            self._find("MF132", key)
        else:
            self._find("MF130", key, difference=attempt.reason + self._other_compiler(key[0]))

    def _other_compiler(self, path: Path) -> str:
        """What explains a difference, when the image names its compilers and that of the object is none of them."""
        made, named = self.inputs[path].compiler, self.run.elf.comments
        if not made or not named or any(part in named for part in made.split("; ")):
            return ""
        return f" (run names {', '.join(named)}; pre was compiled by {made})"

    def _cannot_exist(self, key: Key) -> bool:
        """Whether run cannot have this function: nothing that was matched refers to it, no symbol names it, and either
        every function of the image has a name, or the linker dropped it from the same image before.

        In a stripped image its code may still be there, but then nothing can reach it: see docs/adr/0031.
        """
        if self.prover.named(key):
            return False
        id_ = self.names.id_of(*key)
        if any(self.facts.values(id_, what) for what in ("address", "slot", "plt")):
            return False
        if self.run.has_symbols and has_local_symbols(self.run.table):
            return True
        return self.prover.dropped(key)

    def _prove_callers(self) -> None:
        """Who calls a replaced function in pre must call it in run, too: other flags may have inlined the old code."""
        seen = set(self.wanted.functions | self.wanted.inlined)
        pending = self._sorted(seen)
        while pending:
            callers = [caller for key in pending for caller in self._callers(key) if caller not in seen]
            seen.update(callers)
            self.prover.prove(callers)
            for caller in dict.fromkeys(callers):
                if caller not in self.prover.proven and not self.prover.attempts[caller].fits:
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
        if atom.kind == "tls":
            self._check_thread_local(key)
        if atom.kind in ("tls", "other"):
            return
        id_ = self.names.id_of(*key)
        symbols = self.prover.interpreter.symbol_values(id_)
        addresses = set(self.facts.values(id_, "address")) or set(symbols)
        if not addresses:
            return  # The linker says so if it cannot do without.
        if len(addresses) > 1 and atom.binding == "local":
            addresses = self._same_file_data(key) or addresses
        fitting, reason = [], ""
        for vaddr in sorted(addresses):
            try:
                facts = self.prover.fitter.data(key, vaddr)
                for fact in facts:
                    against(fact, self.facts)
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
                self.prover.learn(fact, True)
            self.data[key], enough = self.evidence.data(key, vaddr)
            if not enough:
                self._find("MF135", key, places=f"{vaddr:#x}", how=self.data[key].how)

    def _check_thread_local(self, key: Key) -> None:
        """Offsets of thread-local variables are read in the code, too."""
        id_ = self.names.id_of(*key)
        offsets: tuple[What, ...] = ("tpoff", "tlsvalue")
        for what in offsets:
            for value, hows in self.facts.values(id_, what).items():
                if not self.evidence.enough_thread_local(id_, hows):
                    words = f"1 reference from {next(iter(hows))}"
                    self._find("MF135", key, places=f"offset {value:#x} of the thread-local storage", how=words)

    def _same_file_data(self, key: Key) -> set[int]:
        source = self.names.source_name(key[0])
        name = self.names.atom(*key).name
        return {s.value for s in self.run.local_symbols(name, source) if s.file is not None and s.file == source}

    def _symbol(self, name: str) -> Place | None:
        """Where a symbol that the fixed objects do not define is, when the image defines it."""
        id_ = self.names.id_of_symbol(name)
        symbol = self.run.global_symbol(name)
        resolver = self._resolver(id_)
        if resolver is not None:
            self.resolvers[name] = resolver
            return None
        if symbol is not None:
            return None if symbol.type == "tls" else self.evidence.named(id_, symbol)
        defined = self.names.place_of(id_)
        if defined is not None and self._is_function(defined):
            # What an object defines is where that function was proven, whatever a single call may say.
            self.prover.prove([defined])
            if defined not in self.prover.proven:
                if self.facts.values(id_, "address"):
                    self._unproven(defined)
                return None
            if self.names.atom(*defined).ifunc:
                self.resolvers[name] = self.prover.proven[defined].fit.vaddr
                return None
        learnt = self.facts.values(id_, "address")
        if len(learnt) != 1:
            return None
        place, enough = self.evidence.symbol(id_, next(iter(learnt)))
        if not enough:
            path = self.names.path_of(id_) or ""
            self.findings.append(finding("MF135", path, name, places=f"{place.vaddr:#x}", how=place.how))
        return place

    def _resolver(self, id_: Id) -> int | None:
        """The resolver of a name that the image's own symbols, under any of its names, tell to be an IFUNC."""
        symbols = (self.run.global_symbol(name) for name in self.names.names_of(id_))
        return next((s.value for s in symbols if s is not None and s.type == "ifunc"), None)

    # --- what must hold in the end -----------------------------------------------------------------------------------

    def _check_callees(self) -> set[Key]:
        """A function to be replaced must call what it calls in pre: a place that it alone names is compared, too."""
        wrong = set()
        for key in self._sorted(self.wanted.functions & self.prover.proven.keys()):
            for fact in self.prover.proven[key].fit.facts:
                called = self.names.place_of(fact.id) if fact.what == "address" else None
                if called is None or called in self.prover.proven or not self._is_function(called):
                    continue
                if self.prover.interpreter.symbol_values(fact.id) or not self.evidence.said_once(fact.id, fact.value):
                    continue
                outcome = self.prover.fitter.function(called, fact.value)
                if isinstance(outcome, Misfit):
                    what = f"{fact.how} leads to {fact.value:#x}, which is not {called[1]}: {outcome.reason}"
                    self._find("MF133", key, what=what)
                    wrong.add(key)
        return wrong

    def _check_inside(self) -> None:
        """Labels of other functions (jump tables into .cold parts) must be where those functions were matched."""
        for (id_, what, offset), values in self.facts.known.items():
            if what != "inside" or id_[0] is None:
                continue
            found = self.prover.proven.get((id_[0], id_[1]))
            if found is None:
                continue
            for value, hows in values.items():
                if not is_label(found.fit.same, offset, value):
                    who = next(iter(hows))
                    what_differs = f"{who} leads to {value:#x}, which is not +{offset:#x} of {id_[1]}"
                    self._find("MF133", (id_[0], id_[1]), what=what_differs)

    def _check_shared(self) -> None:
        """Code that several functions share (identical code folding) must not be replaced for one of them."""
        for key in self._sorted(self.wanted.functions & self.prover.proven.keys()):
            vaddr = self.prover.proven[key].fit.vaddr
            id_ = self.names.id_of(*key)
            names = set(self.names.names_of(id_))
            others = {s.name for s in self.run.function_symbols.get(vaddr, ())} - names
            others |= {other[1] for other in self.prover.at[vaddr] if self.names.id_of(*other) != id_}
            if others:
                self._find("MF134", key, others=", ".join(sorted(others)))

    def _check_debug(self) -> None:
        """The debug file and the image's own dynamic symbols must tell the same."""
        debug = self.run.debug
        if debug is None:
            return
        for name, symbols in self.run.exported.items():
            known = {s.value for s in debug.symbols_by_name.get(name, ()) if s.defined}
            if known and not known & {s.value for s in symbols}:
                places = f"has it at {min(known):#x}, the image exports it at {symbols[0].value:#x}"
                what = f"the debug file {debug.name} {places}"
                self.findings.append(finding("MF133", debug.name, name, what=what))

    def _contradicts_debug(self, key: Key) -> bool:
        """Whether the code is elsewhere than where the debug file has it."""
        attempt = self.prover.attempts[key]
        if self.run.debug is None or attempt.source != "symbol table":
            return False
        for vaddr in self.prover.code.candidates(self.names.atom(*key)) or ():
            if not isinstance(self.prover.fitter.function(key, vaddr), Misfit):
                what = f"its code is at {vaddr:#x}, and the debug file {self.run.debug.name} says otherwise"
                self._find("MF133", key, what=what)
                return True
        return False

    def _check_fixed(self, fixed: Fixed) -> None:
        """Where functions to be replaced are not there, but what the fix makes of them is: run has the fix already."""
        missing = {(item.file, item.symbol) for item in self.findings if item.code in ("MF130", "MF132")}
        keys = [key for key in fixed.functions if (str(key[0]), self.names.atom(*key).name or key[1]) in missing]
        if not keys:
            return
        prover = Prover(self.run, Inputs.of(fixed.objects))
        for path in {fixed.functions[key][0] for key in keys}:
            atoms = prover.inputs[path].atoms.items()
            prover.prove((path, key) for key, atom in atoms if atom.kind == "function")
        if all(fixed.functions[key] in prover.proven or prover.attempts[fixed.functions[key]].fits for key in keys):
            there = {(str(key[0]), self.names.atom(*key).name or key[1]) for key in keys}
            self.findings = [item for item in self.findings if (item.file, item.symbol) not in there]
            for key in self._sorted(keys):
                self._find("MF163", key)

    def _match(self, places: Mapping[Key, Place], symbols: Mapping[str, Place], concerned: Iterable[Path]) -> Match:
        reports = {path: self._object(path) for path in concerned}
        return Match(
            functions=places,
            data=self.data,
            symbols=symbols,
            slots=self._lowest("slot"),
            plt=self._lowest("plt"),
            tls=self._lowest("tpoff"),
            findings=tuple(dict.fromkeys(self.findings)),
            matched_functions=sum(item.matched for item in reports.values()),
            total_functions=sum(item.functions for item in reports.values()),
            layouts={key: self.prover.proven[key].fit.same.places for key in places},
            tls_offsets=self._lowest("tlsvalue"),
            tls_pairs=self._lowest("tlsgd"),
            tls_slots=self._lowest("gottpoff"),
            tls_module=min(self.facts.values((None, ""), "tlsld"), default=None),
            absent=frozenset(self.absent),
            objects=reports,
            resolvers=self.resolvers,
        )

    def _object(self, path: Path) -> ObjectMatch:
        functions = [(path, key) for key, atom in self.inputs[path].atoms.items() if atom.kind == "function"]
        there = [key for key in functions if key not in self.absent and key not in self.wanted.inlined]
        unmatched = [key for key in there if key not in self.prover.proven]
        names = tuple(show(self.names, self.names.id_of(*key)) for key in unmatched)
        return ObjectMatch(len(there), len(there) - len(unmatched), names)

    def _lowest(self, what: str) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for (id_, kind, _), values in self.facts.known.items():
            if kind == what:
                # Other objects may know it by another of its names (glibc: errno and __libc_errno).
                names = (name_of(id_), *(self.names.names_of(id_) if id_[0] is None else ()))
                found.update((name, min(values)) for name in names)
        return dict(sorted(found.items()))


__all__ = ["Fixed", "Id", "Key", "Wanted", "match", "show"]
