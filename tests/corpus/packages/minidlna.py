"""minidlna: two members in the middle of what stands for a connection."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

MINIDLNA = Package(
    "minidlna",
    "1.3.0+dfsg-2.2+deb12u1",
    f"[ -e Makefile ] || {{ autoreconf -fi && ./configure --disable-nls CFLAGS='{FLAGS}'; }}; make -j2 minidlnad",
    "minidlnad",
)

CASES = (
    Case(
        MINIDLNA,
        "CVE-2022-26505",
        ("CVE-2022-26505.patch",),
        Refused(frozenset({"MF111"}), frozenset({"upnphttp"})),
    ),
)
