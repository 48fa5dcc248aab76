"""mosquitto: a broker whose fixes change what its global state looks like."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

_SUBSCRIPTIONS = (
    "CVE-2024-8376-1of3.patch",
    "CVE-2024-8376-2of3.patch",
    "CVE-2024-8376-3of3.patch",
    "0015-Fix-QoS-1-QoS-2-publish-incorrectly-returning-no-sub.patch",
)
_MEMORY = (
    "CVE-2023-28366.patch",
    "CVE-2023-28366-regression.patch",
    "0018-Further-fix-for-CVE-2023-28366.patch",
)

MOSQUITTO = Package(
    "mosquitto",
    "2.0.11-1.2+deb12u2",
    f"make -j2 -C src WITH_DOCS=no WITH_CJSON=no CFLAGS='{FLAGS}'",
    "src/mosquitto",
)

CASES = (
    Case(
        MOSQUITTO,
        "CVE-2024-8376",
        _SUBSCRIPTIONS,
        # the type of the global that holds all state of the broker, and two signatures
        Refused(frozenset({"MF111", "MF112"}), frozenset({"mosquitto_db", "sub__add", "sub__remove"})),
    ),
    Case(
        MOSQUITTO,
        "CVE-2023-28366",
        _MEMORY,
        # an out parameter points to another type: the linker cannot see it
        Refused(frozenset({"MF112"}), frozenset({"db__message_store_find"})),
    ),
)
