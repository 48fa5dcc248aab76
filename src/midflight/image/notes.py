"""Note sections. Source: gABI 4.1 chapter 5 "Note Section"; gnu-gabi for NT_GNU_BUILD_ID."""

from __future__ import annotations

import struct

_NT_GNU_BUILD_ID = 3


def build_id_of(data: bytes, alignment: int) -> str | None:
    """The build-id among the notes, in lower-case hex, or None. Notes are padded to 4 bytes, or to 8 in a segment or
    section that is so aligned; what does not parse ends the search."""
    step = 8 if alignment == 8 else 4
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name = at + 12
        description = at + (12 + name_size + step - 1) // step * step
        if description + size > len(data):
            return None
        if kind == _NT_GNU_BUILD_ID and data[name : name + name_size] == b"GNU\0" and 1 <= size <= 64:
            return data[description : description + size].hex()
        at = description + (size + step - 1) // step * step
    return None
