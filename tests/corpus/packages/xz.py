"""xz as Debian ships it: three patches for one hole."""

from __future__ import annotations

from tests.corpus.model import HostProgram, Patched, Shipped, ShippedCase, library

CASES = (
    ShippedCase(
        Shipped("xz-utils", "liblzma5", "5.4.1-1+deb12u1", "liblzma.so.5.4.1"),
        "GHSA-5qpq-xqfv-j9pg",
        "=5.4.1-1+deb12u2",
        Patched(
            library,
            frozenset({"lzma_lz_decoder_init", "alone_decode", "lzip_decode", "microlzma_decode", "stream_decode_mt"}),
            HostProgram("liblzma.c", options=("-llzma",)),
        ),
    ),
)
