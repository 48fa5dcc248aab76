"""Relocation types of x86-64 by name, and what the forge needs to know of them. Source: AMD64 psABI, table 4.9.

Those of COFF are read as their counterparts in ELF, see :mod:`midflight.image.coffobject`.
"""

from __future__ import annotations

from midflight.image.coffobject import R_RVA32, R_UNKNOWN

NONE, R_64, PC32, PLT32, GLOB_DAT, JUMP_SLOT, RELATIVE, GOTPCREL, R_32, R_32S = 0, 1, 2, 4, 6, 7, 8, 9, 10, 11
DTPMOD64, DTPOFF64, TPOFF64, TLSGD, TLSLD, DTPOFF32, GOTTPOFF, TPOFF32, PC64 = 16, 17, 18, 19, 20, 21, 22, 23, 24
GOTOFF64, GOTPC32, GOTPC32_TLSDESC, TLSDESC_CALL, TLSDESC, IRELATIVE, GOTPCRELX, REX_GOTPCRELX = (
    25,
    26,
    34,
    35,
    36,
    37,
    41,
    42,
)
COPY = 5
RVA32 = R_RVA32
"""COFF alone: four bytes, S + A - the image base."""

GOT_SLOT = frozenset({GOTPCREL, GOTPCRELX, REX_GOTPCRELX})
TLS_SLOT = frozenset({TLSGD, TLSLD, GOTTPOFF, GOTPC32_TLSDESC})
MARKS = frozenset({NONE, TLSDESC_CALL})
"""They mark an instruction and fill nothing."""

FIELD_SIZE = {
    R_64: 8,
    PC32: 4,
    PLT32: 4,
    GOTPCREL: 4,
    R_32: 4,
    R_32S: 4,
    DTPOFF64: 8,
    TPOFF64: 8,
    TLSGD: 4,
    TLSLD: 4,
    DTPOFF32: 4,
    GOTTPOFF: 4,
    TPOFF32: 4,
    PC64: 8,
    GOTPC32: 4,
    GOTPC32_TLSDESC: 4,
    GOTPCRELX: 4,
    REX_GOTPCRELX: 4,
    RVA32: 4,
}

_NAMES = {
    1: "64", 2: "PC32", 3: "GOT32", 4: "PLT32", 9: "GOTPCREL", 10: "32", 11: "32S", 12: "16", 13: "PC16", 14: "8",
    15: "PC8", 17: "DTPOFF64", 18: "TPOFF64", 19: "TLSGD", 20: "TLSLD", 21: "DTPOFF32", 22: "GOTTPOFF", 23: "TPOFF32",
    24: "PC64", 25: "GOTOFF64", 26: "GOTPC32", 27: "GOT64", 28: "GOTPCREL64", 29: "GOTPC64", 31: "PLTOFF64",
    32: "SIZE32", 33: "SIZE64", 34: "GOTPC32_TLSDESC", 35: "TLSDESC_CALL", 41: "GOTPCRELX", 42: "REX_GOTPCRELX",
}  # fmt: skip


def name(type_: int) -> str:
    """The name that readelf gives the type, or that the PE format gives one that ELF has not."""
    if type_ >= R_RVA32:
        return "IMAGE_REL_AMD64_ADDR32NB" if type_ == RVA32 else f"IMAGE_REL_AMD64_{type_ - R_UNKNOWN:#x}"
    return f"R_X86_64_{_NAMES.get(type_, str(type_))}"
