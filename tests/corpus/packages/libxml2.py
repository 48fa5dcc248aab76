"""libxml2: a large library with hidden state behind its pointers."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, Refused, library

LIBXML2 = Package(
    "libxml2",
    "2.9.14+dfsg-1.3~deb12u6",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --without-python --without-lzma"
    f" --without-zlib --without-iconv CFLAGS='{FLAGS}'; }}; make -j2 libxml2.la",
    ".libs/libxml2.so.2.9.14",
    ("CVE-2023-29469-Hashing-of-empty-dict-strings-isn-t-d.patch", "CVE-2026-0989.patch"),
)

CASES = (
    Case(
        LIBXML2,
        "CVE-2023-29469",
        ("CVE-2023-29469-Hashing-of-empty-dict-strings-isn-t-d.patch",),
        # a jump table goes along
        Patched(
            library,
            frozenset({"xmlDictComputeFastKey"}),
            HostProgram("libxml2.c", (".libs/libxml2.so",), ("include",)),
        ),
        reviewed={
            "MF171:xmlDictComputeFastKey": "Only the hash of empty strings changes. A dictionary from before may hold "
            "the empty string under several hashes: it is found as another entry then, as without the fix. Every entry "
            "is freed with its dictionary, which goes through all chains."
        },
    ),
    Case(
        LIBXML2,
        "CVE-2026-0989",
        ("CVE-2026-0989.patch",),
        # a member is added in a hole of the struct: its size stays
        Refused(frozenset({"MF111"}), frozenset({"_xmlRelaxNGParserCtxt"})),
    ),
)
