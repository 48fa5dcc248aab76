"""nghttp2: one function of 10 KB, with a large jump table."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

NGHTTP2 = Package(
    "nghttp2",
    "1.52.0-1+deb12u3",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --enable-lib-only --disable-static"
    f" CFLAGS='{FLAGS}'; }}; make -C lib -j2",
    "lib/.libs/libnghttp2.so.14.24.1",
)

CASES = (
    Case(
        NGHTTP2,
        "CVE-2026-27135",
        ("CVE-2026-27135.patch",),
        Patched(
            library,
            frozenset({"nghttp2_session_mem_recv"}),
            HostProgram("nghttp2.c", ("lib/.libs/libnghttp2.so",), ("lib/includes",)),
        ),
    ),
)
