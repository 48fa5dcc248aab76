"""Reads the call frame information (.eh_frame) of an object before it is linked, relocations and all.

Sources of knowledge: Linux Standard Base 5.0, chapter 10.6 (CIE, FDE, augmentation "zPLR"), DWARF 5 section 6.4, and
table 10.5 of the LSB for pointer encodings.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from midflight.errors import ImageError
from midflight.forge.difference.dwarf import sleb, uleb
from midflight.forge.rawobject import RawObject
from midflight.image.model import Relocation

OMIT = 0xFF
_POINTER_SIZES = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}


@dataclass(frozen=True, slots=True)
class Cie:
    """A common information entry. ``data`` is the whole entry, its length field included, fields not relocated."""

    data: bytes
    augmentation: str
    code_alignment: int
    data_alignment: int
    return_register: int
    pointer_encoding: int
    """Of pc_begin and pc_range (DW_EH_PE_*)."""
    lsda_encoding: int
    personality_encoding: int
    personality: Relocation | None
    """Relocation of the personality pointer: S + A is the routine, or the DW.ref slot if the encoding is indirect."""
    instructions: bytes


@dataclass(frozen=True, slots=True)
class RawFde:
    """A frame description entry: ``start`` and ``lsda`` are relocations whose S + A is the place that is meant."""

    cie: Cie
    start: Relocation
    size: int
    lsda: Relocation | None
    instructions: bytes


def read_frames(raw: RawObject) -> tuple[RawFde, ...]:
    """All frame description entries of an object.

    Raises:
        ImageError: the section is malformed or of an unknown kind.
    """
    found: list[RawFde] = []
    for section in raw.sections:
        if section.name != ".eh_frame" or not section.size:
            continue
        relocations = {item.offset: item for item in raw.relocations(section.index)}
        try:
            found.extend(_read_section(raw.content(section.index), relocations))
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ImageError(f"{raw.name}: its .eh_frame cannot be read ({error!r}); rebuild the object") from None
    return tuple(found)


def _read_section(data: bytes, relocations: Mapping[int, Relocation]) -> list[RawFde]:
    cies: dict[int, Cie] = {}
    fdes: list[RawFde] = []
    at = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        if length == 0:
            at += 4
            continue
        if length == 0xFFFFFFFF or at + 4 + length > len(data):
            raise KeyError("length")
        body, end = at + 4, at + 4 + length
        (pointer,) = struct.unpack_from("<I", data, body)
        if pointer == 0:
            cies[at] = _read_cie(data, at, end, relocations)
        else:
            fdes.append(_read_fde(data, body + 4, end, cies[body - pointer], relocations))
        at = end
    return fdes


def _read_cie(data: bytes, start: int, end: int, relocations: Mapping[int, Relocation]) -> Cie:
    at = start + 8
    version = data[at]
    stop = data.index(b"\0", at + 1)
    augmentation = data[at + 1 : stop].decode("ascii")
    code, at = uleb(data, stop + 1)
    align, at = sleb(data, at)
    register, at = (data[at], at + 1) if version == 1 else uleb(data, at)
    pointer = 0
    lsda = personality_encoding = OMIT
    personality = None
    if augmentation.startswith("z"):
        size, at = uleb(data, at)
        after = at + size
        for letter in augmentation[1:]:
            if letter == "R":
                pointer, at = data[at], at + 1
            elif letter == "L":
                lsda, at = data[at], at + 1
            elif letter == "P":
                personality_encoding = data[at]
                personality = relocations.get(at + 1)
                at += 1 + _POINTER_SIZES[personality_encoding & 0xF]
            elif letter not in "SB":
                raise KeyError(f"augmentation {augmentation}")
        at = after
    elif augmentation:
        raise KeyError(f"augmentation {augmentation}")
    return Cie(
        data[start:end],
        augmentation,
        code,
        align,
        register,
        pointer,
        lsda,
        personality_encoding,
        personality,
        data[at:end],
    )


def _read_fde(data: bytes, at: int, end: int, cie: Cie, relocations: Mapping[int, Relocation]) -> RawFde:
    start = relocations[at]
    width = _POINTER_SIZES[cie.pointer_encoding & 0xF]
    size = int.from_bytes(data[at + width : at + 2 * width], "little")
    at += 2 * width
    lsda = None
    if cie.augmentation.startswith("z"):
        length, at = uleb(data, at)
        if cie.lsda_encoding != OMIT and length:
            lsda = relocations.get(at)
        at += length
    return RawFde(cie, start, size, lsda, data[at:end])
