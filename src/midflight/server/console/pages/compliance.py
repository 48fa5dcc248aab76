"""Compliance: how the fleet and each policy stand, over time, hotpatched and restarted devices side by side."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response

from midflight.server.console.lookups import names
from midflight.server.console.web import SignedIn, new_router, query_of
from midflight.server.domain.model import ComplianceState

router = new_router()
DAYS = (7, 30, 90)


@router.get("/compliance")
async def compliance(console: SignedIn, request: Request) -> Response:
    """The fleet's, or one policy's."""
    wanted = query_of(request, "policy", "state", "after")
    days = next((n for n in DAYS if str(n) == request.query_params.get("days")), 30)
    api, policy = console.api, wanted["policy"]
    overview, history, devices, policies = await asyncio.gather(
        api.get("/api/v1/compliance", policy=policy),
        api.get("/api/v1/compliance/history", policy=policy, days=days),
        api.get("/api/v1/compliance/devices", limit=50, **wanted),
        names(console, "policies"),
    )
    each = await asyncio.gather(*(api.get("/api/v1/compliance", policy=id) for id in policies))
    values = {
        "overview": overview,
        "history": history,
        "devices": devices,
        "policies": policies,
        "by_policy": dict(zip(policies, each, strict=True)),
        "wanted": wanted,
        "days": days,
        "all_days": DAYS,
        "rest": {"policy": policy, "state": wanted["state"], "days": days},
        "states": list(ComplianceState),
    }
    return console.page("compliance.html", **values)
