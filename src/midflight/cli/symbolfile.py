"""Writes the new code of a process as ELF files that debuggers read: its symbols and its unwind data.

What a hotpatch brings lies in memory that no file backs, so a debugger knows neither names nor frames there. These
files have the code at the addresses where it runs. Source: System V gABI, chapter 4; gdb's manual, "add-symbol-file".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midflight.engine.ledger import Ledger
    from midflight.process.model import Process

_PROGBITS, _SYMTAB, _STRTAB = 1, 2, 3
_ALLOC, _EXECUTE = 2, 4
_HEADER, _SECTION, _SYMBOL = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_GLOBAL_FUNCTION = 0x12


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    type: int
    contents: bytes
    address: int = 0
    flags: int = 0
    link: int = 0
    info: int = 0
    entry: int = 0


class _Strings:
    """A string table that grows."""

    def __init__(self) -> None:
        self.contents = bytearray(b"\0")

    def add(self, text: str) -> int:
        at = len(self.contents)
        self.contents += text.encode() + b"\0"
        return at


def elf_file(
    code: tuple[int, bytes], frames: tuple[int, bytes] | None, symbols: Sequence[tuple[str, int, int]]
) -> bytes:
    """An ELF executable file for debuggers.

    Args:
        code: address and bytes of the code.
        frames: address and bytes of the .eh_frame.
        symbols: name, address and size of functions in the code.
    """
    names = _Strings()
    table = bytearray(_SYMBOL.size)
    for name, address, size in symbols:
        table += _SYMBOL.pack(names.add(name), _GLOBAL_FUNCTION, 0, 1, address, size)
    parts = [_Part("", 0, b""), _Part(".text", _PROGBITS, code[1], code[0], _ALLOC | _EXECUTE)]
    if frames is not None:
        parts.append(_Part(".eh_frame", _PROGBITS, frames[1], frames[0], _ALLOC))
    parts.append(_Part(".symtab", _SYMTAB, bytes(table), link=len(parts) + 1, info=1, entry=_SYMBOL.size))
    parts.append(_Part(".strtab", _STRTAB, bytes(names.contents)))
    return _write([*parts, _Part(".shstrtab", _STRTAB, b"")])


def _write(parts: list[_Part]) -> bytes:
    """The file: header, contents, section headers. The last part is the table of section names."""
    names = _Strings()
    offsets = [names.add(part.name) if part.name else 0 for part in parts]
    contents = [*(part.contents for part in parts[:-1]), bytes(names.contents)]
    body, headers = bytearray(), bytearray()
    for part, name, data in zip(parts, offsets, contents, strict=True):
        body += bytes(-len(body) % 16)
        at = _HEADER.size + len(body) if part.type else 0
        alignment = 16 if part.type == _PROGBITS else int(bool(part.type))
        headers += _SECTION.pack(
            name, part.type, part.flags, part.address, at, len(data), part.link, part.info, alignment, part.entry
        )
        body += data
    body += bytes(-len(body) % 16)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _HEADER.pack(
        identity, 2, 62, 1, 0, 0, _HEADER.size + len(body), 0, _HEADER.size, 0, 0, _SECTION.size, len(parts),
        len(parts) - 1,
    )  # fmt: skip
    return header + bytes(body) + bytes(headers)


def write_symbol_files(process: Process, ledgers: Sequence[Ledger], folder: Path) -> Path:
    """Write an ELF file for each hotpatch of a process, and PID.gdb with the commands that load them.

    Raises:
        ProcessError: memory cannot be read.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commands = []
    for number, ledger in enumerate(ledgers):
        record = ledger.record
        code = next((s for s in record.segments if s.kind == "code"), None)
        if code is None:
            continue
        frames = None
        if record.unwind is not None:
            frames = record.unwind[0], process.read(*record.unwind)
        file = folder / f"{process.pid}-{number + 1}.elf"
        file.write_bytes(elf_file((code.address, process.read(code.address, code.size)), frames, record.symbols))
        commands.append(f"add-symbol-file {_quoted(file.absolute())}\n")
    script = folder / f"{process.pid}.gdb"
    script.write_text("set confirm off\n" + "".join(commands) + "set confirm on\n")
    return script


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
