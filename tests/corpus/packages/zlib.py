"""zlib as Debian ships it: a hole that Debian left open, and a fix that we wrote."""

from __future__ import annotations

from tests.corpus.model import Edit, HostProgram, Patched, Shipped, ShippedCase, library

ZLIB = Shipped("zlib", "zlib1g", "1:1.2.13.dfsg-1", "libz.so.1.2.13")

_CHECK = "    if (len2 < 0)\n        return 0;\n"

CASES = (
    ShippedCase(
        ZLIB,
        "CVE-2026-27171",
        tuple(
            Edit("crc32.c", line, _CHECK + line)
            for line in (
                "    return multmodp(x2nmodp(len2, 3), crc1) ^ (crc2 & 0xffffffff);\n",
                "    return x2nmodp(len2, 3);\n",
            )
        ),
        # crc32_combine and crc32_combine_gen call them through the PLT
        Patched(
            library,
            frozenset({"crc32_combine64", "crc32_combine_gen64"}),
            HostProgram("zlib.c", options=("-lz",)),
        ),
        quick=True,
        note="Debian has no fix; this one is ours",
        reviewed={
            f"MF171:{function}": "a length that is no length has no checksum; all others are what they were"
            for function in ("crc32_combine64", "crc32_combine_gen64")
        },
    ),
)
