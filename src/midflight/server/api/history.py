"""How things stood before: what the charts of the console show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from midflight.server.api.deps import Actor, DbSession, kept, require
from midflight.server.api.problems import not_found
from midflight.server.api.scopes import Scope
from midflight.server.checkin.receive import CheckIns
from midflight.server.outputs import curves

router = APIRouter(prefix="/api/v1", tags=["reports"])


class StandingPoint(BaseModel):
    """Devices by compliance at a time."""

    at: datetime
    states: dict[str, int]


class CoveragePoint(BaseModel):
    """Devices that had run the fix by then."""

    at: datetime
    devices: int


class CoverageCurve(BaseModel):
    """One package that a vulnerability is in."""

    package: str
    points: list[CoveragePoint]


@router.get("/compliance/history")
def compliance_history(
    request: Request,
    session: DbSession,
    _actor: Annotated[Actor, require(Scope.COMPLIANCE_READ)],
    days: Annotated[int, Query(ge=1, le=400)] = 30,
    policy: str | None = None,
) -> list[StandingPoint]:
    """Devices by compliance, each time at which something had changed."""

    def find(own: Session) -> list[curves.Standing]:
        return curves.compliance_history(own, datetime.now(UTC), timedelta(days=days), policy)

    found = kept(request, session, ("history", days, policy), find)
    return [StandingPoint(at=point.at, states=point.states) for point in found]


@router.get("/reports/coverage/{cve}", responses={404: {}})
def coverage(
    request: Request, session: DbSession, _actor: Annotated[Actor, require(Scope.REPORTS_READ)], cve: str
) -> list[CoverageCurve]:
    """How fast a vulnerability was covered, package by package."""
    contents = list(cast(CheckIns, request.app.state.checkins).fleet.get(session).catalogue.contents.values())
    packages = sorted({content.package for content in contents if any(each.id == cve for each in content.cves)})
    if not packages:
        raise not_found("content that fixes", cve)

    def find(own: Session) -> list[CoverageCurve]:
        found = [(package, curves.coverage_curve(own, contents, cve, package)) for package in packages]
        return [
            CoverageCurve(package=package, points=[CoveragePoint(at=point.at, devices=point.devices) for point in line])
            for package, line in found
        ]

    return kept(request, session, ("coverage", cve), find)
