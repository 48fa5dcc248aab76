"""A payload in the making: three segments, slots, stubs and relocations, all in offsets from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from midflight.patch.manifest import Import, Relocation, RelocationForm, Segment, SegmentKind

PAGE = 4096
STUB_SIZE = 16
_STUB = b"\xf3\x0f\x1e\xfa\xff\x25\0\0\0\0"  # endbr64; jmp *slot(%rip)
_TRAP = b"\xf3\x0f\x1e\xfa\x0f\x0b"  # endbr64; ud2


DestinationKind = Literal["payload", "image", "import", "slot", "zero", "constant"]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a reference leads: ``value`` is an offset in the payload, a vaddr of the image, or the index of an import.

    zero: a weak symbol that nobody defines. constant: ``value`` is what a slot holds. ``key`` names an atom of the
    payload, whose offset changes while the payload grows.
    """

    kind: DestinationKind
    value: int = 0
    key: tuple[Path, str] | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.value if self.key is None else self.key)


def align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


@dataclass(slots=True)
class Payload:
    """Contents by segment. Slots and stubs are discovered while fields are resolved, and move what comes after them; so
    everything is resolved twice, the first time ``dry``: nothing is written, only slots, stubs and imports are made.
    """

    dry: bool = True

    code: bytearray = field(default_factory=bytearray)
    rodata: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    bss: int = 0
    relocations: list[Relocation] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    slots: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Identity of what a slot points to, to its offset in rodata."""
    stubs: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Identity of what a stub jumps to, to its offset in code."""
    _bound: set[tuple[object, ...]] = field(default_factory=set)

    def reserve(self, kind: SegmentKind, contents: bytes, alignment: int) -> int:
        """Append to a segment; the offset in that segment."""
        buffer = {"code": self.code, "rodata": self.rodata, "data": self.data}[kind]
        fill = b"\xcc" if kind == "code" else b"\0"
        buffer += fill * (align(len(buffer), alignment) - len(buffer))
        at = len(buffer)
        buffer += contents
        return at

    def import_index(self, item: Import) -> int:
        if item not in self.imports:
            self.imports.append(item)
        return self.imports.index(item)

    # --- layout ------------------------------------------------------------------------------------------------------

    def base(self, kind: SegmentKind) -> int:
        """The offset of a segment. Code must not grow any more when that of rodata is asked for, and so on."""
        if kind == "code":
            return 0
        rodata = align(len(self.code), PAGE)
        return rodata if kind == "rodata" else rodata + align(len(self.rodata), PAGE)

    def segments(self) -> tuple[tuple[Segment, ...], bytes]:
        """The segments, and the bytes of the payload file."""
        parts: Sequence[tuple[SegmentKind, bytearray, int]] = (
            ("code", self.code, 0),
            ("rodata", self.rodata, 0),
            ("data", self.data, self.bss),
        )
        found, blob = [], bytearray()
        for kind, contents, zeros in parts:
            if contents or zeros:
                found.append(Segment(kind, self.base(kind), len(contents) + zeros, len(blob), len(contents)))
                blob += contents
        return tuple(found), bytes(blob)

    def write(self, offset: int, contents: bytes) -> None:
        """Fill bytes at an offset of the payload."""
        if self.dry:
            return
        places: Sequence[tuple[SegmentKind, bytearray]] = (
            ("data", self.data),
            ("rodata", self.rodata),
            ("code", self.code),
        )
        for kind, buffer in places:
            base = self.base(kind)
            if base <= offset and offset + len(contents) <= base + len(buffer):
                buffer[offset - base : offset - base + len(contents)] = contents
                return
        raise ValueError(f"offset {offset:#x} is outside of the payload")

    def relocate(self, offset: int, form: RelocationForm, to: Destination, addend: int, branch: bool = False) -> None:
        """Write a field, or leave it to the engine when only a process can say what it holds."""
        if self.dry:
            return
        if to.kind == "zero":
            self.write(offset, bytes(8 if form == "abs64" else 4))
        elif to.kind == "constant":
            self.write(offset, (to.value + addend).to_bytes(8, "little", signed=True))
        elif to.kind == "payload" and form == "rva32":
            self.write(offset, (to.value + addend).to_bytes(4, "little"))
        elif to.kind == "payload" and form == "pc32":
            self.write(offset, (to.value + addend - offset).to_bytes(4, "little", signed=True))
        else:
            # Near code may go through an island; S + A - P must then mean the first byte of the target.
            self.relocations.append(Relocation(offset, to.kind, form, to.value, addend, branch))

    def slot(self, to: Destination, addend: int = 0) -> Destination:
        """Eight bytes of read-only data that hold the address ``to`` + ``addend``; written once, by the engine."""
        identity = (*to.identity, addend)
        if identity not in self.slots:
            self.slots[identity] = self.reserve("rodata", bytes(8), 8)
        at = self.base("rodata") + self.slots[identity]
        if identity not in self._bound and not self.dry:
            self._bound.add(identity)
            self.relocate(at, "abs64", to, addend)
        return Destination("payload", at)

    def stub(self, to: Destination) -> Destination:
        """A piece of code that jumps to ``to``, however far it is; for nothing (a weak symbol) it traps."""
        if to.identity not in self.stubs:
            body = _TRAP if to.kind == "zero" else _STUB
            self.stubs[to.identity] = self.reserve("code", body.ljust(STUB_SIZE, b"\xcc"), STUB_SIZE)
        at = self.base("code") + self.stubs[to.identity]
        if to.kind != "zero":
            self.relocate(at + len(_STUB) - 4, "pc32", self.slot(to), -4)
        return Destination("payload", at)
