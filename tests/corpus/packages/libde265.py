"""libde265: a member function in a header, which is inlined wherever it is used."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

LIBDE265 = Package(
    "libde265",
    "1.0.11-1+deb12u2",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --disable-dec265 --disable-sherlock265"
    f" CXXFLAGS='{FLAGS}' CFLAGS='{FLAGS}'; }}; make -C libde265 -j2",
    "libde265/.libs/libde265.so.0.1.4",
)

CASES = (
    Case(
        LIBDE265,
        "CVE-2023-49468",
        ("CVE-2023-49468.patch",),
        Patched(
            library,
            # all that read a mode; no function of the fixed one's own name is in the library
            frozenset(
                {
                    "_Z14draw_tree_gridPK11de265_imagePhiji8DrawMode",
                    "_Z15residual_codingP14thread_contextiiii",
                    "_Z16read_coding_unitP14thread_contextiiii",
                    "_ZL9decode_TUP14thread_contextiiiiii8PredModeb",
                }
            ),
            HostProgram("libde265.cpp", ("libde265/.libs/libde265.so",), (".", "libde265", "libde265/..")),
            proof="call",
        ),
        note="the mode is set by the host program, and read by the library's function that draws modes: a picture that "
        "leaves it unset needs a damaged stream",
    ),
)
