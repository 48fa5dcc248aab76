"""Reports: how far each vulnerability is covered and how fast, what hotpatching saved, what failed."""

from __future__ import annotations

import asyncio

from fastapi import Request, Response

from midflight.server.console.api import below
from midflight.server.console.web import SignedIn, new_router

router = new_router()
DAYS = (30, 90, 365)


@router.get("/reports")
async def reports(console: SignedIn, request: Request) -> Response:
    """The fleet's report."""
    days = next((n for n in DAYS if str(n) == request.query_params.get("days")), 365)
    report = await console.api.get("/api/v1/reports/fleet", days=days)
    return console.page("reports.html", report=report, days=days, all_days=DAYS)


@router.get("/reports/coverage/{cve}")
async def coverage(console: SignedIn, cve: str) -> Response:
    """One vulnerability: its packages, and how fast they were covered."""
    curves, report, contents = await asyncio.gather(
        console.api.get(below("reports", "coverage", cve)),
        console.api.get("/api/v1/reports/fleet"),
        console.api.get("/api/v1/content", cve=cve, limit=50),
    )
    lines = [line for line in report["cves"] if line["cve"] == cve]
    return console.page("reports_cve.html", cve=cve, curves=curves, lines=lines, contents=contents["items"])
