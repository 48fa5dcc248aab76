"""Reads the line number programs in an object's .debug_line, which nothing has linked yet.

Source: DWARF 5 section 6.2 and DWARF 4 section 6.2 (versions 2 to 5, 32-bit format). In an object the operand of
DW_LNE_set_address is 0; its relocation says which section the sequence belongs to.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ImageError
from midflight.forge.difference.dwarf import SHF_COMPRESSED, sleb, uleb
from midflight.image.binary import open_object

_R_X86_64_64, _R_X86_64_32 = 1, 10
_PATH, _DIRECTORY_INDEX = 1, 2


@dataclass(frozen=True, slots=True)
class Row:
    """From this address on (relative to the section) the code belongs to this line."""

    address: int
    line: int
    file: str = ""
    """As far as the table tells its directory."""


@dataclass(frozen=True, slots=True)
class LineInfo:
    """``rows`` by section name, in the order of the table; sections of a name that occurs twice are left out.
    ``files`` are the source files, as far as the tables tell their directories."""

    rows: Mapping[str, tuple[Row, ...]]
    files: tuple[str, ...]
    numbered: Mapping[int, str]
    """Files by the number that attributes as DW_AT_decl_file have; empty where several tables number them."""


def read_line_info(file: Path) -> LineInfo:
    """Read all line tables of an object.

    Raises:
        ImageError: they are malformed, or of a kind that is not supported.
    """
    try:
        return _Reader(file).read()
    except (struct.error, IndexError, KeyError, ValueError, zlib.error) as error:
        raise ImageError(f"{file}: its line tables cannot be read ({error!r}); build it anew with -g") from None


class _Reader:
    def __init__(self, file: Path) -> None:
        self._strings: dict[str, bytes] = {}
        self._addresses: dict[int, tuple[str, int]] = {}
        self._data = b""
        self._twice: set[str] = set()
        with open_object(file) as elf:
            names = [section.name for section in elf.sections]
            self._twice = (
                {name for name in set(names) if names.count(name) > 1} if len(set(names)) < len(names) else set()
            )
            symbols = elf.symbols()
            for section in elf.sections:
                if section.name not in (".debug_line", ".debug_str", ".debug_line_str"):
                    continue
                data = elf.section_data(section)
                if section.flags & SHF_COMPRESSED:
                    data = zlib.decompress(data[24:])
                if section.name != ".debug_line":
                    self._strings[section.name] = data
                    continue
                buffer = bytearray(data)
                for relocation in elf.relocations(section):
                    symbol = symbols[relocation.symbol]
                    value = symbol.value + relocation.addend
                    if relocation.type == _R_X86_64_32:
                        struct.pack_into("<I", buffer, relocation.offset, value)
                    elif relocation.type == _R_X86_64_64 and symbol.section is not None:
                        self._addresses[relocation.offset] = names[symbol.section], value
                self._data = bytes(buffer)
        self._rows: dict[str, list[Row]] = {}
        self._files: list[str] = []
        self._numbered: dict[int, str] = {}
        self._programs = 0

    def read(self) -> LineInfo:
        at = 0
        while at + 4 <= len(self._data):
            (length,) = struct.unpack_from("<I", self._data, at)
            if length >= 0xFFFFFFF0:
                raise KeyError("64-bit DWARF")
            self._read_program(at + 4, at + 4 + length)
            at += 4 + length
        rows = {name: tuple(found) for name, found in self._rows.items() if name not in self._twice}
        return LineInfo(rows, tuple(dict.fromkeys(self._files)), self._numbered if self._programs == 1 else {})

    def _read_program(self, at: int, end: int) -> None:
        data = self._data
        (version,) = struct.unpack_from("<H", data, at)
        if not 2 <= version <= 5:
            raise KeyError(f"line table version {version}")
        at += 4 if version == 5 else 2
        (header_length,) = struct.unpack_from("<I", data, at)
        at += 4
        start = at + header_length
        unit = data[at]
        at += 3 if version >= 4 else 2
        base, span, opcodes = struct.unpack_from("<bBB", data, at)
        at += 3
        lengths = data[at : at + opcodes - 1]
        self._read_files(at + opcodes - 1, version)
        self._run(start, end, unit, base, span, lengths)

    # --- source files --------------------------------------------------------------------------------------------

    def _read_files(self, at: int, version: int) -> None:
        folders: list[str] = []
        entries: list[tuple[str, int]] = []
        if version == 5:
            folder_entries, at = self._read_entries(at)
            entries, at = self._read_entries(at)
            folders = [path for path, _ in folder_entries]
        else:
            folders.append("")  # the directory of the compilation, which only .debug_info tells
            while self._data[at]:
                text, at = self._text(self._data, at)
                folders.append(text)
            at += 1
            while self._data[at]:
                text, at = self._text(self._data, at)
                folder, at = uleb(self._data, at)
                _, at = uleb(self._data, at)
                _, at = uleb(self._data, at)
                entries.append((text, folder))
        root = Path(folders[0]) if folders else Path()
        names = [str(root / (folders[index] if index < len(folders) else "") / path) for path, index in entries]
        self._files += names
        self._numbered = dict(enumerate(names, 0 if version == 5 else 1))
        self._programs += 1

    def _read_entries(self, at: int) -> tuple[list[tuple[str, int]], int]:
        """A table of version 5: (path, directory index) of each entry, whatever else its format holds."""
        data = self._data
        formats = []
        count, at = data[at], at + 1
        for _ in range(count):
            content, at = uleb(data, at)
            form, at = uleb(data, at)
            formats.append((content, form))
        count, at = uleb(data, at)
        found = []
        for _ in range(count):
            path, index = "", 0
            for content, form in formats:
                value, at = self._form(form, at)
                if content == _PATH and isinstance(value, str):
                    path = value
                elif content == _DIRECTORY_INDEX and isinstance(value, int):
                    index = value
            found.append((path, index))
        return found, at

    def _form(self, form: int, at: int) -> tuple[str | int | None, int]:
        data = self._data
        if form == 0x08:
            return self._text(data, at)
        if form in (0x0E, 0x1F):
            (offset,) = struct.unpack_from("<I", data, at)
            return self._text(self._strings[".debug_str" if form == 0x0E else ".debug_line_str"], offset)[0], at + 4
        if form == 0x0F:
            return uleb(data, at)
        if form == 0x09:
            size, at = uleb(data, at)
            return None, at + size
        size = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}[form]
        return int.from_bytes(data[at : at + size], "little"), at + size

    @staticmethod
    def _text(data: bytes, at: int) -> tuple[str, int]:
        end = data.index(b"\0", at)
        return data[at:end].decode(errors="replace"), end + 1

    # --- the program ---------------------------------------------------------------------------------------------

    def _run(self, at: int, end: int, unit: int, base: int, span: int, lengths: bytes) -> None:
        data, first_special = self._data, len(lengths) + 1
        rows: list[Row] = []
        address, line, file = 0, 1, 1
        while at < end:
            opcode = data[at]
            at += 1
            if opcode >= first_special:
                advance, shift = divmod(opcode - first_special, span)
                address += advance * unit
                line += base + shift
                rows.append(Row(address, line, self._numbered.get(file, "")))
            elif opcode == 0:
                size, at = uleb(data, at)
                if data[at] == 1:  # end_sequence
                    rows, address, line, file = [], 0, 1, 1
                elif data[at] == 2:  # set_address
                    name, address = self._addresses[at + 1]
                    rows = self._rows.setdefault(name, [])
                at += size
            elif opcode == 1:  # copy
                rows.append(Row(address, line, self._numbered.get(file, "")))
            elif opcode == 2:  # advance_pc
                advance, at = uleb(data, at)
                address += advance * unit
            elif opcode == 3:  # advance_line
                shift, at = sleb(data, at)
                line += shift
            elif opcode == 4:  # set_file
                file, at = uleb(data, at)
            elif opcode == 8:  # const_add_pc
                address += (255 - first_special) // span * unit
            elif opcode == 9:  # fixed_advance_pc
                address += struct.unpack_from("<H", data, at)[0]
                at += 2
            else:
                for _ in range(lengths[opcode - 1]):
                    _, at = uleb(data, at)
