"""apr-util as Debian ships it: one fix that works, one that cannot, and one for a driver that Debian does not build."""

from __future__ import annotations

from tests.corpus.model import HostProgram, Nothing, Patched, Refused, Shipped, ShippedCase, library

APRUTIL = Shipped("apr-util", "libaprutil1", "1.6.3-1", "libaprutil-1.so.0.6.3")

CASES = (
    ShippedCase(
        APRUTIL,
        "CVE-2026-34502",
        "CVE-2026-34502",
        Patched(
            library,
            frozenset({"get_server_line", "stat_read_rtime", "apr_memcache_version", "apr_memcache_stats"}),
            HostProgram("aprutil_memcache.c", options=("-I/usr/include/apr-1.0", "-laprutil-1", "-lapr-1")),
        ),
        reviewed={
            f"MF170:{function}": "what it takes from the caller's pool is freed with that, before and after"
            for function in ("apr_memcache_version", "stat_read_string")
        },
    ),
    ShippedCase(
        APRUTIL,
        "CVE-2026-32327",
        "CVE-2026-32327",
        # parsers that are at work have no room for the depth
        Refused(frozenset({"MF111"}), frozenset({"apr_xml_parser"})),
    ),
    ShippedCase(APRUTIL, "CVE-2026-34191", "CVE-2026-34191", Nothing()),
)
