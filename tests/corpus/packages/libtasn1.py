"""libtasn1: every parsed tree of the process is old."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

LIBTASN1 = Package(
    "libtasn1-6",
    "4.19.0-2+deb12u1",
    f"[ -e Makefile ] || ./configure --disable-static --disable-doc CFLAGS='{FLAGS}'; make -C lib -j2",
    "lib/.libs/libtasn1.so.6.6.3",
)

CASES = (
    Case(
        LIBTASN1,
        "CVE-2024-12133",
        ("0002-asn1_find_node-optimize-NUMBER-node-lookup-with-inde.patch",),
        Refused(frozenset({"MF111"}), frozenset({"asn1_node_st"})),
    ),
)
