"""Links the payload of one image: places what was selected, binds every reference, writes unwind information.

The result is flat: references inside the payload are resolved here, and what only a process can say is left as
relocations of the four kinds of patch.manifest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.difference.diff import is_cold
from midflight.forge.linking.entries import NoRoom, classify
from midflight.forge.linking.linktls import Rewrite, ThreadLocal
from midflight.forge.linking.payload import STUB_SIZE, Destination, Payload
from midflight.forge.linking.payload_pdata import LEAF_INFO, RUNTIME_FUNCTION, PlacedFunction, build_pdata
from midflight.forge.linking.payload_unwind import PlacedFrame, build_eh_frame
from midflight.forge.linking.resolve import Resolver, Unresolved
from midflight.forge.linking.select import Selection
from midflight.forge.matching import decode
from midflight.forge.matching.match import Key
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Atom, Finding, Match, Place, Reference
from midflight.forge.refusals import finding
from midflight.image.binary import ImageFile
from midflight.patch.manifest import (
    CodeRange,
    Entry,
    Function,
    HookName,
    Import,
    PayloadSymbol,
    Relocation,
    RelocationForm,
    Segment,
    SegmentKind,
    Unwind,
)
from midflight.patch.validate import entry_writes

_MIN_ALIGNMENT = 16
# The address of a destructor cannot be taken in C++: the compiler hands it to the runtime, which calls it.
_DESTRUCTOR = re.compile(r"^_ZN.+D[012]Ev$")
_CXX_RUNTIMES = ("libstdc++.so", "libc++.so", "libc++abi.so")


@dataclass(frozen=True, slots=True)
class Linked:
    """A linked payload, in the manifest's words."""

    payload: bytes
    segments: tuple[Segment, ...]
    functions: tuple[Function, ...]
    relocations: tuple[Relocation, ...]
    imports: tuple[Import, ...]
    symbols: tuple[PayloadSymbol, ...]
    unwind: Unwind | None
    hooks: tuple[tuple[HookName, int], ...]
    escapes: bool
    findings: tuple[Finding, ...]


def link(
    selection: Selection,
    match: Match,
    run: ImageFile,
    post: ImageFile,
    hooks: Mapping[HookName, Key] | None = None,
) -> Linked:
    """Link what was selected against the running image.

    Args:
        selection: what goes into the payload.
        match: where everything else is.
        run: the image that runs.
        post: the image of the post build, for the libraries and versions of new imports.
        hooks: the author's hooks among the selected atoms.

    Returns:
        The payload; with findings (MF120, MF121, MF14x) it is incomplete and must not be used.
    """
    return _Linker(selection, match, RunImage(run), post).link(hooks or {})


@dataclass(slots=True)
class _Linker:
    selection: Selection
    match: Match
    run: RunImage
    post: ImageFile
    payload: Payload = field(default_factory=Payload)
    findings: dict[Finding, None] = field(default_factory=dict)
    doubts: dict[Finding, None] = field(default_factory=dict)
    """Findings that leave the payload complete, so that they can be overridden."""
    escapes: bool = False
    resolver: Resolver = field(init=False)
    tls: ThreadLocal = field(init=False)
    instructions: dict[Key, Sequence[x86.Instruction]] = field(default_factory=dict)
    eh_frame: int = 0
    eh_size: int = 0
    leaf: int = 0

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.selection, self.match, self.run, self.post, self.payload)
        self.tls = ThreadLocal(self.resolver)

    def link(self, hooks: Mapping[HookName, Key]) -> Linked:
        keys = self.selection.in_order()
        self._place(keys)
        self._bind(keys)
        # Slots and stubs are known now; the unwind information comes last, and nothing moves any more.
        placed = self._frames(keys)
        if self.run.elf.format == "pe":
            self._reserve_pdata(keys)
        elif placed:
            self.eh_frame = self.payload.reserve("rodata", build_eh_frame(placed, 0), 8)
            self.eh_size = len(self.payload.rodata) - self.eh_frame
        if not self.findings:
            self.payload.dry = False
            self._bind(keys)
            self._write_frames(keys)
        functions = self._functions()
        segments, blob = self.payload.segments()
        return Linked(
            payload=blob,
            segments=segments,
            functions=functions,
            relocations=tuple(sorted(self.payload.relocations, key=lambda item: item.offset)),
            imports=tuple(self.payload.imports),
            symbols=self._symbols(keys),
            unwind=self._unwind(placed),
            hooks=tuple((name, self.resolver.placed(key).value) for name, key in sorted(hooks.items())),
            escapes=self.escapes,
            findings=(*self.findings, *self.doubts),
        )

    # --- placing -----------------------------------------------------------------------------------------------------

    def _place(self, keys: Sequence[Key]) -> None:
        late = []
        for key in keys:
            atom = self.selection.atom(key)
            kind = _segment(atom)
            if kind is None:
                late.append(key)
                continue
            alignment = max(atom.alignment, _MIN_ALIGNMENT) if kind == "code" else atom.alignment
            self.resolver.offsets[key] = kind, self.payload.reserve(kind, atom.data.ljust(atom.size, b"\0"), alignment)
        for key in late:  # zeros, after everything that the file holds
            atom = self.selection.atom(key)
            start = -(-(len(self.payload.data) + self.payload.bss) // atom.alignment) * atom.alignment
            self.resolver.offsets[key] = "data", start
            self.payload.bss = start + atom.size - len(self.payload.data)

        for key in keys:
            locator = self.selection.locator(key)
            if locator is not None:
                before, at = self.resolver.offsets[locator]
                beside = before, at + self.selection.atom(locator).size
                assert self.resolver.offsets[key] == beside, "a table of virtual functions without what is before it"

    # --- binding -----------------------------------------------------------------------------------------------------

    def _bind(self, keys: Sequence[Key]) -> None:
        for key in keys:
            references = self.selection.atom(key).references
            skip = 0
            for reference in references:
                if skip:
                    skip -= 1
                    continue
                if reference.type in r.MARKS:
                    continue
                try:
                    skip = self._field(key, reference)
                except Unresolved as error:
                    self.findings[error.finding] = None

    def _field(self, key: Key, reference: Reference) -> int:
        """Bind one field; returns how many of the following references are done with it."""
        at = self.resolver.placed(key).value + reference.offset
        instruction = self._instruction(key, reference)
        branch = instruction is not None and decode.is_near_branch(instruction)
        kind = reference.type
        if kind in (r.PC32, r.PLT32, r.R_64, r.R_32, r.R_32S, r.GOTPC32):
            self._direct(key, reference, at, instruction, branch)
        elif kind == r.RVA32:
            self.payload.relocate(at, "rva32", self.resolver.relative(key, reference), reference.addend)
        elif kind in r.GOT_SLOT:
            through = instruction is not None and instruction.mnemonic in (x86.Mnemonic.CALL, x86.Mnemonic.JMP)
            slot = self.resolver.got_slot(key, reference, through)
            if slot.kind == "payload" and not through:
                self._note_escape(key, reference)
            self.payload.relocate(at, "pc32", slot, reference.addend)
        elif kind == r.PC64 and self.selection.target(key[0], reference, key).included is not None:
            to = self.resolver.destination(key, reference, branch)
            self.payload.write(at, (to.value + reference.addend - at).to_bytes(8, "little", signed=True))
        elif kind in (r.TPOFF32, r.DTPOFF32):
            self.payload.write(at, self.tls.constant(key, reference).to_bytes(4, "little", signed=True))
        elif kind == r.GOTTPOFF:
            self.payload.relocate(at, "pc32", self.tls.initial_exec(key, reference), reference.addend)
        elif kind in (r.TLSGD, r.TLSLD):
            return self._dynamic_tls(key, reference, at)
        else:
            raise self.resolver.unresolved("MF140", key, offset=reference.offset, kind=r.name(kind))
        return 0

    def _instruction(self, key: Key, reference: Reference) -> x86.Instruction | None:
        """The instruction that a field of code is in."""
        atom = self.selection.atom(key)
        if atom.kind != "function":
            return None
        if key not in self.instructions:
            self.instructions[key] = decode.decode(atom.data)
        for instruction in self.instructions[key]:
            if instruction.ip <= reference.offset < instruction.ip + instruction.len:
                return instruction
        return None

    def _direct(
        self, key: Key, reference: Reference, at: int, instruction: x86.Instruction | None, branch: bool
    ) -> None:
        to = self.resolver.destination(key, reference, branch)
        form = _FORMS[reference.type]
        if to.kind == "payload" and not branch and not self._is_plain_use(key, reference, instruction):
            self._note_escape(key, reference)
        if form == "abs64" and to.kind == "import":
            self.payload.relocate(at, form, to, reference.addend)
        elif to.kind in ("import", "zero") and form != "abs64":
            self._far(key, reference, at, form, to, branch)
        else:
            self.payload.relocate(at, form, to, reference.addend, branch and to.kind == "image")

    def _far(
        self, key: Key, reference: Reference, at: int, form: RelocationForm, to: Destination, branch: bool
    ) -> None:
        """Four bytes for something that may be anywhere."""
        target = reference.symbol or reference.atom or ""
        if to.kind == "zero":
            if form == "pc32":
                to = self.payload.stub(to)
            self.payload.relocate(at, form, to, reference.addend)
            return
        if self.payload.imports[to.value].type == "object":
            if form == "pc32" and self._load_address(key, reference, at, to):
                return
            raise self.resolver.unresolved(
                "MF141", key, target=target, why="a variable of a library that the running image has no copy of so far"
            )
        if not branch and not _DESTRUCTOR.match(target):
            found = self.resolver.unresolved("MF143", key, target=target).finding
            self.doubts[found] = None
        self.payload.relocate(at, form, self.payload.stub(to), reference.addend)

    def _load_address(self, key: Key, reference: Reference, at: int, to: Destination) -> bool:
        """Turn lea variable(%rip) into mov slot(%rip): the running image has no copy of a library's variable."""
        instruction = self._instruction(key, reference)
        if instruction is None or instruction.mnemonic != x86.Mnemonic.LEA or instruction.len != 7:
            return False
        self.payload.relocate(at, "pc32", self.payload.slot(to, reference.addend + 4), -4)
        self.payload.write(at - 2, b"\x8b")
        return True

    def _dynamic_tls(self, key: Key, reference: Reference, at: int) -> int:
        found = self.tls.dynamic(key, reference)
        if isinstance(found, Rewrite):
            start = self.resolver.placed(key).value
            self.payload.write(start + found.offset, found.contents)
            if found.field is not None and found.slot is not None:
                self.payload.relocate(start + found.field, "pc32", found.slot, -4)
            return found.skip
        self.payload.relocate(at, "pc32", found, reference.addend)
        return 0

    # --- escapes -----------------------------------------------------------------------------------------------------

    def _is_plain_use(self, key: Key, reference: Reference, instruction: x86.Instruction | None) -> bool:
        """Whether this use of an address of the payload cannot leave a copy of it behind: a load or store of what is
        there, an entry of the function's own jump table, the loading of that table's address, an exception table."""
        atom = self.selection.atom(key)
        if atom.kind == "other" or (atom.kind == "rodata" and atom.parent is not None):
            return True
        target = self.selection.target(key[0], reference, key).included
        if target is not None:
            table = self.selection.atom(target)
            if table.kind == "rodata" and not table.name and table.parent is not None:
                return True
        return (
            instruction is not None
            and instruction.is_ip_rel_memory_operand
            and instruction.mnemonic != x86.Mnemonic.LEA
        )

    def _note_escape(self, key: Key, reference: Reference) -> None:
        target = self.selection.target(key[0], reference, key)
        if target.included is not None and (target.old is None or target.old not in self.match.functions):
            self.escapes = True

    # --- unwinding ---------------------------------------------------------------------------------------------------

    def _frames(self, keys: Sequence[Key]) -> list[PlacedFrame]:
        placed = []
        for key in keys:
            if self.selection.atom(key).kind != "function":
                continue
            start = self.resolver.placed(key).value
            for frame in self.selection.frames_of(key):
                if frame.cie is None:
                    continue  # an entry of .pdata
                personality = lsda = None
                try:
                    if frame.personality is not None:
                        personality = self._personality(
                            key, frame.personality, bool(frame.cie.personality_encoding & 0x80)
                        )
                    if frame.lsda is not None:
                        to = self.resolver.destination(key, frame.lsda, False)
                        lsda = to.value + frame.lsda.addend
                except Unresolved as error:
                    self.findings[error.finding] = None
                placed.append(
                    PlacedFrame(frame.cie, start + frame.offset, frame.size, personality, lsda, frame.instructions)
                )
        return placed

    def _personality(self, key: Key, reference: Reference, indirect: bool) -> int:
        """The slot with the address of the personality routine."""
        to = self.resolver.destination(key, reference, False)
        if indirect and to.kind == "payload":
            return to.value + reference.addend
        if indirect:
            raise self.resolver.unresolved("MF140", key, offset=0, kind="personality routine in another object")
        return self.payload.slot(to, reference.addend).value

    # On Windows: "eh_frame" is the table of RUNTIME_FUNCTION, "leaf" the UNWIND_INFO of functions that have none.

    def _reserve_pdata(self, keys: Sequence[Key]) -> None:
        self.leaf = self.payload.reserve("rodata", LEAF_INFO, 4)
        self.eh_frame = self.payload.reserve("rodata", b"", 4)
        self.eh_size = RUNTIME_FUNCTION * len(self._runtime_functions(keys))
        self.payload.reserve("rodata", bytes(self.eh_size), 4)

    def _runtime_functions(self, keys: Sequence[Key]) -> list[PlacedFunction]:
        """What .pdata says of the new code."""
        found = []
        for key in keys:
            atom = self.selection.atom(key)
            if atom.kind != "function":
                continue
            start = self.resolver.placed(key).value
            described = self.selection.frames_of(key)
            for frame in described:
                assert frame.lsda is not None
                info = self.resolver.destination(key, frame.lsda, False).value + frame.lsda.addend
                found.append(PlacedFunction(start + frame.offset, start + frame.offset + frame.size, info))
            if not described:
                found.append(PlacedFunction(start, start + atom.size, self.payload.base("rodata") + self.leaf))
        # Stubs push nothing either.
        for offset in self.payload.stubs.values():
            at = self.payload.base("code") + offset
            found.append(PlacedFunction(at, at + STUB_SIZE, self.payload.base("rodata") + self.leaf))
        return found

    def _write_frames(self, keys: Sequence[Key]) -> None:
        if self.run.elf.format == "pe":
            self.payload.write(self.payload.base("rodata") + self.eh_frame, build_pdata(self._runtime_functions(keys)))
        elif self.eh_size:
            base = self.payload.base("rodata") + self.eh_frame
            self.payload.write(base, build_eh_frame(self._frames(keys), base))

    def _unwind(self, placed: Sequence[PlacedFrame]) -> Unwind | None:
        if self.run.elf.format == "pe":
            return Unwind(self.payload.base("rodata") + self.eh_frame, self.eh_size, True) if self.eh_size else None
        if not placed:
            return None
        throws = any(frame.personality is not None or frame.lsda is not None for frame in placed)
        # In a C++ program an exception may pass through functions that have no handlers of their own.
        throws = throws or any(lib.startswith(_CXX_RUNTIMES) for lib in self.run.elf.needed)
        throws = throws or self.run.global_symbol("__cxa_throw") is not None
        return Unwind(self.payload.base("rodata") + self.eh_frame, self.eh_size, throws)

    # --- functions ---------------------------------------------------------------------------------------------------

    def _functions(self) -> tuple[Function, ...]:
        found: list[Function] = []
        for post, pre in self.selection.replaced.items():
            place = self.match.functions.get(pre)
            if place is None:
                continue  # The match has said why.
            code = self.selection.diffs[pre[0]].pre
            assert code is not None
            old, new = code.atoms[pre[1]], self.selection.atom(post)
            if old.ifunc:
                self.findings[finding("MF121", pre[0], old.name)] = None
                continue
            entry = classify(self.run, place.vaddr, place.size, self._labels(pre), lead=old.lead)
            if not isinstance(entry, NoRoom) and entry.kind == "hotpatch" and self._is_taken(entry, found):
                entry = classify(self.run, place.vaddr, place.size, self._labels(pre), padded=False)
            if isinstance(entry, NoRoom):
                self.findings[finding("MF120", pre[0], old.name, what=entry.reason)] = None
                continue
            ranges = [place, *self._cold_parts(pre)]
            found.append(
                Function(
                    name=new.name,
                    ranges=tuple(self._range(part) for part in ranges),
                    entry=entry,
                    new_offset=self.resolver.placed(post).value,
                    new_size=new.size,
                )
            )
        return tuple(sorted(found, key=lambda function: function.ranges[0].vaddr))

    def _is_taken(self, entry: Entry, others: Sequence[Function]) -> bool:
        """Whether the padding before an entry is written to by another trampoline, or belongs to what is replaced."""
        assert entry.pad_vaddr is not None
        return any(
            start < entry.vaddr and entry.pad_vaddr < start + size
            for other in others
            for start, size in entry_writes(other.entry)
        )

    def _labels(self, pre: Key) -> set[int]:
        """Where in a function of run tables and other atoms lead, other than to its beginning."""
        code = self.selection.diffs[pre[0]].pre
        assert code is not None
        layout, place = self.match.layouts[pre], self.match.functions[pre]
        offsets = {
            item.addend + item.bias for atom in code.atoms.values() for item in atom.references if item.atom == pre[1]
        }
        return {layout.get(offset, place.vaddr + offset) for offset in offsets if offset > 0}

    def _cold_parts(self, pre: Key) -> list[Place]:
        code = self.selection.diffs[pre[0]].pre
        assert code is not None
        children = [(pre[0], key) for key, atom in code.atoms.items() if atom.parent == pre[1] and is_cold(atom)]
        return [self.match.functions[key] for key in children if key in self.match.functions]

    def _range(self, place: Place) -> CodeRange:
        code = self.run.code(place.vaddr, place.size)
        return CodeRange(place.vaddr, place.size, hashlib.sha256(code).hexdigest())

    def _symbols(self, keys: Sequence[Key]) -> tuple[PayloadSymbol, ...]:
        found = []
        for key in keys:
            atom = self.selection.atom(key)
            if atom.name and atom.size:
                kind = "func" if atom.kind == "function" else "object"
                at = self.resolver.placed(key).value
                found.append(PayloadSymbol(atom.name, at, atom.size, kind))  # type: ignore[arg-type]
        return tuple(sorted(found, key=lambda symbol: (symbol.offset, symbol.name)))


_FORMS: Mapping[int, RelocationForm] = {
    r.PC32: "pc32",
    r.PLT32: "pc32",
    r.GOTPC32: "pc32",
    r.R_64: "abs64",
    r.R_32: "abs32",
    r.R_32S: "abs32s",
}


def _segment(atom: Atom) -> SegmentKind | None:
    """The segment that an atom goes into; None: zeros at the end of the data."""
    if atom.kind == "function":
        return "code"
    if atom.kind in ("rodata", "string", "other"):
        return "rodata"
    if atom.kind == "bss":
        return None
    if atom.name.startswith("DW.ref.") or (not atom.name and len(atom.references) == 1):
        return "rodata"  # a slot that is written once
    return "data"


__all__ = ["Linked", "Path", "link"]
