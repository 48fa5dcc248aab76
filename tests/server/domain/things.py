"""Small things for the rules' tests, and strategies that make them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from midflight.server.domain.model import (
    Audience,
    Classification,
    Content,
    ContentKind,
    Cve,
    Deployment,
    Device,
    Gate,
    Image,
    Policy,
    Ring,
    RingKind,
    RunningPatch,
    Severity,
    Window,
)

NOW = datetime(2026, 3, 10, 18, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
REST = Ring("rest", RingKind.REST)
RINGS = (Ring("first", RingKind.FIRST, 1), Ring("tenth", RingKind.PERCENT, 10, gate=Gate(min_sample=3)), REST)
NIGHT = Window("FREQ=DAILY;BYHOUR=2;BYMINUTE=0", datetime(2026, 1, 1), timedelta(hours=3))


def content(sequence: int = 2, kind: ContentKind = ContentKind.HOTPATCH, **more: object) -> Content:
    """A hotpatch of baseline ``b1`` of openssl, or a baseline that installs ``bN``."""
    hotpatch = kind is ContentKind.HOTPATCH
    fields: dict[str, object] = {
        "id": f"{kind}-{sequence}",
        "kind": kind,
        "name": f"openssl {sequence}",
        "sequence": sequence,
        "package": "openssl",
        "images": frozenset({"b1" if hotpatch else f"b{sequence}"}),
        "published": NOW,
        "classification": Classification.SECURITY,
        "cves": (Cve(f"CVE-2026-{sequence}", 7.5, Severity.HIGH),),
    }
    return Content(**{**fields, **more})  # type: ignore[arg-type]


BASELINE = content(1, ContentKind.BASELINE)


def device(id: str = "d1", build_id: str = "b1", patches: tuple[str, ...] = (), **more: object) -> Device:
    """A device that runs openssl from baseline ``b1``."""
    fields: dict[str, object] = {
        "id": id,
        "images": (Image(build_id, "/usr/lib/libssl.so.3", "openssl", "3.0.1", 4),),
        "patches": tuple(RunningPatch(p, int(p.rpartition("-")[2]), build_id) for p in patches),
        "last_seen": NOW,
        "enrolled": NOW - 100 * DAY,
        "platform": "linux-x86_64",
        "kernel": "6.1.0-18-amd64",
        "agent": "1.2.0",
    }
    return Device(**{**fields, **more})  # type: ignore[arg-type]


def policy(**more: object) -> Policy:
    """A policy for group ``all``, without windows."""
    fields: dict[str, object] = {
        "id": "p1",
        "name": "servers",
        "audience": Audience(frozenset({"all"})),
        "rings": RINGS,
    }
    return Policy(**{**fields, **more})  # type: ignore[arg-type]


def deployment(**more: object) -> Deployment:
    """A deployment of ``hotpatch-2`` that starts now."""
    fields: dict[str, object] = {
        "id": "dep",
        "content": "hotpatch-2",
        "policy": "p1",
        "created": NOW,
        "starts": NOW,
    }
    return Deployment(**{**fields, **more})  # type: ignore[arg-type]


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))
