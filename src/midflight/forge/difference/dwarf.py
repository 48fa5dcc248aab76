"""Reads the types and function signatures in an object's DWARF, and nothing else of it, fast.

DWARF 2 to 5 in 32-bit format, as gcc and clang write it into x86-64 objects. Of the bodies of functions only variables
are read, and those only where static ones exist; and on demand the lines of calls that were inlined. Sources:
DWARF 5 chapter 7 (encodings), DWARF 4 section 7.5 for the older forms.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from midflight.errors import ImageError
from midflight.image.binary import open_object

SHF_COMPRESSED = 0x800

# Tags (DWARF 5 table 7.3)
ARRAY, CLASS, ENUMERATION, PARAMETER, MEMBER, POINTER, REFERENCE = 0x01, 0x02, 0x04, 0x05, 0x0D, 0x0F, 0x10
COMPILE_UNIT, STRUCTURE, SUBROUTINE, TYPEDEF, UNION, UNSPECIFIED_PARAMETERS = 0x11, 0x13, 0x15, 0x16, 0x17, 0x18
INHERITANCE, TO_MEMBER, SUBRANGE, BASE, CONST, ENUMERATOR, SUBPROGRAM = 0x1C, 0x1F, 0x21, 0x24, 0x26, 0x28, 0x2E
INLINED = 0x1D
VARIABLE, VOLATILE, RESTRICT, NAMESPACE, UNSPECIFIED_TYPE, RVALUE, ATOMIC = 0x34, 0x35, 0x37, 0x39, 0x3B, 0x42, 0x47

# Attributes (DWARF 5 table 7.5)
NAME, BYTE_SIZE, BIT_OFFSET, BIT_SIZE, CONST_VALUE, UPPER_BOUND = 0x03, 0x0B, 0x0C, 0x0D, 0x1C, 0x2F
ORIGIN, ARTIFICIAL, COUNT, LOCATION, DECLARATION, ENCODING, EXTERNAL = 0x31, 0x34, 0x37, 0x38, 0x3C, 0x3E, 0x3F
DECLARED_FILE, DECLARED_LINE, CALL_LINE = 0x3A, 0x3B, 0x59
DIRECTORY, EXPRESSION = 0x1B, 0x02  # DW_AT_location; LOCATION is that of a member
SPECIFICATION, TYPE, DATA_BIT_OFFSET, LINKAGE_NAME, STR_OFFSETS_BASE, DWO_NAME = 0x47, 0x49, 0x6B, 0x6E, 0x72, 0x76
_SIBLING, _GNU_DWO_NAME, _MIPS_LINKAGE_NAME = 0x01, 0x2130, 0x2007
_WANTED = frozenset(
    {
        *(NAME, BYTE_SIZE, BIT_OFFSET, BIT_SIZE, CONST_VALUE, UPPER_BOUND, ORIGIN, ARTIFICIAL, COUNT, LOCATION),
        *(DECLARATION, ENCODING, EXTERNAL, SPECIFICATION, TYPE, DATA_BIT_OFFSET, LINKAGE_NAME, STR_OFFSETS_BASE),
        *(DECLARED_FILE, DECLARED_LINE, CALL_LINE),
        *(DIRECTORY, EXPRESSION, DWO_NAME, _SIBLING, _GNU_DWO_NAME, _MIPS_LINKAGE_NAME),
    }
)

_PARTIAL_UNIT, _TYPE_UNIT = 0x3C, 0x41
_KEPT_CHILDREN = frozenset(
    {ARRAY, CLASS, ENUMERATION, STRUCTURE, SUBROUTINE, UNION, NAMESPACE, COMPILE_UNIT, SUBPROGRAM}
    | {_PARTIAL_UNIT, _TYPE_UNIT}
)
# data1, flag, ref1, strx1, addrx1, data2, ref2, …: bytes by form (DWARF 5 table 7.6)
_FIXED = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8},
    **{0x17: 4, 0x1C: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2},
    **{0x2B: 3, 0x2C: 4, 0x1D: 4, 0x1F20: 4, 0x1F21: 4, 0x19: 0, 0x21: 0},
}
_STRX = frozenset({0x1A, 0x25, 0x26, 0x27, 0x28})
_UNIT_REFERENCES = frozenset({0x11, 0x12, 0x13, 0x14, 0x15})
_SIGNATURE = 0x20
# DW_OP_addr, DW_OP_const8u (before DW_OP_form_tls_address); DW_OP_addrx, DW_OP_constx (DWARF 5 table 7.9)
_OP_ADDRESS, _OP_INDEX = (0x03, 0x0E), (0xA1, 0xA2)
_ADDRESSES_START = 8

BODY = -2
"""The parent of variables inside of functions."""

Value = int | str | None


@dataclass(slots=True)
class Die:
    """One debugging information entry that is kept. ``parent`` is an offset, or -1, or BODY. The EXPRESSION of
    something static is the name of its symbol."""

    offset: int
    tag: int
    parent: int
    attributes: dict[int, Value]
    children: list[int] = field(default_factory=list)

    @property
    def name(self) -> str | None:
        value = self.attributes.get(NAME)
        return value if isinstance(value, str) else None

    def number(self, attribute: int) -> int | None:
        """An attribute's value as a number; None when it is missing or no constant."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, int) else None


class Types:
    """The entries of one object, by offset. ``usable``: the object has DWARF that says something about types.
    ``calls``: with ``bodies``, the lines from which calls were inlined into a function, by its entry's offset."""

    def __init__(self, file: Path, *, bodies: bool = False) -> None:
        self.dies: dict[int, Die] = {}
        self.calls: dict[int, list[int]] | None = {} if bodies else None
        self.usable = False
        try:
            self._sections = _read_sections(file)
            self._places = _Places.of(file)
            if self._sections.get(".debug_info"):
                self._read_units()
        except (struct.error, IndexError, KeyError, RecursionError, zlib.error) as error:
            raise ImageError(
                f"{file}: its debug information cannot be read ({error!r}); build it anew with -g"
            ) from None
        del self._sections, self._places

    def _read_units(self) -> None:
        data = self._sections[".debug_info"]
        at = 0
        while at + 11 <= len(data):
            (length,) = struct.unpack_from("<I", data, at)
            if length >= 0xFFFFFFF0:
                raise KeyError("64-bit DWARF")
            version = data[at + 4] | data[at + 5] << 8
            if not 2 <= version <= 5:
                raise KeyError(f"DWARF version {version}")
            if version == 5:
                unit_type = data[at + 6]
                (table,) = struct.unpack_from("<I", data, at + 8)
                first = at + 12 + (8 if unit_type in (4, 5) else 12 if unit_type in (2, 6) else 0)
            else:
                (table,) = struct.unpack_from("<I", data, at + 6)
                first = at + 11
            end = at + 4 + length
            abbreviations = self._abbreviations(table)
            _Unit(self._sections, self.dies, at, first, end, abbreviations, version, self._places, self.calls).read()
            unit = self.dies[first]
            split = DWO_NAME in unit.attributes or _GNU_DWO_NAME in unit.attributes
            self.usable |= not split and bool(unit.children)
            at = end

    def _abbreviations(self, at: int) -> dict[int, tuple[int, bool, list[tuple[int, int, int]]]]:
        """Abbreviation code to (tag, has children, [(attribute, form, implicit constant)])."""
        data = self._sections[".debug_abbrev"]
        found: dict[int, tuple[int, bool, list[tuple[int, int, int]]]] = {}
        while True:
            code, at = uleb(data, at)
            if code == 0:
                return found
            tag, at = uleb(data, at)
            children = data[at] == 1
            at += 1
            attributes = []
            while True:
                attribute, at = uleb(data, at)
                form, at = uleb(data, at)
                constant = 0
                if form == 0x21:
                    constant, at = sleb(data, at)
                if attribute == form == 0:
                    break
                attributes.append((attribute, form, constant))
            found[code] = (tag, children, attributes)


class _Unit:
    """Reads the entries of one unit into ``dies``."""

    def __init__(
        self,
        sections: dict[str, bytes],
        dies: dict[int, Die],
        start: int,
        first: int,
        end: int,
        abbreviations: dict[int, tuple[int, bool, list[tuple[int, int, int]]]],
        version: int,
        places: _Places,
        calls: dict[int, list[int]] | None,
    ) -> None:
        self._data = sections[".debug_info"]
        self._sections = sections
        self._dies = dies
        self._start, self._first, self._end = start, first, end
        self._abbreviations = abbreviations
        self._version = version
        self._offsets_base = 8
        self._places = places
        self._calls = calls

    def read(self) -> None:
        data, dies = self._data, self._dies
        bodies = self._places.local or self._calls is not None
        function = -1
        at = self._first
        parents: list[Die | None] = []
        while at < self._end:
            offset = at
            code = data[at]
            if code < 0x80:
                at += 1
            else:
                code, at = uleb(data, at)
            if code == 0:
                if parents:
                    parents.pop()
                if not parents:
                    return
                continue
            tag, has_children, specification = self._abbreviations[code]
            parent = parents[-1] if parents else None
            kept = (parent is not None and parent.tag in _KEPT_CHILDREN) or not parents
            if kept and parent is not None and parent.tag == SUBPROGRAM:
                kept = tag in (PARAMETER, UNSPECIFIED_PARAMETERS)
                beyond = parent.attributes.get(_SIBLING)
                if not kept and isinstance(beyond, int) and not bodies:  # parameters come first: the rest is the body
                    parents.pop()
                    at = beyond
                    continue
            attributes, at = self._attributes(specification, at)
            die = None
            if kept:
                die = Die(offset, tag, parent.offset if parent else -1, attributes)
                dies[offset] = die
                if parent is not None:
                    parent.children.append(offset)
                if tag == SUBPROGRAM:
                    function = offset
            elif bodies:
                if tag == VARIABLE and self._places.local:
                    dies[offset] = Die(offset, tag, BODY, attributes)
                elif tag == INLINED and self._calls is not None and isinstance(line := attributes.get(CALL_LINE), int):
                    self._calls.setdefault(function, []).append(line)
            elif has_children and isinstance(sibling := attributes.get(_SIBLING), int):
                at = sibling
                continue
            if has_children:
                parents.append(die)

    def _attributes(self, specification: list[tuple[int, int, int]], at: int) -> tuple[dict[int, Value], int]:
        data = self._data
        found: dict[int, Value] = {}
        for attribute, form, constant in specification:
            size = _FIXED.get(form)
            wanted = attribute in _WANTED
            if size is None:
                value, at = self._variable(form, at)
                if wanted:
                    found[attribute] = value
            else:
                if wanted:
                    number = constant if form == 0x21 else int.from_bytes(data[at : at + size], "little")
                    found[attribute] = self._value(form, number, attribute)
                at += size
        return found, at

    def _value(self, form: int, number: int, attribute: int) -> Value:
        if form in _UNIT_REFERENCES:
            return self._start + number
        if form == 0x19:
            return 1
        if form in (0x0E, 0x1F):
            return _string(self._sections[".debug_str" if form == 0x0E else ".debug_line_str"], number)
        if form in _STRX:
            return self._indexed(number)
        if form == _SIGNATURE:
            return f"type {number:016x}"
        if form == 0x17 and attribute == STR_OFFSETS_BASE:
            self._offsets_base = number
        elif form in (0x17, 0x06) and attribute == LOCATION and self._version < 3:
            return None
        return number

    def _indexed(self, index: int) -> str:
        """String number ``index``; the base is an attribute of the unit that may come later, and is 8 in objects."""
        at = self._offsets_base + 4 * index
        (offset,) = struct.unpack_from("<I", self._sections[".debug_str_offsets"], at)
        return _string(self._sections[".debug_str"], offset)

    def _variable(self, form: int, at: int) -> tuple[Value, int]:
        """A value of a form without a fixed size."""
        data = self._data
        if form == 0x08:  # string
            end = data.index(b"\0", at)
            return data[at:end].decode(errors="replace"), end + 1
        if form == 0x0D:  # sdata
            return sleb(data, at)
        if form in (0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23):  # udata ref_udata strx addrx loclistx rnglistx
            number, at = uleb(data, at)
            return (self._start + number if form == 0x15 else self._indexed(number) if form == 0x1A else number), at
        if form == 0x16:  # indirect
            actual, at = uleb(data, at)
            if actual in _FIXED:
                number = int.from_bytes(data[at : at + _FIXED[actual]], "little")
                return self._value(actual, number, 0), at + _FIXED[actual]
            return self._variable(actual, at)
        if form in (0x09, 0x18):  # block, exprloc
            size, at = uleb(data, at)
        elif form in (0x03, 0x04, 0x0A):  # block2, block4, block1
            width = {0x03: 2, 0x04: 4, 0x0A: 1}[form]
            size, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise KeyError(f"form {form:#x}")
        block = data[at : at + size]
        if block[:1] == b"\x23":  # DW_OP_plus_uconst: member location of old producers
            return uleb(block, 1)[0], at + size
        return self._places.symbol(block, at), at + size


@dataclass(frozen=True, slots=True)
class _Places:
    """What the relocations of locations say: names of symbols by offset in .debug_info and .debug_addr.

    ``local``: there are static variables inside of functions (their symbols are called n.1, f.n, or _ZZ1fvE1n).
    """

    info: dict[int, str]
    addresses: dict[int, str]
    local: bool

    @classmethod
    def of(cls, file: Path) -> _Places:
        info: dict[int, str] = {}
        addresses: dict[int, str] = {}
        with open_object(file) as elf:
            symbols = elf.symbols()
            data = [s for s in symbols if s.name and s.section is not None and s.type in ("object", "tls")]
            if not any("." in s.name or s.name.startswith("_ZZ") for s in data):
                return cls(info, addresses, False)
            names = {(s.section, s.value): s.name for s in data}
            for section in elf.sections:
                found = {".debug_info": info, ".debug_addr": addresses}.get(section.name)
                for item in elf.relocations(section) if found is not None else ():
                    symbol = symbols[item.symbol]
                    name = names.get((symbol.section, symbol.value + item.addend))
                    if found is not None and name is not None:
                        found[item.offset] = name
        return cls(info, addresses, True)

    def symbol(self, block: bytes, at: int) -> str | None:
        """The symbol whose address the expression ``block`` (at ``at`` in .debug_info) gives."""
        if block[:1] and block[0] in _OP_ADDRESS:
            return self.info.get(at + 1)
        if block[:1] and block[0] in _OP_INDEX:
            return self.addresses.get(_ADDRESSES_START + 8 * uleb(block, 1)[0])
        return None


def _read_sections(file: Path) -> dict[str, bytes]:
    """The debug sections needed, relocated: in an object only offsets into other debug sections are of interest."""
    wanted = (".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str", ".debug_str_offsets")
    found: dict[str, bytes] = {}
    with open_object(file) as elf:
        symbols = elf.symbols()
        for section in elf.sections:
            if section.name not in wanted or section.name in found:
                continue
            data = elf.section_data(section)
            if section.flags & SHF_COMPRESSED:
                data = zlib.decompress(data[24:])
            relocations = elf.relocations(section)
            if relocations:
                buffer = bytearray(data)
                for relocation in relocations:
                    if relocation.type == 10:  # R_X86_64_32
                        value = symbols[relocation.symbol].value + relocation.addend
                        struct.pack_into("<I", buffer, relocation.offset, value & 0xFFFFFFFF)
                data = bytes(buffer)
            found[section.name] = data
    return found


def fingerprint(file: Path) -> Iterator[bytes]:
    """What the types of an object are read from, unrelocated: equal fingerprints, equal types."""
    with open_object(file) as elf:
        for section in elf.sections:
            if section.name.startswith((".debug_info", ".debug_abbrev", ".debug_str", ".rela.debug_info")):
                yield section.name.encode() + b"\0" + elf.section_data(section)


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode(errors="replace")


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned LEB128 number; returns it and the offset after it."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at + 1


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Decode a signed LEB128 number; returns it and the offset after it."""
    start = at
    value, at = uleb(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> (bits - 1) else value), at
