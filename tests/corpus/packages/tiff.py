"""tiff: functions that a macro makes, known by pointers in each image that is being read."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

TIFF = Package(
    "tiff",
    "4.5.0-6+deb12u4",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --disable-jpeg --disable-zlib --disable-lzma"
    " --disable-zstd --disable-webp --disable-jbig --disable-lerc --disable-libdeflate --disable-cxx"
    f" CFLAGS='{FLAGS}'; }}; make -C libtiff -j2 libtiff.la",
    "libtiff/.libs/libtiff.so.6.0.0",
)

CASES = (
    Case(
        TIFF,
        "CVE-2026-4775",
        ("CVE-2026-4775.patch",),
        Patched(
            library,
            frozenset(f"putcontig8bitYCbCr{kind}tile" for kind in ("44", "42", "22", "12")),
            HostProgram("tiff.c", ("libtiff/.libs/libtiff.so",), ("libtiff",)),
        ),
    ),
)
