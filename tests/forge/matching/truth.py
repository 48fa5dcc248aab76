"""Where everything really is: read from the image with all its names, by another reader than the matcher's.

Local names belong to the source file whose STT_FILE symbol stands before them (gABI, symbol table); the n-th such group
of a name is the n-th object with that name. Dynamic relocations are what readelf says.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

STT_FILE, STT_SECTION = 4, 3


@dataclass(frozen=True, slots=True)
class Name:
    """One symbol: ``section`` is its section's index; ``group`` counts the STT_FILE symbols up to it (0: none)."""

    name: str
    value: int
    size: int
    type: int
    local: bool
    section: int
    group: int


@dataclass(frozen=True)
class Symbols:
    """Sections and symbols of an ELF file (gABI; 64 bits, little endian)."""

    data: bytes

    @cached_property
    def sections(self) -> Sequence[tuple[str, int, int, int, int, int]]:
        """(name, type, address, offset, size, link)"""
        (at,) = struct.unpack_from("<Q", self.data, 0x28)
        count, names = struct.unpack_from("<HH", self.data, 0x3C)
        raw = [struct.unpack_from("<IIQQQQII", self.data, at + 64 * i) for i in range(count)]
        strings = raw[names][4]
        return [(_text(self.data, strings + r[0]), r[1], r[3], r[4], r[5], r[6]) for r in raw]

    @cached_property
    def names(self) -> Sequence[Name]:
        return list(self._names())

    @cached_property
    def files(self) -> Sequence[str]:
        """Names of the STT_FILE symbols in order."""
        return [name.name for name in self.names if name.type == STT_FILE]

    def _names(self) -> Iterator[Name]:
        group = 0
        for _, type_, _, offset, size, link in self.sections:
            if type_ != 2:
                continue
            strings = self.sections[link][3]
            for name, info, _, section, value, length in struct.iter_unpack(
                "<IBBHQQ", self.data[offset : offset + size]
            ):
                kind = info & 15
                group += kind == STT_FILE
                text = _text(self.data, strings + name).partition("@")[0]  # ld appends the version to an import's name
                yield Name(text, value, length, kind, info >> 4 == 0, section, group)

    def thread_pointer(self) -> int:
        """What the value of a thread-local symbol is relative to the thread pointer (psABI 3.4.2, variant II)."""
        (at,) = struct.unpack_from("<Q", self.data, 0x20)
        (count,) = struct.unpack_from("<H", self.data, 0x38)
        for i in range(count):
            type_, _, _, _, _, _, size, alignment = struct.unpack_from("<IIQQQQQQ", self.data, at + 56 * i)
            if type_ == 7:
                return int(-size // (alignment or 1) * (alignment or 1))
        return 0


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


@dataclass(frozen=True)
class Truth:
    """What one linked image is made of."""

    image: Path
    sources: Sequence[str]
    """Source names in the order of the link."""
    symbols: Symbols = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", Symbols(self.image.read_bytes()))

    @cached_property
    def _groups(self) -> Mapping[str, int]:
        """The STT_FILE group of every source."""
        found: dict[str, int] = {}
        for number, name in enumerate(self.symbols.files, 1):
            source = next((s for s in self.sources if s not in found and s.rpartition("/")[2] == name), None)
            if source is not None:
                found[source] = number
        return found

    @cached_property
    def _local(self) -> Mapping[tuple[int, str], Sequence[Name]]:
        found: dict[tuple[int, str], list[Name]] = {}
        for name in self.symbols.names:
            if name.local and name.section and name.type != STT_SECTION:
                found.setdefault((name.group, name.name), []).append(name)
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[Name]]:
        found: dict[str, list[Name]] = {}
        for name in self.symbols.names:
            if name.section and name.type not in (STT_FILE, STT_SECTION):
                found.setdefault(name.name, []).append(name)
        return found

    def local(self, source: str, name: str) -> Sequence[Name]:
        """Symbols (labels too) that one source file has under a local name."""
        return self._local.get((self._groups[source], name), ()) if source in self._groups else ()

    def shared(self, name: str) -> Sequence[Name]:
        """Global symbols with a name; what was hidden is local in an image (gABI, st_other)."""
        every = self._by_name.get(name, ())
        return [item for item in every if not item.local] or every

    def anywhere(self, name: str) -> Sequence[Name]:
        """All symbols with a name."""
        return self._by_name.get(name, ())

    @cached_property
    def thread_pointer(self) -> int:
        return self.symbols.thread_pointer()

    @cached_property
    def relocations(self) -> Mapping[int, tuple[str, str, int]]:
        """By the address they fill: (type, symbol without its version, addend or the symbol's value plus addend)."""
        done = subprocess.run(["readelf", "-rW", self.image], capture_output=True, text=True, check=True)
        found = {}
        for line in done.stdout.splitlines():
            match = re.match(
                r"([0-9a-f]{16})\s+[0-9a-f]{16}\s+(R_X86_64_\w+)\s+(?:([0-9a-f]{16}|\S+\(\))\s+)?(.*)$", line
            )
            if match is None:
                continue
            at, kind, value, rest = int(match[1], 16), match[2], match[3], match[4].strip()
            name, sign, addend = rest.rpartition(" + ") if " + " in rest else rest.rpartition(" - ")
            if value is None or not sign:
                found[at] = (kind, "", int(addend or "0", 16))
                continue
            number = int(addend, 16) * (-1 if sign == " - " else 1)
            found[at] = (kind, re.sub(r"@.*", "", name), number)
        return found

    def slot_of_entry(self, vaddr: int) -> int | None:
        """The slot that the PLT entry at an address jumps through (psABI 5.2; endbr64 and bnd may stand before)."""
        found = re.match(rb"(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25([\s\S]{4})", self.read(vaddr, 16))
        return None if found is None else vaddr + found.end() + struct.unpack("<i", found[1])[0]

    def read(self, vaddr: int, size: int) -> bytes:
        """Bytes at an address; zeros where the file has none."""
        for _, type_, address, offset, length, _ in self.symbols.sections:
            if address and address <= vaddr < address + length:
                return bytes(size) if type_ == 8 else self.symbols.data[offset + vaddr - address :][:size]
        return b""


@dataclass(frozen=True)
class Labels:
    """Names of all places in a labelled object, to carry them over to the image."""

    file: Path

    @cached_property
    def _places(self) -> Mapping[tuple[str, int], Sequence[str]]:
        symbols = Symbols(self.file.read_bytes())
        names = [section[0] for section in symbols.sections]
        found: dict[tuple[str, int], list[str]] = {}
        for name in symbols.names:
            if name.local and 0 < name.section < len(names) and name.type not in (STT_FILE, STT_SECTION):
                found.setdefault((names[name.section], name.value), []).append(name.name)
        return found

    @cached_property
    def _by_section(self) -> Mapping[str, Sequence[tuple[int, str]]]:
        found: dict[str, list[tuple[int, str]]] = {}
        for (section, offset), names in self._places.items():
            found.setdefault(section, []).extend((offset, name) for name in names)
        return found

    def at(self, section: str, offset: int) -> Sequence[str]:
        return self._places.get((section, offset), ())

    def within(self, section: str, start: int, end: int) -> Iterator[tuple[int, str]]:
        """(offset, name) of labels in a part of a section."""
        return ((at, name) for at, name in self._by_section.get(section, ()) if start <= at <= end)

    @cached_property
    def grouped(self) -> frozenset[str]:
        """Names of sections that are members of a group (COMDAT): the linker may take another object's."""
        data = self.file.read_bytes()
        (at,) = struct.unpack_from("<Q", data, 0x28)
        flags = [struct.unpack_from("<Q", data, at + 64 * i + 8)[0] for i in range(len(Symbols(data).sections))]
        return frozenset(s[0] for s, flag in zip(Symbols(data).sections, flags, strict=True) if flag & 0x200)
