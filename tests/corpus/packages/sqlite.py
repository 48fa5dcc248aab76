"""sqlite3: one object of nine megabytes."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

SQLITE = Package(
    "sqlite3",
    "3.40.1-2+deb12u2",
    f"[ -e Makefile ] || ./configure --disable-static --disable-tcl --disable-readline CFLAGS='{FLAGS}';"
    " make -j2 libsqlite3.la",
    ".libs/libsqlite3.so.0.8.6",
)

CASES = (
    Case(
        SQLITE,
        "CVE-2025-6965",
        ("42-CVE-2025-6965.patch",),
        # two members of 16 bits become ints
        Refused(frozenset({"MF111"}), frozenset({"AggInfo"})),
    ),
)
