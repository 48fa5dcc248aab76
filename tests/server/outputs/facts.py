"""A small fleet for the tests of what the server tells others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from midflight.server.domain.model import Content, ContentKind, Cve, Device, Image, RunningPatch, Severity

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
OLD, NEW = "a" * 40, "b" * 40
CVE = Cve("CVE-2026-1111", 9.8, Severity.CRITICAL, exploited=True)

HOTPATCH = Content(
    id="con-hot",
    kind=ContentKind.HOTPATCH,
    name="zlib-1.2.13-hp1",
    sequence=1,
    package="zlib1g",
    images=frozenset({OLD}),
    published=NOW - timedelta(days=3),
    cves=(CVE,),
)
BASELINE = Content(
    id="con-base",
    kind=ContentKind.BASELINE,
    name="zlib-1.2.13-base2",
    sequence=2,
    package="zlib1g",
    images=frozenset({NEW}),
    published=NOW - timedelta(days=1),
    cves=(CVE,),
)


def device(
    name: str = "web1",
    build_id: str = OLD,
    version: str = "1:1.2.13.dfsg-0",
    patched: int = 0,
    processes: int = 3,
    integrity_violated: bool = False,
    report_faulty: bool = False,
) -> Device:
    """A device with one image in ``processes`` processes, the hotpatch in ``patched`` of them."""
    patches = (RunningPatch("con-hot", 1, build_id, patched, 0.2, patched == processes),) if patched else ()
    return Device(
        id=f"dev-{name}",
        hostname=f"{name}.example.com",
        platform="linux-x86_64",
        images=(Image(build_id, "/usr/lib/libz.so.1", "zlib1g", version, processes),),
        patches=patches,
        last_seen=NOW - timedelta(minutes=5),
        integrity_violated=integrity_violated,
        report_faulty=report_faulty,
    )
