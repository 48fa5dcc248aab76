"""libgd as Debian ships it: what is on the stack becomes pixels."""

from __future__ import annotations

from tests.corpus.model import HostProgram, Patched, Shipped, ShippedCase, library

CASES = (
    ShippedCase(
        Shipped("libgd2", "libgd3", "2.3.3-9", "libgd.so.3.0.11"),
        "CVE-2026-9672",
        "CVE-2026-9672",
        # two static functions
        Patched(library, frozenset({"LWZReadByte_", "ReadImage"}), HostProgram("libgd.c", options=("-lgd",))),
    ),
)
