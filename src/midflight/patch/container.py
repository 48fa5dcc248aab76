"""The container of a hotpatch: a ZIP file (APPNOTE 6.3.10) of which exactly one encoding is accepted.

Members are stored, never compressed; headers have fixed timestamps, no extra fields, no comments. So the bytes of a
container follow from its member names and contents alone, and reading is: walk the local headers from the start, write
the headers anew, compare. Two ZIP readers cannot see two different archives in such a file, and nothing can be hidden
between, before or after the members. There is nothing to decompress, so there are no bombs (docs/adr/0010).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping

MAX_FILE = 64 << 20
"""Largest hotpatch file, in bytes."""
MAX_MEMBERS = 64
MAX_NAME = 200

_LOCAL = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # APPNOTE 4.3.12
_END = struct.Struct("<4s4H2IH")  # APPNOTE 4.3.16
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_NEEDS = 10  # version 1.0: stored members
_MADE_BY = (3 << 8) | 30  # Unix, so that the mode below counts
_DATE = (1 << 5) | 1  # 1980-01-01 00:00, the first moment that ZIP knows
_MODE = 0o100644 << 16  # a regular file; any other type (symbolic link, directory) differs and is refused

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*)*")


class ContainerError(ValueError):
    """The bytes are not a container as we write it; ``str()`` says what is wrong."""


def pack(members: Mapping[str, bytes]) -> bytes:
    """The one container with these members in this order.

    Raises:
        ContainerError: a name is not allowed, or the limits of a container are exceeded.
    """
    if len(members) > MAX_MEMBERS:
        raise ContainerError(f"would have {len(members)} members; at most {MAX_MEMBERS} are allowed")
    for name in members:
        _check_name(name.encode("utf-8", "surrogatepass"))
    checksums = [(name.encode(), len(data), zlib.crc32(data)) for name, data in members.items()]
    chunks: list[bytes] = []
    for (name_bytes, size, checksum), data in zip(checksums, members.values(), strict=True):
        chunks += [_local_header(name_bytes, size, checksum), data]
    chunks.append(_directory(checksums))
    packed = b"".join(chunks)
    if len(packed) > MAX_FILE:
        raise ContainerError(f"would have {len(packed)} bytes; at most {MAX_FILE} are allowed")
    return packed


def unpack(data: bytes) -> dict[str, bytes]:
    """The members of a container, in file order.

    Raises:
        ContainerError: anything at all differs from what :func:`pack` writes.
    """
    if len(data) > MAX_FILE:
        raise ContainerError(f"is larger than {MAX_FILE} bytes")
    if not data.startswith(_LOCAL_MAGIC[: len(data)]) or not data:
        raise ContainerError("is not a hotpatch file (it does not begin like one)")
    members: dict[str, bytes] = {}
    checksums: list[tuple[bytes, int, int]] = []
    position = 0
    while data[position : position + 4] == _LOCAL_MAGIC:
        name, content, checksum = _member(data, position)
        if len(members) == MAX_MEMBERS:
            raise ContainerError(f"has more than {MAX_MEMBERS} members")
        if name.decode() in members:
            raise ContainerError(f"has the member {name.decode()} twice")
        members[name.decode()] = content
        checksums.append((name, len(content), checksum))
        position += _LOCAL.size + len(name) + len(content)
    _check_directory(data[position:], _directory(checksums))
    return members


def _member(data: bytes, position: int) -> tuple[bytes, bytes, int]:
    """Name, content and checksum of the member whose local header is at ``position``."""
    if position + _LOCAL.size > len(data):
        raise ContainerError("is truncated (a member header is cut off)")
    fields = _LOCAL.unpack_from(data, position)
    flags, method, stored, size, name_size, extra = fields[2], fields[3], fields[7], fields[8], fields[9], fields[10]
    if flags & 1:
        raise ContainerError("has an encrypted member")
    if method != 0:
        raise ContainerError(f"has a compressed member (method {method}); members are stored as they are")
    if 0xFFFFFFFF in (stored, size):
        raise ContainerError("uses ZIP64, which a hotpatch never needs")
    if name_size > MAX_NAME:
        raise ContainerError(f"has a member name of {name_size} bytes; at most {MAX_NAME} are allowed")
    begin = position + _LOCAL.size + name_size
    if extra == 0 and (begin > len(data) or size > len(data) - begin):
        raise ContainerError("is truncated (a member is cut off)")
    name = data[position + _LOCAL.size : begin]
    _check_name(name)
    content = data[begin : begin + size]
    checksum = zlib.crc32(content)
    if data[position:begin] != _local_header(name, size, checksum):
        raise ContainerError(f"has a damaged or unusual header or content in member {name.decode()}")
    return name, content, checksum


def _check_name(name: bytes) -> None:
    text = name.decode("ascii", "replace")
    if len(name) > MAX_NAME or not name.isascii() or not _NAME.fullmatch(text):
        raise ContainerError(f"has a member name that is not allowed: {ascii(text)[:80]}")


def _check_directory(found: bytes, expected: bytes) -> None:
    if found == expected:
        return
    if expected.startswith(found):
        raise ContainerError("is truncated (its directory is cut off)")
    if found.startswith(expected):
        raise ContainerError(f"has {len(found) - len(expected)} bytes of something else at its end")
    raise ContainerError("has a directory that does not describe its members")


def _local_header(name: bytes, size: int, checksum: int) -> bytes:
    return _LOCAL.pack(_LOCAL_MAGIC, _NEEDS, 0, 0, 0, _DATE, checksum, size, size, len(name), 0) + name


def _directory(members: Iterable[tuple[bytes, int, int]]) -> bytes:
    """Central directory and end record for stored members of (name, size, checksum) that lie one after the other."""
    chunks: list[bytes] = []
    offset = count = 0
    for name, size, checksum in members:
        common = (_NEEDS, 0, 0, 0, _DATE, checksum, size, size, len(name), 0)
        chunks.append(_CENTRAL.pack(_CENTRAL_MAGIC, _MADE_BY, *common, 0, 0, 0, _MODE, offset) + name)
        offset += _LOCAL.size + len(name) + size
        count += 1
    directory = b"".join(chunks)
    return directory + _END.pack(_END_MAGIC, 0, 0, count, count, len(directory), offset, 0)
