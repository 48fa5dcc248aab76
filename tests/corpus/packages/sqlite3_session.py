"""sqlite3: one source file of 240,000 lines; Debian ships it with this fix."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Fixed, HostProgram, Package, Patched, Patches, Shipped, ShippedCase, library

FIX = "0001-Fix-a-buffer-overread-in-the-sessions-extension-that.patch"

SQLITE = Package(
    "sqlite3",
    "3.40.1-2+deb12u2",
    f"[ -e Makefile ] || ./configure --disable-tcl --enable-session CFLAGS='{FLAGS}'; make -j2 libsqlite3.la",
    ".libs/libsqlite3.so.0.8.6",
)

CASES = (
    Case(
        SQLITE,
        "CVE-2023-7104",
        (FIX,),
        Patched(library, frozenset({"sessionReadRecord"}), HostProgram("sqlite3.c", (".libs/libsqlite3.so",))),
    ),
    ShippedCase(
        Shipped("sqlite3", "libsqlite3-0", "3.40.1-2+deb12u2", "libsqlite3.so.0.8.6"),
        "CVE-2023-7104",
        # the changelog names the CVE, and nothing says which of its three patches is the fix
        Patches((FIX,), "3.40.1-2+deb12u2"),
        Fixed(),
    ),
)
