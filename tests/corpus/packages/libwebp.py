"""libwebp: a pointer becomes a struct, and a signature changes."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

LIBWEBP = Package(
    "libwebp",
    "1.2.4-0.2+deb12u1",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --disable-libwebpmux --disable-libwebpdemux"
    f" --disable-png --disable-jpeg --disable-tiff --disable-gif CFLAGS='{FLAGS}'; }};"
    " make -C sharpyuv -j2 && make -C src -j2",
    "src/.libs/libwebp.so.7.1.5",
)

CASES = (
    Case(
        LIBWEBP,
        "CVE-2023-4863",
        ("CVE-2023-4863.patch",),
        Refused(frozenset({"MF111"}), frozenset({"VP8LMetadata"})),
    ),
)
