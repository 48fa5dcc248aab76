"""What references, read in the running image, say about where things are; and whether they agree with each other.

A fact is one statement ("variable x lies at 0x4010") with its witness. Facts come from the relocated fields of matched
code, from pointers in matched data, and are held against the symbol table, dynamic relocations and each other.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.matching.decode import Same, Witness, decode
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom, ObjectCode, Reference
from midflight.image.binary import open_object

Key = tuple[Path, str]
Id = tuple[Path | None, str]
"""(object, atom key) of something local, or (None, name) of a global symbol."""

What = Literal["address", "slot", "plt", "tpoff", "tlsvalue", "gottpoff", "tlsgd", "tlsld", "inside", "constant"]


class Contradiction(Exception):
    """Run is not this code after all: something that it refers to is not what pre refers to."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who says so: a field of something that was matched, or another source (``text``) when there is no holder."""

    holder: Key | None
    offset: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Fact:
    """``what`` of ``id`` is ``value``. "inside": of (function, offset in pre), see ``offset``."""

    id: Id
    what: What
    value: int
    how: Source
    offset: int = 0


Sayers = Mapping[Source, bool]
"""Who said something, and whether that counts as a witness of its own: what a function was chosen by is not proven by
that function again."""


@dataclass(slots=True)
class Facts:
    """Everything established so far: per (id, what, offset) the values and who said so."""

    known: dict[tuple[Id, What, int], dict[int, dict[Source, bool]]] = field(default_factory=dict)

    def add(self, fact: Fact, counts: bool = True) -> bool:
        """Note a fact; tells whether nobody had said it before."""
        values = self.known.setdefault((fact.id, fact.what, fact.offset), {})
        new = fact.value not in values
        sayers = values.setdefault(fact.value, {})
        sayers[fact.how] = sayers.get(fact.how, False) or counts
        return new

    def values(self, id_: Id, what: What) -> Mapping[int, Sayers]:
        return self.known.get((id_, what, 0), {})

    def clash(self, fact: Fact) -> str | None:
        """The witness of another value, when this fact disagrees with what is known. GOT slots and PLT entries of one
        symbol may be several."""
        if fact.what in ("slot", "plt", "gottpoff", "tlsgd", "tlsld"):
            return None
        values = self.known.get((fact.id, fact.what, fact.offset), {})
        for value, hows in values.items():
            if value != fact.value:
                return f"{value:#x} by {next(iter(hows))}"
        return None


@dataclass(frozen=True, slots=True)
class Names:
    """Tells which atoms and symbols of several objects are one and the same thing."""

    objects: Mapping[Path, ObjectCode]
    definers: Mapping[str, tuple[Path, str]]
    """Global symbol name (aliases too) to the atom that defines it, the strong one first."""
    inputs: Inputs | None = None
    """The same objects where they are read one by one: then ``definers`` is empty, and this answers for it."""
    _sources: dict[Path, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Mapping[Path, ObjectCode]) -> Names:
        if isinstance(objects, Inputs):
            return cls(objects, {}, objects)
        definers: dict[str, tuple[Path, str]] = {}
        strong: set[str] = set()
        for path, code in objects.items():
            for key, atom in code.atoms.items():
                if atom.binding == "local":
                    continue
                for name in (atom.name, *atom.aliases):
                    if name not in definers or (atom.binding == "global" and name not in strong):
                        definers[name] = (path, key)
                        if atom.binding == "global" and key not in code.common:
                            strong.add(name)
        return cls(objects, definers)

    def atom(self, path: Path, key: str) -> Atom:
        return self.objects[path].atoms[key]

    def source_name(self, path: Path) -> str | None:
        """The name that the object's symbol table has for its source (gABI, STT_FILE); None when it has none."""
        if self.inputs is not None:
            return self.inputs.summary(path).source
        if path not in self._sources:
            with open_object(self.objects[path].file) as elf:
                files = [s.name for s in elf.symbols() if s.type == "file" and s.name]
            self._sources[path] = files[0] if files else None
        return self._sources[path]

    def id_of(self, path: Path, key: str) -> Id:
        atom = self.atom(path, key)
        return (path, key) if atom.binding == "local" else (None, atom.name)

    def id_of_symbol(self, name: str) -> Id:
        """The canonical id of a global name: aliases share one."""
        if self.inputs is not None:
            definition = self.inputs.definition(name)
            return (None, name if definition is None else definition.name)
        place = self.definers.get(name)
        return (None, name) if place is None else (None, self.atom(*place).name)

    def id_of_reference(self, path: Path, reference: Reference) -> Id:
        if reference.atom is not None:
            return self.id_of(path, reference.atom)
        return self.id_of_symbol(reference.symbol or "")

    def place_of(self, id_: Id) -> tuple[Path, str] | None:
        """The atom behind an id, when one of the objects defines it (which is read for that)."""
        if id_[0] is not None:
            return (id_[0], id_[1])
        return self.definers.get(id_[1]) if self.inputs is None else self.inputs.place(id_[1])

    def path_of(self, id_: Id) -> Path | None:
        """The object that defines a thing."""
        if id_[0] is not None:
            return id_[0]
        if self.inputs is not None:
            definition = self.inputs.definition(id_[1])
            return None if definition is None else definition.path
        place = self.definers.get(id_[1])
        return None if place is None else place[0]

    def names_of(self, id_: Id) -> tuple[str, ...]:
        """Every symbol name of the thing."""
        if id_[0] is None and self.inputs is not None:
            definition = self.inputs.definition(id_[1])
            return (id_[1],) if definition is None else definition.names
        place = self.place_of(id_)
        if place is None:
            return (id_[1],)
        atom = self.atom(*place)
        return (atom.name, *atom.aliases) if atom.name else ()


def name_of(id_: Id) -> str:
    """The name under which a Match lists it."""
    return id_[1] if id_[0] is None else f"{id_[0]}:{id_[1]}"


def show(names: Names, id_: Id) -> str:
    """The name that a person knows it by."""
    return id_[1] if id_[0] is None else names.atom(id_[0], id_[1]).name or id_[1]


class Interpreter:
    """Turns witnesses into facts, and rejects those that cannot be true."""

    def __init__(self, run: RunImage, names: Names) -> None:
        self.run = run
        self.names = names
        self._symbol_values: dict[Id, frozenset[int]] = {}
        self._targets: dict[Path, dict[str, list[int]]] = {}
        self._sections: dict[tuple[Path, str], list[tuple[int, str]]] = {}

    # --- code --------------------------------------------------------------------------------------------------------

    def code_facts(self, path: Path, key: str, same: Same) -> Iterator[Fact]:
        """What matched code says. Raises Contradiction."""
        atom = self.names.atom(path, key)
        for witness in same.witnesses:
            at = witness.reference.offset
            how = Source((path, key), at, f"{atom.name or key}+{at:#x}")
            yield from self._witness(path, key, witness, how)
        for inner in same.outside:
            target, offset = self._neighbour(path, atom, atom.offset + inner.offset)
            how = Source((path, key), inner.offset, f"{atom.name or key} (same section)")
            yield from self._address(self.names.id_of(path, target), inner.vaddr - offset, how, False)

    def _neighbour(self, path: Path, atom: Atom, offset: int) -> tuple[str, int]:
        """The atom at an offset of the section that ``atom`` is in, for references that the assembler resolved."""
        where = (path, atom.section)
        if where not in self._sections:
            atoms = self.names.objects[path].atoms.items()
            self._sections[where] = sorted((a.offset, key) for key, a in atoms if a.section == atom.section)
        order = self._sections[where]
        position = bisect.bisect_right(order, (offset, "\U0010ffff")) - 1
        start, key = order[position] if position >= 0 else (-1, "")
        if start < 0 or offset >= start + max(self.names.atom(path, key).size, 1):
            raise Contradiction(f"it refers to {atom.section}+{offset:#x}, where nothing known is")
        return key, offset - start

    def _witness(self, path: Path, key: str, witness: Witness, how: Source) -> Iterator[Fact]:
        reference = witness.reference
        id_ = self.names.id_of_reference(path, reference)
        if witness.form == "address":
            if reference.atom is not None:
                yield from self._atom_address(path, key, reference, witness, how)
            else:
                yield from self._address(id_, witness.value, how, witness.branch)
        elif witness.form == "slot":
            yield from self._slot(id_, witness.value, how)
        elif witness.form == "tpoff":
            yield self._tls(id_, "tpoff", witness.value, how)
        elif witness.form == "dtpoff":
            yield self._tls(id_, "tlsvalue", witness.value, how)
        elif witness.form == "gottpoff":
            yield from self._gottpoff(id_, witness.value, how)
        elif witness.form == "tlsgd":
            yield from self._tlsgd(id_, witness.value, how)
        elif witness.form == "tlsld":
            relocation = self.run.relocations.get(witness.value)
            if relocation is None or relocation.type != r.DTPMOD64 or relocation.symbol:
                raise Contradiction(f"{how} does not refer to the module's thread-local storage")
            yield Fact((None, ""), "tlsld", witness.value, how)
        elif witness.form == "tlsdesc":
            relocation = self.run.relocations.get(witness.value)
            if relocation is None or relocation.type != r.TLSDESC:
                raise Contradiction(f"{how} does not refer to a thread-local descriptor")

    def _atom_address(
        self, path: Path, key: str, reference: Reference, witness: Witness, how: Source
    ) -> Iterator[Fact]:
        """A reference to an atom of the same object: a function, a label in one, or data with contents to compare."""
        assert reference.atom is not None
        atom = self.names.atom(path, reference.atom)
        meant = reference.addend + reference.bias
        if atom.kind == "function" and meant != 0:
            yield Fact((path, reference.atom), "inside", witness.value + meant, how, meant)
            return
        if atom.kind == "rodata" and not atom.name and not atom.references and 0 <= meant < atom.size:
            width = self._width_of_read(path, key, reference) if atom.padded else None
            yield self._constant(path, reference.atom, witness.value + meant, meant, how, width)
            return
        yield from self._address(self.names.id_of(path, reference.atom), witness.value, how, witness.branch)

    def _width_of_read(self, path: Path, key: str, reference: Reference) -> int | None:
        """How many bytes an instruction reads where a reference leads; None when it only takes the address."""
        atom = self.names.atom(path, key)
        if atom.kind != "function":
            return None
        for instruction in decode(atom.data):
            if instruction.ip <= reference.offset < instruction.ip + instruction.len:
                if not instruction.is_ip_rel_memory_operand or instruction.mnemonic == x86.Mnemonic.LEA:
                    return None
                return x86.MemorySizeExt.size(instruction.memory_size) or None
        return None

    def _constant(self, path: Path, key: str, vaddr: int, offset: int, how: Source, width: int | None = None) -> Fact:
        """Unnamed constants in one section: other flags put other things between them, so each is compared by itself,
        up to the next one that something refers to; or as far as it is read, where its end is not known."""
        atom = self.names.atom(path, key)
        edges = self._edges(path, key)
        position = bisect.bisect_right(edges, offset)
        end = edges[position] if position < len(edges) else atom.size
        if width is not None:
            end = min(end, offset + width)
        if self.run.read(vaddr, end - offset) != atom.data[offset:end]:
            raise Contradiction(f"{how} refers to {atom.data[offset:end][:40]!r} in pre, to something else in run")
        return Fact((path, key), "constant", vaddr, how, offset)

    def _edges(self, path: Path, key: str) -> list[int]:
        """Offsets in the unnamed constants of an object that something refers to."""
        if path not in self._targets:
            found: dict[str, set[int]] = {}
            for atom in self.names.objects[path].atoms.values():
                for item in atom.references:
                    if item.atom is not None:
                        found.setdefault(item.atom, set()).add(item.addend + item.bias)
            self._targets[path] = {target: sorted(offsets) for target, offsets in found.items()}
        return self._targets[path].get(key, [])

    def _address(self, id_: Id, value: int, how: Source, branch: bool) -> Iterator[Fact]:
        entry = self.run.plt_at(value)
        if entry is not None and not self._is_own_jump(id_):
            if entry.symbol is not None and entry.symbol.name not in self.names.names_of(id_):
                raise Contradiction(f"{how} refers to {show(self.names, id_)} in pre, to {entry.symbol.name} in run")
            if entry.symbol is None:
                self._check_resolver(id_, entry.resolver, how)
            yield Fact(id_, "plt", value, how)
            return
        symbols = self.symbol_values(id_)
        if not symbols and self._is_imported(id_):
            raise Contradiction(f"{how} refers to {show(self.names, id_)}, an import, in pre, to {value:#x} in run")
        if symbols and value not in symbols:
            name, expected = show(self.names, id_), " or ".join(f"{s:#x}" for s in sorted(symbols))
            raise Contradiction(f"{how} says that {name} is at {value:#x}, the symbol table says {expected}")
        if value == 0 and not symbols:
            return  # A weak symbol that nobody defines.
        if branch and not self.run.is_code(value):
            raise Contradiction(f"{how} would branch to {value:#x}, where no code is")
        yield Fact(id_, "address", value, how)

    def _is_own_jump(self, id_: Id) -> bool:
        """Whether what looks like the stub of an import is a function of the objects: a PE image has no section for
        stubs, and a function that wraps an import may be the same jump."""
        return self.run.elf.format == "pe" and self.names.path_of(id_) is not None

    def _is_imported(self, id_: Id) -> bool:
        """Whether the image has a name from elsewhere: then only a PLT entry, or a copy that a symbol names, is it."""
        if id_[0] is not None or self.names.path_of(id_) is not None:
            return False
        return any(s.name in self.names.names_of(id_) and not s.value for s in self.run.imported.get(id_[1], ()))

    def _check_resolver(self, id_: Id, resolver: int | None, how: Source) -> None:
        symbols = self.symbol_values(id_)
        if symbols and resolver not in symbols:
            raise Contradiction(f"{how} refers to {show(self.names, id_)} in pre, to another resolver in run")

    def symbol_values(self, id_: Id) -> frozenset[int]:
        """Addresses that the image's symbol tables give for a thing, aliases included; empty when they know it not."""
        if id_ not in self._symbol_values:
            found: set[int] = set()
            for name in self.names.names_of(id_):
                if id_[0] is not None:
                    found |= {s.value for s in self.run.local_symbols(name, self.names.source_name(id_[0]))}
                else:
                    found |= {s.value for s in self.run.global_symbols(name)}
            self._symbol_values[id_] = frozenset(found)
        return self._symbol_values[id_]

    # --- GOT and thread-local storage --------------------------------------------------------------------------------

    def _slot(self, id_: Id, slot: int, how: Source) -> Iterator[Fact]:
        relocation, pointer = self.run.relocations.get(slot), self.run.pointer(slot)
        # psABI 4.4.2 and 5.2: a slot is a word of data. That of an import of a PE image is where the import directory
        # has it, which with import libraries of dlltool may be at any multiple of 4.
        imported = relocation is not None and relocation.type == r.GLOB_DAT and self.run.elf.format == "pe"
        if pointer is None or (slot % 8 and not imported) or not self.run.may_be_slot(slot):
            raise Contradiction(f"{how} refers to {slot:#x}, which is no slot of the GOT")
        if relocation is None and pointer.value and self.run.is_relocated:
            raise Contradiction(f"{how} refers to {slot:#x}, which the loader does not fill")
        if pointer.value and pointer.symbol is None and self.run.elf.segment_at(pointer.value) is None:
            raise Contradiction(f"{how} refers to {slot:#x}, which leads to {pointer.value:#x}, where nothing is")
        if pointer.symbol is not None:
            if pointer.symbol.name not in self.names.names_of(id_):
                raise Contradiction(f"{how} refers to {show(self.names, id_)} in pre, to {pointer.symbol.name} in run")
            yield Fact(id_, "slot", slot, how)
        elif pointer.resolver:
            self._check_resolver(id_, pointer.value, how)
            yield Fact(id_, "slot", slot, how)
        else:
            if pointer.value:
                yield from self._address(id_, pointer.value, how, False)
            elif relocation is None and self.symbol_values(id_):
                raise Contradiction(f"{how} refers to {show(self.names, id_)} in pre, to nothing in run")
            yield Fact(id_, "slot", slot, how)

    def _tls(self, id_: Id, what: Literal["tpoff", "tlsvalue"], value: int, how: Source) -> Fact:
        expected = set(self.symbol_values(id_))
        if what == "tpoff":
            expected = {o for o in map(self.run.thread_pointer_offset, expected) if o is not None}
        if expected and value not in expected:
            raise Contradiction(f"{how} refers to another thread-local variable than {show(self.names, id_)}")
        return Fact(id_, what, value, how)

    def _gottpoff(self, id_: Id, slot: int, how: Source) -> Iterator[Fact]:
        relocation = self.run.relocations.get(slot)
        if relocation is None:
            raw = self.run.read(slot, 8)
            if raw is None:
                raise Contradiction(f"{how} refers to {slot:#x}, which is no slot of the GOT")
            yield self._tls(id_, "tpoff", int.from_bytes(raw, "little", signed=True), how)
        elif relocation.type != r.TPOFF64:
            raise Contradiction(f"{how} does not refer to a thread-local variable's slot")
        else:
            self._same_name(id_, relocation.symbol, how)
            if not relocation.symbol:
                yield self._tls(id_, "tlsvalue", relocation.addend, how)
        yield Fact(id_, "gottpoff", slot, how)

    def _tlsgd(self, id_: Id, slot: int, how: Source) -> Iterator[Fact]:
        relocation = self.run.relocations.get(slot)
        if relocation is None or relocation.type != r.DTPMOD64:
            raise Contradiction(f"{how} does not refer to a thread-local variable's slots")
        self._same_name(id_, relocation.symbol, how)
        if not relocation.symbol:
            raw = self.run.read(slot + 8, 8) or b""
            yield self._tls(id_, "tlsvalue", int.from_bytes(raw, "little"), how)
        yield Fact(id_, "tlsgd", slot, how)

    def _same_name(self, id_: Id, index: int, how: Source) -> None:
        if not index:
            return
        symbols = self.run.elf.dynamic_symbols()
        if index >= len(symbols) or symbols[index].name not in self.names.names_of(id_):
            raise Contradiction(f"{how} refers to another thread-local variable than {show(self.names, id_)}")

    # --- data --------------------------------------------------------------------------------------------------------

    def data_facts(self, path: Path, key: str, vaddr: int) -> Iterator[Fact]:
        """Compare an atom of data with run at ``vaddr``, and read the pointers in it. Raises Contradiction."""
        atom = self.names.atom(path, key)
        name = atom.name or (repr(atom.data[:40])[1:] if atom.kind == "string" else key)
        # A text ends with its first zero, whatever fills the room behind it.
        size = len(atom.data.rstrip(b"\0")) + 1 if atom.padded and atom.kind == "string" else atom.size
        raw = self.run.read(vaddr, size)
        if raw is None:
            raise Contradiction(f"{name} would be at {vaddr:#x}, where nothing is")
        mine, theirs = bytearray(atom.data[:size].ljust(size, b"\0")), bytearray(raw)
        for reference in atom.references:
            width = r.FIELD_SIZE.get(reference.type, 0)
            mine[reference.offset : reference.offset + width] = bytes(width)
            theirs[reference.offset : reference.offset + width] = bytes(width)
        if mine != theirs:
            at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            raise Contradiction(f"{name} has another content at {vaddr:#x} in run (byte +{at:#x})")
        for reference in atom.references:
            yield from self._pointer(path, key, reference, vaddr, raw)

    def _pointer(self, path: Path, key: str, reference: Reference, vaddr: int, raw: bytes) -> Iterator[Fact]:
        atom = self.names.atom(path, key)
        how = Source((path, key), reference.offset, f"{atom.name or key}+{reference.offset:#x}")
        field_ = raw[reference.offset : reference.offset + r.FIELD_SIZE.get(reference.type, 0)]
        id_ = self.names.id_of_reference(path, reference)
        if reference.type == r.R_64:
            pointer = self.run.pointer(vaddr + reference.offset)
            if pointer is None:
                raise Contradiction(f"{how} is no pointer in run")
            if pointer.symbol is not None:
                if pointer.symbol.name not in self.names.names_of(id_):
                    raise Contradiction(f"{how} points to {pointer.symbol.name} in run")
                return
            if pointer.resolver:
                return
            value = pointer.value - reference.addend
            if self._is_pseudo_relocated(id_, value):
                yield Fact(id_, "slot", value, how)
                return
            if pointer.value == 0 and self.names.path_of(id_) is None:
                return  # A weak symbol that nobody defines.
            if self.run.is_relocated and vaddr + reference.offset not in self.run.relocations:
                raise Contradiction(f"{how} is no pointer in run")
        elif reference.type in (r.PC32, r.PLT32):
            value = int.from_bytes(field_, "little", signed=True) + vaddr + reference.offset - reference.addend
        elif reference.type in (r.R_32, r.RVA32):
            value = int.from_bytes(field_, "little") - reference.addend
        elif reference.type == r.R_32S:
            value = int.from_bytes(field_, "little", signed=True) - reference.addend
        else:
            raise Contradiction(f"{how} has a relocation of the kind {r.name(reference.type)}")
        if reference.atom is not None:
            yield from self._atom_address(path, key, reference, Witness(reference, "address", value), how)
        else:
            yield from self._address(id_, value, how, False)

    def _is_pseudo_relocated(self, id_: Id, value: int) -> bool:
        """Whether a pointer leads to the import slot of a variable: MinGW's start-up code then makes it point to the
        variable itself (mingw-w64, pseudo-reloc.c)."""
        if self.run.elf.format != "pe":
            return False
        relocation = self.run.relocations.get(value)
        symbol = self.run.dynamic_symbol_of(relocation) if relocation is not None else None
        return symbol is not None and not symbol.defined and symbol.name in self.names.names_of(id_)


def agreement(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """All facts, when they agree with each other. Raises Contradiction."""
    local = Facts()
    result = []
    for fact in facts:
        against(fact, local)
        local.add(fact)
        result.append(fact)
    return tuple(result)


def against(fact: Fact, known: Facts) -> None:
    """Hold a fact against what is known. Raises Contradiction."""
    clash = known.clash(fact)
    if clash is not None:
        raise Contradiction(f"{fact.id[1]} is at {fact.value:#x} by {fact.how}, but at {clash}")
