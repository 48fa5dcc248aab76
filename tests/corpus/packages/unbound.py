"""unbound as Debian ships it; its source has left the mirror, and is made from the one that came after it."""

from __future__ import annotations

from tests.corpus.model import Refused, Shipped, ShippedCase

CASES = (
    ShippedCase(
        Shipped("unbound", "unbound", "1.17.1-2+deb12u3", "unbound", private=True),
        "CVE-2025-11411",
        "CVE-2025-11411",
        Refused(frozenset({"MF111"}), frozenset({"config_file"})),
    ),
)
