"""Holds what run-pre matching says against the truth, address by address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.matching import decode
from midflight.forge.matching.match import Wanted
from midflight.forge.model import Atom, Match, ObjectCode
from tests.forge.matching.truth import Labels, Name, Truth


@dataclass(frozen=True, slots=True)
class Known:
    """One pre object with what the test knows about it and the matcher does not."""

    code: ObjectCode
    source: str
    labels: Labels


@dataclass(slots=True)
class Verdict:
    """What came of a match. Counts are of functions, but for ``addresses`` and ``unchecked``."""

    wanted: int = 0
    matched: int = 0
    refused: int = 0
    absent: int = 0
    """Found to be not in the image, and not there."""
    gone: int = 0
    """Refused, and really not in the image."""
    addresses: int = 0
    """All addresses that were compared with the truth: functions, data, instructions, slots, PLT entries, TLS."""
    unchecked: int = 0
    """Addresses of things that have no name even in the image with all names."""
    wrong: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    """Findings by code."""

    def add(self, other: Verdict) -> None:
        for name in ("wanted", "matched", "refused", "absent", "gone", "addresses", "unchecked"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wrong += other.wrong
        for code, count in other.codes.items():
            self.codes[code] = self.codes.get(code, 0) + count

    @property
    def recall(self) -> float:
        """Of the functions that the image has, how many were matched."""
        there = self.wanted - self.absent - self.gone
        return self.matched / there if there else 1.0

    def figures(self) -> dict[str, int]:
        """Numbers to add up and to quote."""
        return {
            "functions wanted": self.wanted,
            "matched": self.matched,
            "refused": self.refused,
            "not in the image": self.absent + self.gone,
            "addresses compared": self.addresses,
            "wrong": len(self.wrong),
        }

    def __str__(self) -> str:
        codes = " ".join(f"{code}:{count}" for code, count in sorted(self.codes.items()))
        return (
            f"{self.wanted} functions wanted, {self.matched} matched ({self.recall:.1%} of those that are there), "
            f"{self.refused} refused ({codes or 'none'}), {self.absent + self.gone} not in the image; "
            f"{self.addresses} addresses compared, {self.unchecked} without a name, {len(self.wrong)} wrong"
        )


def everything(objects: Iterable[ObjectCode]) -> Wanted:
    """All that can be asked about objects: functions, data with and without a name, undefined symbols."""
    functions: set[tuple[Path, str]] = set()
    atoms: set[tuple[Path, str]] = set()
    symbols: set[str] = set()
    for code in objects:
        for key, atom in code.atoms.items():
            (functions if atom.kind == "function" else atoms).add((code.path, key))
            symbols |= {item.symbol for item in atom.references if item.symbol}
    return Wanted(frozenset(functions), frozenset(atoms), frozenset(symbols))


@dataclass(slots=True)
class _Judge:
    truth: Truth
    known: Mapping[Path, Known]
    verdict: Verdict

    # --- what really is ----------------------------------------------------------------------------------------------

    def places(self, path: Path, atom: Atom) -> list[Name] | None:
        """The symbols for an atom; empty: it is not in the image; None: nothing has a name for it."""
        known = self.known[path]
        names = [name for name in (atom.name, *atom.aliases) if name]
        if atom.binding != "local":
            return [item for name in names for item in self.truth.shared(name)]
        grouped = atom.section in known.labels.grouped
        labels = names or list(known.labels.at(atom.section, atom.offset))
        found = [item for name in labels for item in self.truth.local(known.source, name)]
        if found or (labels and not grouped):
            return found
        if names:  # another file's copy of the group was taken
            return [item for name in names for item in self.truth.anywhere(name)]
        return None

    def values(self, id_: str) -> set[int]:
        """Values of what a Match calls by this name."""
        path, colon, key = id_.rpartition(":")
        if colon and Path(path) in self.known:
            atom = self.known[Path(path)].code.atoms[key]
            return {item.value for item in self.places(Path(path), atom) or ()}
        for item in self.known.values():
            for atom in item.code.atoms.values():
                if atom.binding != "local" and id_ in (atom.name, *atom.aliases):
                    return {name.value for n in (atom.name, *atom.aliases) for name in self.truth.shared(n)}
        return {item.value for item in self.truth.shared(id_)}

    def names(self, id_: str) -> set[str]:
        """All names of it."""
        for item in self.known.values():
            for atom in item.code.atoms.values():
                if atom.binding != "local" and id_ in (atom.name, *atom.aliases):
                    return {atom.name, *atom.aliases}
        return {id_}

    # --- comparisons -------------------------------------------------------------------------------------------------

    def compare(self, what: str, value: int, expected: Iterable[int]) -> None:
        self.verdict.addresses += 1
        expected = set(expected)
        if value not in expected:
            words = " or ".join(f"{item:#x}" for item in sorted(expected)) or "nowhere"
            self.verdict.wrong.append(f"{what}: {value:#x} by the match, really {words}")

    def functions(self, match: Match, wanted: Wanted) -> None:
        verdict, found = self.verdict, {(item.file, item.symbol) for item in match.findings}
        folded = {(item.file, item.symbol) for item in match.findings if item.code == "MF134"}
        for path, key in sorted(wanted.functions):
            atom = self.known[path].code.atoms[key]
            places = self.places(path, atom)
            verdict.wanted += 1
            what = f"function {path.name}:{key}"
            place = match.functions.get((path, key))
            if place is not None and not places and (str(path), atom.name or key) in folded:
                verdict.refused += 1  # the linker took its name away, and callers really get there
                verdict.gone += 1
            elif place is not None:
                verdict.matched += 1
                self.compare(what, place.vaddr, [item.value for item in places or ()])
                self.size(what, place.vaddr, place.size, places or [])
                self.layout(path, atom, match.layouts[path, key], what)
            elif (path, key) in match.absent:
                verdict.absent += 1
                if places:
                    verdict.wrong.append(f"{what}: absent by the match, really at {places[0].value:#x}")
            elif (str(path), atom.name or key) in found:
                verdict.refused += 1
                verdict.gone += not places
            else:
                verdict.wrong.append(f"{what}: neither found nor refused")

    def size(self, what: str, vaddr: int, size: int, places: list[Name]) -> None:
        sizes = {item.size for item in places if item.size}
        if sizes and size not in sizes:
            end, real = vaddr + size, vaddr + max(sizes)
            between = self.truth.read(min(end, real), abs(end - real))
            if not all(map(decode.is_padding, decode.decode(between))):
                self.verdict.wrong.append(f"{what}: {size} bytes by the match, really {max(sizes)}")

    def layout(self, path: Path, atom: Atom, layout: Mapping[int, int], what: str) -> None:
        """Every label in the function must be at its instruction, but for padding in between."""
        known = self.known[path]
        if atom.section in known.labels.grouped:
            return
        for offset, label in known.labels.within(atom.section, atom.offset, atom.offset + atom.size):
            real = self.truth.local(known.source, label)
            value = layout.get(offset - atom.offset)
            if len(real) != 1 or value is None or not label.startswith(".L") or "etext" in label:
                continue
            self.verdict.addresses += 1
            low, high = sorted((value, real[0].value))
            if high - low > 64 or not all(map(decode.is_padding, decode.decode(self.truth.read(low, high - low)))):
                self.verdict.wrong.append(f"{what}: {label} at {value:#x} by the match, really {real[0].value:#x}")

    def data(self, match: Match) -> None:
        doubtful = {(item.file, item.symbol) for item in match.findings}  # a person may vouch for these (MF135)
        for (path, key), place in match.data.items():
            atom = self.known[path].code.atoms[key]
            if (str(path), atom.name or key) in doubtful:
                continue
            places = self.places(path, atom)
            if places is None:
                self.verdict.unchecked += 1
            else:
                self.compare(f"{atom.kind} {path.name}:{key}", place.vaddr, [item.value for item in places])
        doubtful_names = {symbol for _, symbol in doubtful}
        for name, place in match.symbols.items():
            if name in doubtful_names:
                continue
            behind, values = self.truth.slot_of_entry(place.vaddr), {item.value for item in self.truth.shared(name)}
            if behind is not None and place.vaddr not in values:  # the address of an IFUNC is its PLT entry's
                self._slot(f"symbol {name}, the entry {place.vaddr:#x}", name, behind, ("R_X86_64_JUMP_SLOT",))
            else:
                self.compare(f"symbol {name}", place.vaddr, values)

    def slots(self, match: Match) -> None:
        for id_, slot in match.slots.items():
            self._slot(f"slot of {id_}", id_, slot, ("R_X86_64_GLOB_DAT", "R_X86_64_JUMP_SLOT", "R_X86_64_64"))
        for id_, entry in match.plt.items():
            jumps_through = self.truth.slot_of_entry(entry)
            if jumps_through is None:
                self.verdict.wrong.append(f"PLT entry of {id_}: {entry:#x} by the match, where no such entry is")
            elif entry not in self.values(id_):  # else it is the function's address for everybody (psABI 5.2)
                self._slot(
                    f"slot of the PLT entry of {id_}", id_, jumps_through, ("R_X86_64_GLOB_DAT", "R_X86_64_JUMP_SLOT")
                )

    def _slot(self, what: str, id_: str, slot: int, kinds: tuple[str, ...]) -> None:
        kind, name, value = self.truth.relocations.get(
            slot, ("", "", int.from_bytes(self.truth.read(slot, 8), "little"))
        )
        if kind in kinds and name:
            self.verdict.addresses += 1
            if name not in self.names(id_):
                self.verdict.wrong.append(f"{what}: {slot:#x} by the match, which is {name}'s")
        elif kind in ("", "R_X86_64_RELATIVE", "R_X86_64_IRELATIVE"):
            behind = self.truth.slot_of_entry(value)
            if behind is not None and value not in self.values(id_):  # the address of an IFUNC is its PLT entry's
                self._slot(f"{what}, the entry {value:#x}", id_, behind, kinds)
            else:
                self.compare(f"{what}, content", value, self.values(id_) or {0})
        else:
            self.verdict.wrong.append(f"{what}: {slot:#x} by the match, where there is {kind} {name}")

    def threads(self, match: Match) -> None:
        base = self.truth.thread_pointer
        for id_, value in match.tls.items():
            self.compare(f"TLS {id_}", value, [item + base for item in self.values(id_)])
        for id_, value in match.tls_offsets.items():
            self.compare(f"TLS offset {id_}", value, self.values(id_))
        for id_, slot in match.tls_slots.items():
            self._thread_slot(f"TLS slot {id_}", id_, slot, "R_X86_64_TPOFF64", base)
        for id_, slot in match.tls_pairs.items():
            self._thread_slot(f"TLS pair {id_}", id_, slot, "R_X86_64_DTPMOD64", 0)
        if match.tls_module is not None:
            self.verdict.addresses += 1
            relocation = self.truth.relocations.get(match.tls_module)
            if relocation is None or relocation[0] != "R_X86_64_DTPMOD64" or relocation[1]:
                self.verdict.wrong.append(f"TLS module: {match.tls_module:#x}, where there is {relocation}")

    def _thread_slot(self, what: str, id_: str, slot: int, kind: str, base: int) -> None:
        relocation = self.truth.relocations.get(slot)
        if relocation is None:
            content = int.from_bytes(self.truth.read(slot, 8), "little", signed=True)
            self.compare(f"{what}, content", content, [item + base for item in self.values(id_)])
        elif relocation[0] != kind:
            self.verdict.wrong.append(f"{what}: {slot:#x} by the match, where there is {relocation}")
        elif relocation[1]:
            self.verdict.addresses += 1
            if relocation[1] not in self.names(id_):
                self.verdict.wrong.append(f"{what}: {slot:#x} by the match, which is {relocation[1]}'s")
        else:
            pair = kind == "R_X86_64_DTPMOD64"
            value = int.from_bytes(self.truth.read(slot + 8, 8), "little") if pair else relocation[2]
            self.compare(f"{what}, content", value, self.values(id_))


def judge(match: Match, wanted: Wanted, truth: Truth, known: Mapping[Path, Known]) -> Verdict:
    """Compare everything in a match with the truth."""
    judge_ = _Judge(truth, known, Verdict())
    for item in match.findings:
        judge_.verdict.codes[item.code] = judge_.verdict.codes.get(item.code, 0) + 1
    judge_.functions(match, wanted)
    judge_.data(match)
    judge_.slots(match)
    judge_.threads(match)
    return judge_.verdict


def describe(wrong: Iterable[str]) -> Iterator[str]:
    """A few of the wrong addresses."""
    for number, item in enumerate(wrong):
        if number == 20:
            yield "…"
            return
        yield item
