"""The overview: the fleet at a glance, and what waits for whom."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Response

from midflight.server.console.api import Refused
from midflight.server.console.lookups import names
from midflight.server.console.web import Console, SignedIn, new_router
from midflight.server.domain.reasons import Owner, Reason

router = new_router()
_RUNNING = ("offering", "scheduled", "paused", "halted", "reverting")
_OF_STATE = (("unassigned", Reason.UNASSIGNED), ("conflict", Reason.POLICY_CONFLICT), ("stale", Reason.STALE))
_ORDER = (Owner.ADMINISTRATOR.value, Owner.DEVICE.value, Owner.MIDFLIGHT.value)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that waits for somebody."""

    text: str
    reason: str
    detail: str
    link: str
    owner: str


@router.get("/")
async def overview(console: SignedIn) -> Response:
    """The fleet at a glance."""
    return console.page("overview.html", **await _glance(console))


@router.get("/overview/live")
async def live(console: SignedIn) -> Response:
    """What changes of it."""
    return console.page("overview_live.html", **await _glance(console))


@router.get("/overview/exposure")
async def exposure(console: SignedIn) -> Response:
    """What is still open, counted over the whole fleet: a fragment of its own, as it takes longest."""
    report = await console.api.get("/api/v1/reports/fleet")
    return console.page("overview_exposure.html", report=report)


async def _glance(console: Console) -> dict[str, Any]:
    api = console.api
    compliance, noncompliant, policies, *running = await asyncio.gather(
        api.get("/api/v1/compliance"),
        api.get("/api/v1/compliance/devices", state="noncompliant", limit=500),
        names(console, "policies"),
        *(api.get("/api/v1/deployments", effective=state, limit=20) for state in _RUNNING),
    )
    deployments = [each for found in running for each in found["items"]]
    rings = await asyncio.gather(*(_rings(console, each["id"]) for each in deployments))
    alerts = [*_of_deployments(deployments), *_of_devices(compliance["states"], noncompliant["items"])]
    return {
        "compliance": compliance,
        "deployments": list(zip(deployments, rings, strict=True)),
        "policies": policies,
        "alerts": sorted(alerts, key=lambda alert: _ORDER.index(alert.owner)),
    }


async def _rings(console: Console, id: str) -> Counter[str]:
    """Devices of a deployment by state."""
    total: Counter[str] = Counter()
    try:
        for ring in await console.api.get(f"/api/v1/deployments/{id}/rings"):
            total.update(ring["tally"])
    except Refused:
        pass
    return total


def _of_deployments(deployments: list[dict[str, Any]]) -> list[Alert]:
    return [
        Alert(each["content"], why["reason"], why["detail"], f"/deployments/{each['id']}", why["owner"])
        for each in deployments
        if (why := each["why"]) and why["owner"] == Owner.ADMINISTRATOR.value
    ]


def _of_devices(states: dict[str, int], noncompliant: list[dict[str, Any]]) -> list[Alert]:
    alerts = []
    for state, reason in _OF_STATE:
        if count := states.get(state, 0):
            link = "/compliance?" + urlencode({"state": state}) + "#devices"
            alerts.append(Alert(_devices(count), reason.value, "", link, reason.owner.value))
    reasons = Counter(each["why"]["reason"] for each in noncompliant if each["why"])
    for word, count in reasons.most_common():
        owner = next(each["why"]["owner"] for each in noncompliant if each["why"] and each["why"]["reason"] == word)
        link = "/compliance?state=noncompliant#devices"
        alerts.append(Alert(_devices(count), word, "", link, owner))
    return alerts


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
