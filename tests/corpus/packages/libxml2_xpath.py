"""libxml2 as Debian ships it: built with -O3."""

from __future__ import annotations

from tests.corpus.model import HostProgram, Patched, Shipped, ShippedCase, library

CASES = (
    ShippedCase(
        Shipped("libxml2", "libxml2", "2.9.14+dfsg-1.3~deb12u4", "libxml2.so.2.9.14"),
        "CVE-2025-9714",
        "CVE-2025-9714",
        Patched(
            library,
            frozenset(
                {
                    "xmlXPathCompiledEvalInternal",
                    "xmlXPathCtxtCompile__internal_alias",
                    "xmlXPathEval__internal_alias",
                    "xmlXPathEvalExpr__internal_alias",
                }
            ),
            HostProgram("libxml2_xpath.c", options=("-I/usr/include/libxml2", "-lxml2")),
        ),
    ),
)
