"""libmodbus as Debian ships it: a function that is called through a table gets other parameters."""

from __future__ import annotations

from tests.corpus.model import Refused, Shipped, ShippedCase

CASES = (
    ShippedCase(
        Shipped("libmodbus", "libmodbus5", "3.1.6-2.1", "libmodbus.so.5.1.0"),
        "CVE-2024-10918",
        "CVE-2024-10918",
        Refused(frozenset({"MF111"}), frozenset({"_modbus_backend"})),
    ),
)
