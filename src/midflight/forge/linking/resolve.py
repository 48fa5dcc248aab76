"""Where each reference of the new code leads: into the payload, into the image, or to an import.

The rules that keep meanings: calls to a replaced function go to its new version, its address is the old one's (a
pointer stays equal to itself); what other modules may interpose goes through the image's own PLT and GOT, as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midflight.forge import relocs as r
from midflight.forge.difference.diff import is_cold
from midflight.forge.linking.payload import Destination, Payload
from midflight.forge.linking.select import Selection, Target, is_type_data
from midflight.forge.matching.match import Key
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Finding, Match, Reference
from midflight.forge.refusals import finding
from midflight.image.binary import ImageFile, open_object
from midflight.image.model import Symbol
from midflight.patch.manifest import Import

# __CxxFrameHandler3 and __C_specific_handler count from the base that the payload's function table is registered with.
# These have tables in another form, or look for more than that.
_UNKNOWN_HANDLERS = ("__CxxFrameHandler4", "__GSHandlerCheck")


class Unresolved(Exception):
    """A reference that cannot be bound; ``finding`` says why."""

    def __init__(self, found: Finding) -> None:
        super().__init__(found.reason)
        self.finding = found


@dataclass(slots=True)
class Resolver:
    selection: Selection
    match: Match
    run: RunImage
    post: ImageFile
    """The image of the post build: which library and version an import is from."""
    payload: Payload
    offsets: dict[Key, tuple[str, int]] = field(default_factory=dict)
    """Placed atoms: segment kind and offset in it."""
    _weak: dict[Path, frozenset[str]] = field(default_factory=dict)
    _post_imports: Mapping[str, Symbol] | None = None
    _dynamic_names: frozenset[str] | None = None

    # --- findings ----------------------------------------------------------------------------------------------------

    def unresolved(self, code: str, holder: Key, **detail: object) -> Unresolved:
        atom = self.selection.atom(holder)
        return Unresolved(finding(code, holder[0], atom.name or holder[1], **detail))

    # --- destinations ------------------------------------------------------------------------------------------------

    def placed(self, key: Key) -> Destination:
        """An atom of the payload."""
        kind, at = self.offsets[key]
        return Destination("payload", self.payload.base(kind) + at, key)  # type: ignore[arg-type]

    def destination(self, holder: Key, reference: Reference, branch: bool) -> Destination:
        """Where ``reference``, which stands in ``holder``, leads. Raises Unresolved."""
        found = self._destination(holder, reference, branch)
        if found.kind == "image" and found.value in self.run.resolvers:
            # Whoever calls it gets an address back, as if that were the result.
            name = reference.symbol or reference.atom or "?"
            raise self.unresolved(
                "MF141", holder, target=name, why="which chooses a function, and is not that function"
            )
        return found

    def _destination(self, holder: Key, reference: Reference, branch: bool) -> Destination:
        target = self.selection.target(holder[0], reference, holder)
        if target.included is not None:
            return self._included(holder, reference, target, branch)
        name = self._name(target, reference)
        if branch and reference.type == r.PLT32 and name is not None:
            entry = self._interposable_entry(name)
            if entry is not None:
                return Destination("image", entry)
            exported = self.exported(name)
            if exported is not None:
                return Destination("import", self.payload.import_index(exported))
        if target.old is not None:
            return self._old(holder, target.old, branch)
        assert target.symbol is not None
        return self.symbol(holder, target.symbol, branch)

    def _name(self, target: Target, reference: Reference) -> str | None:
        """The global name of a target."""
        if target.old is not None:
            code = self.selection.diffs[target.old[0]].pre
            atom = code.atoms[target.old[1]] if code is not None else None
            return atom.name if atom is not None and atom.binding != "local" else None
        if target.included is not None:
            atom = self.selection.atom(target.included)
            return atom.name if atom.binding != "local" else None
        return target.symbol

    def _interposable_entry(self, name: str) -> int | None:
        """The image's PLT entry for a name: calls went through it, so that another module could take them over."""
        entries = self.run.elf.plt().get(name)
        return entries[0] if entries else None

    def _included(self, holder: Key, reference: Reference, target: Target, branch: bool) -> Destination:
        key = target.included
        assert key is not None
        string = self._old_string(key)
        if string is not None:
            return string
        table = self.selection.atom(holder)
        from_table = table.kind != "function" and not table.name and table.parent is not None
        # A cold part has no address that anybody could know; a switch may lead to the very beginning of a function.
        inner = reference.addend + reference.bias != 0 or from_table or is_cold(self.selection.atom(key))
        if target.old is None or inner or target.old not in self.match.functions:
            return self.placed(key)
        if branch:
            name = self._name(target, reference)
            entry = self._interposable_entry(name) if name is not None and reference.type == r.PLT32 else None
            if entry is not None and self.run.elf.kind == "shared":
                return Destination("image", entry)
            exported = self.exported(name) if name is not None and reference.type == r.PLT32 else None
            if exported is not None:
                return Destination("import", self.payload.import_index(exported))
            return self.placed(key)
        return Destination("image", self.match.functions[target.old].vaddr)

    def _old_string(self, key: Key) -> Destination | None:
        """The very string of run, where it is known: pointers to it may be compared."""
        old = self.selection.diffs[key[0]].correlation.get(key[1])
        if old is None or self.selection.atom(key).kind != "string":
            return None
        place = self.match.data.get((key[0], old))
        return None if place is None else Destination("image", place.vaddr)

    def _old(self, holder: Key, old: Key, branch: bool) -> Destination:
        place = self.match.functions.get(old) or self.match.data.get(old)
        code = self.selection.diffs[old[0]].pre
        assert code is not None
        atom = code.atoms[old[1]]
        if atom.ifunc:
            return self._ifunc(holder, atom.name, place.vaddr if place is not None else None)
        if place is None:
            if atom.binding != "local":
                return self.symbol(holder, atom.name, branch)
            raise self.unresolved(
                "MF141", holder, target=atom.name or old[1], why="which nothing in the running image tells the place of"
            )
        return Destination("image", place.vaddr)

    def _ifunc(self, holder: Key, name: str, resolver: int | None) -> Destination:
        """A function that start-up code chose: its PLT entry leads to the choice."""
        if name in self.match.plt:
            return Destination("image", self.match.plt[name])
        entry = self.run.resolved_entry(resolver) if resolver is not None else None
        if entry is None:
            raise self.unresolved(
                "MF141", holder, target=name, why="an IFUNC for which the running image has no PLT entry"
            )
        return Destination("image", entry.vaddr)

    def _chosen(self, name: str) -> Destination | None:
        """The PLT entry through which old code calls what a resolver chose, where no symbol tells the resolver."""
        entry = self.run.plt_at(self.match.plt.get(name, -1))
        return None if entry is None or entry.resolver is None else Destination("image", entry.vaddr)

    def symbol(self, holder: Key, name: str, branch: bool) -> Destination:
        """A name that no object at hand defines."""
        if name in self.match.resolvers:
            return self._ifunc(holder, name, self.match.resolvers[name])
        chosen = self._chosen(name)
        if chosen is not None:
            return chosen
        place = self.match.symbols.get(name)
        if place is not None:
            return Destination("image", place.vaddr)
        if name == "_GLOBAL_OFFSET_TABLE_" and self.run.got is not None:
            return Destination("image", self.run.got)
        entries = self.run.elf.plt().get(name)
        if entries and (branch or self._canonical(name)):
            return Destination("image", entries[0])
        imported = self.imported(name, branch)
        if imported is not None:
            return Destination("import", self.payload.import_index(imported))
        if name in self._weak_names(holder[0]):
            return Destination("zero")
        raise self.unresolved(
            "MF141", holder, target=name, why="which neither the image nor a library that it is linked with defines"
        )

    def _canonical(self, name: str) -> bool:
        """Whether the address of an imported function is that of our PLT entry, for everybody (psABI 5.2). In PE images
        it is, for all code of the image that was compiled without __declspec(dllimport)."""
        if self.run.elf.format == "pe":
            return True
        return any(s.name == name and s.value for s in self.run.elf.dynamic_symbols() if not s.defined)

    def imported(self, name: str, branch: bool) -> Import | None:
        """The import that the post build made of a name."""
        if self._post_imports is None:
            symbols = self.post.dynamic_symbols() if self.post.is_dynamic else ()
            # The variable of a library of which the linker put a copy into the executable is imported all the same.
            copied = {item.offset for item in self.post.dynamic_relocations() if item.type == r.COPY}
            self._post_imports = {s.name: s for s in symbols if s.name and (not s.defined or s.value in copied)}
        found = self._post_imports.get(name)
        if found is not None:
            return Import(name, found.version, self.post.library_of(found), self._import_type(found, branch))
        own = (
            next((s for s in self.run.elf.dynamic_symbols() if s.name == name), None)
            if self.run.elf.is_dynamic
            else None
        )
        if own is not None and not own.defined:
            return Import(name, own.version, self.run.elf.library_of(own), self._import_type(own, branch))
        return None

    def _import_type(self, symbol: Symbol, branch: bool) -> Literal["func", "object"]:
        if self.run.elf.format == "pe":
            # Nothing in a PE image says it; but the linker makes stubs for functions alone.
            return "func" if branch or symbol.name in self.post.plt() else "object"
        return "object" if symbol.type in ("object", "common") and not branch else "func"

    def exported(self, name: str) -> Import | None:
        """A global of a library as the loader would bind it for everybody: another module may define it too.

        None when the linker has bound it (-Bsymbolic, -Bsymbolic-functions, a version script), which is seen in the
        fixed image: nothing there leaves it to the loader."""
        if self.run.elf.kind != "shared" or name not in self._left_to_loader():
            return None
        found = self.run.elf.dynamic_symbol(name)
        if found is None or found.visibility != 0:
            return None
        return Import(name, found.version, self.run.elf.soname, self._import_type(found, False))

    def _left_to_loader(self) -> frozenset[str]:
        """Names that dynamic relocations of the fixed image refer to."""
        if self._dynamic_names is None:
            symbols = self.post.dynamic_symbols() if self.post.is_dynamic else ()
            indexes = {item.symbol for item in self.post.dynamic_relocations()}
            self._dynamic_names = frozenset(symbols[i].name for i in indexes if 0 < i < len(symbols))
        return self._dynamic_names

    def _weak_names(self, path: Path) -> frozenset[str]:
        """Weak undefined symbols of an object."""
        if path not in self._weak:
            with open_object(self.selection.names.objects[path].file) as elf:
                self._weak[path] = frozenset(s.name for s in elf.symbols() if s.binding == "weak" and not s.defined)
        return self._weak[path]

    # --- distances from a base ----------------------------------------------------------------------------------------

    def relative(self, key: Key, reference: Reference) -> Destination:
        """A distance from the base of the image, which for tables of unwinding and descriptions of types is that of the
        payload. Handlers lie in the image or in another DLL, either of which may be anywhere: they are reached through
        a stub."""
        holder = self.selection.atom(key)
        if holder.name and holder.section.startswith(".xdata"):
            # _CxxThrowException counts from the base of the image that ThrowInfo is in.
            what = f"throws an exception of a type that the running image never throws ({holder.name})"
            raise self.unresolved("MF182", key, what=f"{what}; its description would have to lie in an image")
        if holder.kind != "other" and not is_type_data(holder.name):
            raise self.unresolved("MF180", key, offset=reference.offset)
        name = reference.symbol or reference.atom or ""
        if name.startswith(_UNKNOWN_HANDLERS):
            raise self.unresolved("MF182", key, what=f"has exception handlers of a kind ({name}) that is unknown")
        to = self.destination(key, reference, True)
        if to.kind != "payload":
            code = to.kind != "image" or self.run.is_code(to.value)
            if reference.addend or not code:
                raise self.unresolved("MF180", key, offset=reference.offset)
            to = self.payload.stub(to)
        return to

    # --- through slots -----------------------------------------------------------------------------------------------

    def got_slot(self, holder: Key, reference: Reference, branch: bool) -> Destination:
        """The slot for a GOTPCREL reference: one of the image's own where it has one, else one in the payload."""
        target = self.selection.target(holder[0], reference, holder)
        name = self._name(target, reference)
        if name is not None and (target.included is None or target.old is not None):
            slot = self._own_slot(name, branch)
            if slot is not None and (target.included is None or not branch or self.exported(name) is not None):
                return Destination("slot", slot)
            exported = self.exported(name)
            if exported is not None:
                return self.payload.slot(Destination("import", self.payload.import_index(exported)))
        return self.payload.slot(self.destination(holder, reference, branch))

    def _own_slot(self, name: str, branch: bool) -> int | None:
        if self.run.elf.format == "pe":
            # What pre goes through, or a pointer that an object of the image defines under the name of a slot.
            if name in self.match.slots:
                return self.match.slots[name]
            pointer = self.run.table.symbol(f"__imp_{name}")
            if pointer is not None and pointer.section is not None and self._is_word(pointer.value):
                return pointer.value
        for got in self.run.elf.got_entries:
            if got.symbol.name == name and (branch or not got.lazy or self.run.elf.bind_now):
                versions = {g.symbol.version for g in self.run.elf.got_entries if g.symbol.name == name}
                return got.vaddr if len(versions) == 1 else None
        return None

    def _is_word(self, vaddr: int) -> bool:
        """Whether eight bytes are a pointer by their place, or one that the loader fills."""
        return vaddr % 8 == 0 or vaddr in self.run.relocations
