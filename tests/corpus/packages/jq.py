"""jq: a fix that would be a hotpatch by all that can be computed, and still must be none."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, Package, Refused

JQ = Package(
    "jq",
    "1.6-2.1+deb12u2",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --disable-docs"
    f" CFLAGS='{FLAGS}'; }}; make src/builtin.inc && make -j2 libjq.la",
    ".libs/libjq.so.1.0.4",
)

CASES = (
    Case(
        JQ,
        "CVE-2026-40164",
        ("CVE-2026-40164.patch",),
        # the hash of every key changes: objects that were made before are never found again
        Refused(frozenset({"MF171"}), frozenset({"jvp_string_hash"})),
    ),
)
