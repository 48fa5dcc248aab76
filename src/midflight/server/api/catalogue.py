"""The catalogue: what was published, what deploying it would do, and the calendar of baselines and hotpatches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server import catalogue, preview
from midflight.server.api.deployments import fleet_of
from midflight.server.api.deps import Actor, AppSettings, DbSession, get_database, is_large, kept, require
from midflight.server.api.editing import check_version, edited, shown
from midflight.server.api.idempotency import IdempotentRoute
from midflight.server.api.paging import After, Limit, Page, page
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope
from midflight.server.api.views import View
from midflight.server.domain.calendar import Calendar
from midflight.server.domain.model import ContentKind
from midflight.server.outputs.kept import apart
from midflight.server.repository import public_folder, published_catalog
from midflight.server.store import events, meta
from midflight.server.store.catalogue import Content, ContentCve, ContentImage
from midflight.server.store.devices import Image

router = APIRouter(tags=["catalogue"], route_class=IdempotentRoute)
Reader = Annotated[Actor, require(Scope.CATALOGUE_READ)]
Writer = Annotated[Actor, require(Scope.CATALOGUE_WRITE)]
_Word = Annotated[str, Field(min_length=1, max_length=200)]


class CveView(View):
    """A vulnerability that content fixes."""

    cve: str
    cvss: float | None
    severity: str
    exploited: bool


class ContentView(View):
    """A hotpatch or a baseline."""

    id: str
    kind: str
    name: str
    package: str
    sequence: int
    path: str
    sha256: str
    length: int
    classification: str
    severity: str
    cvss: float | None
    description: str
    published: datetime
    deployable_until: datetime | None
    supersedes: list[str]
    details: dict[str, Any]
    revoked: datetime | None
    revoked_reason: str
    missing: bool
    version: int


class ContentFull(ContentView):
    """Content with its images and vulnerabilities."""

    images: list[str]
    cves: list[CveView]
    warning: str
    """Something about its name that a person should know before deploying it; empty: nothing."""


class ContentEdit(BaseModel):
    """What this server adds to what is signed. None of it can make a device take what is not signed."""

    model_config = ConfigDict(extra="forbid")

    deployable_until: datetime | None = None
    on_track: bool = True
    """Of a baseline: are further hotpatches made for it?"""
    platforms: Annotated[list[_Word], Field(max_length=20, default_factory=list)]
    min_kernel: Annotated[str, Field(max_length=100)] = ""
    min_agent: Annotated[str, Field(max_length=100)] = ""
    memory_mib: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    exploited: Annotated[list[_Word], Field(max_length=1000, default_factory=list)]
    """CVEs of it that are known to be exploited."""


class Preview(BaseModel):
    """What deploying content would do."""

    at: datetime
    """As of then: over a large fleet it is found anew every few minutes."""
    text: str
    off_track: int
    """Devices that leave the hotpatch track."""
    until: date
    """When the next planned baseline comes."""
    restarts: int
    affected: int
    by_reason: dict[str, int]
    """Devices that could not take it, by reason; ``eligible``: those that could."""


class CalendarBody(BaseModel):
    """Which months bring a baseline; the others bring a hotpatch."""

    baseline_months: Annotated[list[int], Field(min_length=1, max_length=12)] = [1, 4, 7, 10]
    weekday: Annotated[int, Field(ge=0, le=6)] = 1
    nth: Annotated[int, Field(ge=1, le=4)] = 2
    unplanned: Annotated[list[date], Field(max_length=120, default_factory=list)]
    """First days of months in which a baseline replaced the hotpatch."""


class MonthView(BaseModel):
    """A month of the plan."""

    release: date
    kind: str
    planned: str


def _content(session: Session, id: str) -> Content:
    row = session.get(Content, id)
    if row is None:
        raise not_found("content", id)
    return row


@router.get("/api/v1/content")
def contents(
    session: DbSession,
    _actor: Reader,
    limit: Limit = 100,
    after: After = None,
    kind: ContentKind | None = None,
    package: str | None = None,
    cve: str | None = None,
) -> Page[ContentView]:
    """What was published, the newest first."""
    query = select(Content)
    if kind is not None:
        query = query.where(Content.kind == kind.value)
    if package is not None:
        query = query.where(Content.package == package)
    if cve is not None:
        query = query.where(Content.id.in_(select(ContentCve.content_id).where(ContentCve.cve == cve)))
    keys = (Content.published, Content.id)
    return Page(**page(session, query, keys, after, limit, ContentView.model_validate, descending=True))


@router.get("/api/v1/content/{content}", responses={304: {}, 404: {}})
def one(content: str, request: Request, response: Response, session: DbSession, _actor: Reader) -> ContentFull:
    """One piece of content."""
    row = _content(session, content)
    shown(request, response, row)
    return _full(session, row)


def _full(session: Session, row: Content) -> ContentFull:
    images = session.scalars(select(ContentImage.build_id).where(ContentImage.content_id == row.id)).all()
    cves = session.scalars(select(ContentCve).where(ContentCve.content_id == row.id).order_by(ContentCve.cve))
    return ContentFull(
        **ContentView.model_validate(row).model_dump(),
        images=sorted(images),
        warning=_misnamed(session, row, images),
        cves=[CveView.model_validate(cve) for cve in cves],
    )


def _misnamed(session: Session, row: Content, images: Sequence[str]) -> str:
    """What is wrong when devices have these images in packages of other names: fixes are matched by the package."""
    packages = session.scalars(select(Image.package).where(Image.build_id.in_(images), Image.package != "").distinct())
    found = sorted(packages)
    if not found or row.name in found:
        return ""
    return (
        f"the series is named {row.name}, but devices have what it changes in the package {' and '.join(found)}: "
        "baselines and fixes of that package are not known to belong together with it; "
        f"build the next one with --name {found[0]}, and with a higher sequence than any content of that name"
    )


@router.put("/api/v1/content/{content}", responses={404: {}, 412: {}, 428: {}})
def edit(
    content: str, body: ContentEdit, request: Request, response: Response, session: DbSession, actor: Writer
) -> ContentFull:
    """Change what this server adds to content."""
    row = _content(session, content)
    check_version(request, row)
    if body.deployable_until is not None and body.deployable_until.tzinfo is None:
        raise Problem(422, "invalid", "body/deployable_until: give a time with a zone")
    row.deployable_until = body.deployable_until
    added = body.model_dump(include={"on_track", "platforms", "min_kernel", "min_agent", "memory_mib"})
    row.details = dict(row.details) | added
    for cve in session.scalars(select(ContentCve).where(ContentCve.content_id == content)):
        cve.exploited = cve.cve in body.exploited
    edited(response, row)
    events.publish(session, "content.changed", body.model_dump(mode="json"), subject=content, actor=actor.id)
    session.flush()
    full = _full(session, row)
    catalogue.edited(session, content)
    return full


@router.get("/api/v1/content/{content}/preview", responses={404: {}})
def look_ahead(content: str, request: Request, session: DbSession, _actor: Reader) -> Preview:
    """Before it is deployed: whom it takes off the hotpatch track, who must restart, who cannot take it and why."""
    _content(session, content)
    fleet = fleet_of(request, session)
    planned, large, database = load_calendar(session), is_large(session), get_database(request)

    def find(own: Session) -> Preview:
        now = datetime.now(UTC)
        given = (fleet, fleet.catalogue[content], planned, now)
        found = apart(database, preview.preview, *given) if large else preview.preview(own, *given)
        return Preview(
            at=now,
            text=str(found.off_track),
            off_track=len(found.off_track.devices),
            until=found.off_track.until,
            restarts=found.off_track.restarts,
            affected=found.affected,
            by_reason=dict(found.by_reason),
        )

    stamps = tuple(fleet.stamps.get(name) for name in ("catalogue", "groups", "policies"))
    return kept(request, session, ("preview", content, planned, stamps), find)


def load_calendar(session: Session) -> Calendar:
    """The calendar as it was set, or the usual one."""
    text = meta.read(session, "calendar")
    if text is None:
        return Calendar()
    body = CalendarBody.model_validate_json(text)
    return Calendar(frozenset(body.baseline_months), body.weekday, body.nth, frozenset(body.unplanned))


@router.get("/api/v1/calendar")
def calendar(session: DbSession, _actor: Reader) -> CalendarBody:
    """The calendar."""
    found = load_calendar(session)
    return CalendarBody(
        baseline_months=sorted(found.baseline_months),
        weekday=found.weekday,
        nth=found.nth,
        unplanned=sorted(found.unplanned),
    )


@router.put("/api/v1/calendar")
def set_calendar(body: CalendarBody, session: DbSession, actor: Writer) -> CalendarBody:
    """Set the calendar."""
    Calendar(frozenset(body.baseline_months), body.weekday, body.nth, frozenset(body.unplanned))
    meta.write(session, "calendar", body.model_dump_json())
    events.publish(session, "calendar.changed", body.model_dump(mode="json"), actor=actor.id)
    return body


@router.get("/api/v1/calendar/{year}")
def plan(year: int, session: DbSession, _actor: Reader) -> list[MonthView]:
    """The plan of a year."""
    if not 2000 <= year <= 2999:
        raise Problem(422, "invalid", "path/year: give a year from 2000 to 2999")
    return [
        MonthView(release=month.release, kind=month.kind.value, planned=month.planned.value)
        for month in load_calendar(session).year(year)
    ]


@router.post("/api/v1/catalogue/refresh")
def refresh(settings: AppSettings, session: DbSession, _actor: Writer) -> dict[str, list[str]]:
    """Take over what was published to the repository, now (otherwise: within ten seconds)."""
    catalog = published_catalog(settings)
    if catalog is None:
        raise Problem(
            409, "not-published", "the repository is not published yet; sign it and run midflight repo publish"
        )
    taken = catalogue.take(session, catalog, datetime.now(UTC))
    return {
        "added": list(taken.added),
        "revoked": list(taken.revoked),
        "missing": list(taken.missing),
        "refused": list(taken.refused),
    }


@router.get("/repo/{path:path}", include_in_schema=False)
def repository(path: str, settings: AppSettings) -> Response:
    """The TUF repository: files that prove themselves; any web server or CDN can serve them instead. No
    authentication."""
    folder = public_folder(settings).resolve()
    file = (folder / path.replace("\0", "\ufffd")).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        raise not_found("file", path)
    fixed = not path.endswith("timestamp.json")
    age = "public, max-age=31536000, immutable" if fixed else "no-cache"
    return FileResponse(file, media_type="application/octet-stream", headers={"Cache-Control": age})
