"""Reports for people, and documents for scanners."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, cast

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from midflight.server.api.deps import Actor, AppSettings, DbSession, get_database, is_large, kept, require
from midflight.server.api.problems import not_found
from midflight.server.api.scopes import Scope
from midflight.server.checkin.receive import CheckIns
from midflight.server.outputs import fleetvex, oval, reportpage, reports, vex
from midflight.server.outputs.fleetvex import fleet_vex
from midflight.server.outputs.kept import apart
from midflight.server.outputs.truth import DeviceTruth, of_device
from midflight.server.store.bulk import load_places
from midflight.server.store.fleet import Fleet

router = APIRouter(prefix="/api/v1", tags=["reports"])

_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


@router.get("/reports/fleet")
def fleet_report(
    request: Request,
    session: DbSession,
    settings: AppSettings,
    _actor: Annotated[Actor, require(Scope.REPORTS_READ)],
    format: Literal["json", "csv", "html"] = "json",
    table: Annotated[Literal["cves", "failures", "devices"], Query(description="of a CSV")] = "cves",
    days: Annotated[int, Query(ge=1, le=3650, description="failures and savings of so many days")] = 365,
) -> Response:
    """Coverage of each CVE and how fast it came, what hotpatching saved, and what failed."""
    contents = list(_fleet(request, session).catalogue.contents.values())

    def find(own: Session) -> reports.Report:
        now = datetime.now(UTC)
        return reports.report(own, contents, now - timedelta(days=days), now)

    found = kept(request, session, ("report", days), find)
    if format == "csv":
        name = f'attachment; filename="midflight-{table}.csv"'
        return Response(reportpage.table(found, table), 200, {"Content-Disposition": name}, "text/csv; charset=utf-8")
    if format == "html":
        return Response(reportpage.page(found, settings.public_url), 200, _POLICY, "text/html; charset=utf-8")
    return Response(orjson.dumps(reportpage.document(found)), 200, media_type="application/json")


@router.get("/reports/vex")
def vex_of_fleet(
    request: Request,
    session: DbSession,
    settings: AppSettings,
    _actor: Annotated[Actor, require(Scope.REPORTS_READ)],
) -> Response:
    """CSAF VEX over all devices: what is fixed in memory, and what is vulnerable on disk."""
    fleet, large = _fleet(request, session), is_large(session)

    def find(own: Session) -> bytes:
        return apart(database, fleet_vex, fleet, url) if large else fleet_vex(own, fleet, url)

    database, url = get_database(request), settings.public_url
    return Response(kept(request, session, "vex", find), 200, media_type="application/json")


@router.get("/devices/{id}/vex")
def device_vex(
    request: Request,
    session: DbSession,
    settings: AppSettings,
    _actor: Annotated[Actor, require(Scope.REPORTS_READ)],
    id: str,
) -> Response:
    """CSAF VEX of one device."""
    truth = _truth(request, session, id)
    document = vex.document([truth], truth.hostname or id, settings.public_url, datetime.now(UTC))
    return Response(fleetvex.dump(document), 200, media_type="application/json")


@router.get("/devices/{id}/oval")
def device_oval(
    request: Request,
    session: DbSession,
    _actor: Annotated[Actor, require(Scope.REPORTS_READ)],
    id: str,
    kind: Literal["definitions", "results"] = "definitions",
) -> Response:
    """OVAL of one device: definitions, for a scanner on it to evaluate, or results, as of its last report."""
    make = oval.definitions if kind == "definitions" else oval.results
    document = make(_truth(request, session, id), datetime.now(UTC))
    return Response(document, 200, media_type="application/xml")


def _fleet(request: Request, session: Session) -> Fleet:
    return cast(CheckIns, request.app.state.checkins).fleet.get(session)


def _truth(request: Request, session: Session, id: str) -> DeviceTruth:
    fleet = _fleet(request, session)
    place = load_places(session, [id], fleet).get(id)
    if place is None:
        raise not_found("device", id)
    return of_device(place.device, list(fleet.catalogue.contents.values()))
