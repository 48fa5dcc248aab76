"""libxslt as Debian ships it: a struct grows, of which every running transformation has one."""

from __future__ import annotations

from tests.corpus.model import Refused, Shipped, ShippedCase

CASES = (
    ShippedCase(
        Shipped("libxslt", "libxslt1.1", "1.1.35-1+deb12u3", "libxslt.so.1.1.35"),
        "CVE-2023-40403",
        "=1.1.35-1+deb12u4",
        Refused(frozenset({"MF111"}), frozenset({"_xsltTransformContext"})),
    ),
)
