"""libarchive: small objects that live as long as an archive is open."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

LIBARCHIVE = Package(
    "libarchive",
    "3.6.2-1+deb12u5",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --disable-bsdtar --disable-bsdcpio"
    " --disable-bsdcat --without-lzma --without-zstd --without-lz4 --without-bz2lib --without-xml2 --without-expat"
    f" --without-nettle --without-openssl CFLAGS='{FLAGS}'; }}; make -j2 libarchive.la",
    ".libs/libarchive.so.13.6.2",
)

CASES = (
    Case(
        LIBARCHIVE,
        "CVE-2025-5918",
        ("CVE-2025-5918-pre1.patch", "CVE-2025-5918_1.patch", "CVE-2025-5918_2.patch"),
        Refused(frozenset({"MF111"}), frozenset({"read_fd_data", "read_FILE_data", "read_file_data"})),
    ),
)
