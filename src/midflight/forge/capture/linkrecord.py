"""What went into a link: the objects and archive members that the linker took, with the hash of each.

Used by the wrapper at the moment of the link (later steps may move or overwrite anything), therefore as independent of
the package as ``wrapper.py`` is. The evidence is the linker's own map; its formats are those of GNU ld and gold ("LOAD
file", sections followed by ``archive(member)``) and of lld and mold (``file:(section)``). Archives: ``ar(5)``, GNU
variant, thin too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

_MEMBER = r"(?P<archive>\S.*?)\((?P<member>[^()]+)\)"
_GNU_MEMBER = re.compile(r"^(?:.*\s0x[0-9a-f]+\s+0x[0-9a-f]+\s+)?" + _MEMBER + r"(?:\s.*)?$")
_GNU_LOAD = re.compile(r"^LOAD (?P<file>.+)$")
_GNU_FILE = re.compile(r"^(?:\s+\S+)?\s+0x[0-9a-f]+\s+0x[0-9a-f]+\s+(?P<file>\S.*)$")
_LLD = re.compile(r"^\s*[0-9a-f]+\s+[0-9a-f]+\s+(?:[0-9a-f]+\s+)?\d+\s+(?P<file>\S.*?):\([^()]*\)$")
_ARCHIVE_MEMBER = re.compile(r"^" + _MEMBER + r"$")

Input = tuple[str, str, str]
"""(file, member or "", SHA-256 of the object)."""


def digest(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_object(data: bytes) -> bool:
    """Whether these leading bytes are of a relocatable ELF file (or of LLVM bitcode, which stands for one), or of a
    COFF object for x86-64: it has no optional header, as images have."""
    if data[:2] == b"\x64\x86":
        return data[16:18] == b"\0\0"
    return (data[:4] == b"\x7fELF" and data[16:18] in (b"\x01\x00", b"\x00\x01")) or data[:4] == b"BC\xc0\xde"


def link_inputs(cwd: str, arguments: list[str], output: str, map_file: str) -> list[Input]:
    """Objects of a link in the order in which the linker took them, each once."""
    files: dict[str, None] = {}
    members: dict[tuple[str, str], None] = {}
    skip = {output, "-o" + output}
    for argument in arguments:
        path = argument[8:] if argument.startswith("-Wl,") and argument.count(",") == 1 else argument
        if path not in skip and not path.startswith("-"):
            files.setdefault(path)
    for entry in read_map(map_file):
        if isinstance(entry, str):
            files.setdefault(entry)
        else:
            members.setdefault(entry)
    result: dict[Input, None] = {}
    for name in files:
        path = os.path.normpath(os.path.join(cwd, name))
        if os.path.isfile(path) and starts_as_object(path):
            result.setdefault((path, "", digest(path)))
    wanted: dict[str, set[str]] = {}
    for archive, member in members:
        path = os.path.normpath(os.path.join(cwd, archive))
        if os.path.isfile(path):
            wanted.setdefault(path, set()).add(member)
    for path, names in wanted.items():
        for name, data in archive_members(path):
            if name in names or os.path.basename(name) in names:
                result.setdefault((path, name, hashlib.sha256(data).hexdigest()))
    return list(result)


def starts_as_object(path: str) -> bool:
    """Whether a file is a relocatable object."""
    with open(path, "rb") as file:
        return is_object(file.read(18))


def read_map(map_file: str) -> Iterator[str | tuple[str, str]]:
    """Files and (archive, member) that a linker map names; what only looks like one is told apart by the caller."""
    try:
        file = open(map_file, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except OSError:
        return
    with file:
        for line in file:
            line = line.rstrip("\n")
            if found := _GNU_LOAD.match(line):
                yield found["file"]
            elif found := _LLD.match(line):
                inner = _ARCHIVE_MEMBER.match(found["file"])
                yield (inner["archive"], inner["member"]) if inner else found["file"]
            elif found := _GNU_MEMBER.match(line):
                yield found["archive"], found["member"]
            elif found := _GNU_FILE.match(line):
                yield found["file"]  # members of thin archives are shown as the files they are


def archive_members(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of an archive; a damaged one ends early, a thin one is followed to its files."""
    with open(path, "rb") as file:
        magic = file.read(8)
        if magic not in (b"!<arch>\n", b"!<thin>\n"):
            return
        thin = magic == b"!<thin>\n"
        names = b""
        while len(header := file.read(60)) == 60 and header[58:] == b"`\n":
            field = header[:16].rstrip(b" ")
            try:
                size = int(header[48:58])
            except ValueError:
                return
            special = field in (b"/", b"//", b"/SYM64/")
            data = b"" if thin and not special else file.read(size)
            if (not thin or special) and size % 2:
                file.read(1)
            if field == b"//":
                names = data
            if special:
                continue
            if field.startswith(b"#1/"):
                length = int(field[3:])
                name, data = data[:length].rstrip(b"\0"), data[length:]
            elif field.startswith(b"/"):
                start = int(field[1:].partition(b":")[0])
                name = names[start:].partition(b"\n")[0].removesuffix(b"/")
            else:
                name = field.removesuffix(b"/")
            text = os.fsdecode(name)
            if thin:
                target = os.path.join(os.path.dirname(path), text)
                try:
                    with open(target, "rb") as member:
                        data = member.read()
                except OSError:
                    continue
            yield text, data
