"""One relocatable object as sections, symbols and relocations."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from midflight.errors import ImageError
from midflight.image.model import Relocation, Section, Symbol

_BINDINGS = {0: "local", 1: "global", 2: "weak", 10: "unique"}
_TYPES = {0: "notype", 1: "object", 2: "func", 3: "section", 4: "file", 5: "common", 6: "tls", 10: "ifunc"}


class RawObject:
    """The parts of an ELF relocatable that the forge reads."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self.name = name
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self._relocations: dict[int, tuple[Relocation, ...]] = {}
        (shoff,) = struct.unpack_from("<Q", data, 40)
        entsize, count, shstr = struct.unpack_from("<HHH", data, 58)
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * entsize) for i in range(count)]

        def string(table: int, at: int) -> str:
            start = rows[table][4] + at
            return data[start : data.index(b"\0", start)].decode()

        for i, (n, t, f, a, o, s, link, info, al, es) in enumerate(rows):
            self.sections.append(Section(i, string(shstr, n), t, f, a, o, s, link, info, al, es))
        for section in self.sections:
            if section.type == 2:
                for i in range(section.size // 24):
                    n, info, other, shndx, value, size = struct.unpack_from("<IBBHQQ", data, section.offset + i * 24)
                    sym_name = string(section.link, n)
                    if info & 15 == 3:
                        sym_name = self.sections[shndx].name
                    self.symbols.append(
                        Symbol(
                            i,
                            sym_name,
                            value,
                            size,
                            _BINDINGS[info >> 4],  # type: ignore[arg-type]
                            _TYPES[info & 15],  # type: ignore[arg-type]
                            other & 3,
                            shndx if 0 < shndx < 0xFF00 else None,
                            shndx == 0xFFF1,
                            shndx == 0xFFF2,
                        )
                    )
            elif section.type == 4:
                self._relocations[section.info] = tuple(
                    Relocation(o, i & 0xFFFFFFFF, i >> 32, a)
                    for o, i, a in struct.iter_unpack(
                        "<QQq", data[section.offset : section.offset + section.size]
                    )
                )
        if not self.symbols:
            raise ImageError(f"{name}: no symbol table")

    def content(self, index: int) -> bytes:
        """The bytes of a section in the file."""
        section = self.sections[index]
        return self._data[section.offset : section.offset + section.size]

    def relocations(self, index: int) -> Sequence[Relocation]:
        """The relocations to be applied to a section."""
        return self._relocations.get(index, ())

    def compiler(self) -> str:
        """What the compilers wrote into .comment, without repetition."""
        for section in self.sections:
            if section.name == ".comment":
                parts = self.content(section.index).split(b"\0")
                return "; ".join(dict.fromkeys(p.decode(errors="replace") for p in parts if p))
        return ""
