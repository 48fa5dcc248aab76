"""libarchive as Debian ships it."""

from __future__ import annotations

from tests.corpus.model import HostProgram, Patched, Shipped, ShippedCase, library

LIBARCHIVE = Shipped("libarchive", "libarchive13", "3.6.2-1+deb12u4", "libarchive.so.13.6.2")

CASES = (
    ShippedCase(
        LIBARCHIVE,
        "CVE-2026-16517",
        "CVE-2026-16517",
        # static; its address stands in the state of each archive that is being written
        Patched(
            library,
            frozenset({"archive_write_zip_header"}),
            HostProgram("libarchive.c", options=("-larchive",)),
        ),
    ),
)
