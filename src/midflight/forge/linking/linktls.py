"""Thread-local variables of the running image, seen from a payload.

In an executable their offsets from the thread pointer are constants, so the new code is relaxed to them exactly as a
linker would do it; in a library the image's own GOT slots serve. Source: Drepper, "ELF Handling For Thread-Local
Storage", sections 4.4 (models) and 5 (linker optimizations); AMD64 psABI B.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from midflight.forge import relocs as r
from midflight.forge.linking.payload import Destination
from midflight.forge.linking.resolve import Resolver
from midflight.forge.matching.facts import name_of
from midflight.forge.matching.match import Key
from midflight.forge.model import Reference

_LOAD_TP = b"\x64\x48\x8b\x04\x25\0\0\0\0"  # mov %fs:0,%rax


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Bytes to put at ``offset`` of the atom; a slot field (when there is one) at ``field``; ``skip`` references after
    this one are gone with the code that they were in."""

    offset: int
    contents: bytes
    skip: int
    field: int | None = None
    slot: Destination | None = None


class ThreadLocal:
    """Answers for one link."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.run = resolver.run
        self.match = resolver.match
        self.executable = resolver.run.elf.kind == "executable" and resolver.run.elf.format == "elf"

    # --- what is known -----------------------------------------------------------------------------------------------

    def _variable(self, holder: Key, reference: Reference) -> tuple[str, str]:
        """(name in the match, symbol name) of the variable in run."""
        target = self.resolver.selection.target(holder[0], reference, holder)
        if target.symbol is not None:
            return target.symbol, target.symbol
        if target.old is None:
            raise self._out_of_reach(holder, reference)
        code = self.resolver.selection.diffs[target.old[0]].pre
        assert code is not None
        atom = code.atoms[target.old[1]]
        return (name_of(target.old) if atom.binding == "local" else atom.name), atom.name

    def _out_of_reach(self, holder: Key, reference: Reference) -> Exception:
        return self.resolver.unresolved("MF142", holder, target=reference.symbol or reference.atom)

    def value(self, holder: Key, reference: Reference) -> int | None:
        """Offset of the variable in the image's thread-local storage; None when another library has it, or unknown."""
        key, name = self._variable(holder, reference)
        if key in self.match.tls_offsets:
            return self.match.tls_offsets[key]
        found = [s for s in self.run.elf.symbols_by_name.get(name, ()) if s.defined and s.type == "tls"]
        if key == name:
            outer = [s for s in found if s.binding != "local"] or found
            if not outer and self.run.elf.is_dynamic:
                own = self.run.elf.dynamic_symbol(name)
                outer = [own] if own is not None and own.type == "tls" else []
            found = outer
        return found[0].value if len({s.value for s in found}) == 1 else None

    def offset(self, holder: Key, reference: Reference) -> int | None:
        """Offset from the thread pointer, where that is a constant; None when it is not."""
        key, _ = self._variable(holder, reference)
        if not self.executable:
            return None
        if key in self.match.tls:
            return self.match.tls[key]
        value = self.value(holder, reference)
        return None if value is None else self.run.thread_pointer_offset(value)

    def _slot(self, holder: Key, reference: Reference, type_: int) -> int | None:
        """The image's GOT slot with a dynamic relocation of this type for the variable."""
        key, name = self._variable(holder, reference)
        known = self.match.tls_pairs if type_ == r.DTPMOD64 else self.match.tls_slots
        if key in known:
            return known[key]
        value = self.value(holder, reference)
        for slot, relocation in sorted(self.run.relocations.items()):
            if relocation.type != type_:
                continue
            symbol = self.run.dynamic_symbol_of(relocation)
            if symbol is not None:
                if symbol.name == name and key == name:
                    return slot
            elif value is not None and self._local_value(slot, type_) == value:
                return slot
        return None

    def _local_value(self, slot: int, type_: int) -> int | None:
        if type_ == r.DTPMOD64:
            if slot + 8 in self.run.relocations:
                return None
            raw = self.run.read(slot + 8, 8)
            return None if raw is None else int.from_bytes(raw, "little")
        return self.run.relocations[slot].addend

    def _module_slot(self) -> int | None:
        if self.match.tls_module is not None:
            return self.match.tls_module
        for slot, relocation in sorted(self.run.relocations.items()):
            if relocation.type == r.DTPMOD64 and not relocation.symbol and self._local_value(slot, r.DTPMOD64) == 0:
                return slot
        return None

    # --- fields ------------------------------------------------------------------------------------------------------

    def constant(self, holder: Key, reference: Reference) -> int:
        """What a TPOFF32 or DTPOFF32 field holds, addend included."""
        # With local dynamic relaxed to local exec, offsets in the block become offsets from the thread pointer.
        exec_offset = reference.type == r.TPOFF32 or self.executable
        found = self.offset(holder, reference) if exec_offset else self.value(holder, reference)
        if found is None:
            raise self._out_of_reach(holder, reference)
        return found + reference.addend

    def initial_exec(self, holder: Key, reference: Reference) -> Destination:
        """The slot for a GOTTPOFF reference."""
        offset = self.offset(holder, reference)
        if offset is not None:
            return self.resolver.payload.slot(Destination("constant", offset))
        slot = self._slot(holder, reference, r.TPOFF64)
        if slot is None:
            raise self._out_of_reach(holder, reference)
        return Destination("slot", slot)

    def dynamic(self, holder: Key, reference: Reference) -> Destination | Rewrite:
        """For TLSGD and TLSLD: the image's pair of slots, or in executables other code."""
        general = reference.type == r.TLSGD
        if not self.executable:
            slot = self._slot(holder, reference, r.DTPMOD64) if general else self._module_slot()
            if slot is None:
                raise self._out_of_reach(holder, reference)
            return Destination("slot", slot)
        code = self.resolver.selection.atom(holder).data
        if not general:
            start = reference.offset - 3
            size = 12 if code[start + 7] == 0xE8 else 13
            return Rewrite(start, b"\x66" * (size - len(_LOAD_TP)) + _LOAD_TP, 1)
        start = reference.offset - 4
        offset = self.offset(holder, reference)
        if offset is not None:  # lea offset(%rax),%rax
            return Rewrite(start, _LOAD_TP + b"\x48\x8d\x80" + struct.pack("<i", offset), 1)
        slot = self._slot(holder, reference, r.TPOFF64)
        if slot is None:
            raise self._out_of_reach(holder, reference)
        return Rewrite(start, _LOAD_TP + b"\x48\x03\x05\0\0\0\0", 1, start + 12, Destination("slot", slot))
