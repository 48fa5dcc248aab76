"""libcap: the fix calls what the library never called; Debian ships it with the fix."""

from __future__ import annotations

from tests.corpus.model import Case, Fixed, HostProgram, Package, Patched, Shipped, ShippedCase, library

FIX = "Address-a-potential-TOCTOU-race-condition-in-cap_set_file.patch"

LIBCAP = Package(
    "libcap2",
    "1:2.66-4+deb12u3",
    "make -C libcap GOLANG=no COPTS='-O2 -g' libcap.so.2.66",
    "libcap/libcap.so.2.66",
)

CASES = (
    Case(
        LIBCAP,
        "CVE-2026-4878",
        (FIX,),
        Patched(
            library,
            frozenset({"cap_set_file"}),
            HostProgram("libcap.c", ("libcap/libcap.so",), ("libcap/include",)),
        ),
        quick=True,
    ),
    ShippedCase(
        Shipped("libcap2", "libcap2", "1:2.66-4+deb12u3+b1", "libcap.so.2.66"),
        "CVE-2026-4878",
        "CVE-2026-4878",
        Fixed(),
        quick=True,
    ),
)
