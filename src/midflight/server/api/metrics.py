"""Metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from midflight.server.api.deps import Actor, AppDatabase, DbSession, kept, require
from midflight.server.api.scopes import Scope
from midflight.server.outputs import metrics

router = APIRouter(tags=["metrics"])


@router.get("/metrics")
def scrape(
    request: Request,
    session: DbSession,
    database: AppDatabase,
    _actor: Annotated[Actor, require(Scope.METRICS_READ)],
) -> Response:
    """The fleet in numbers. Give Prometheus an API token with the scope metrics:read (``authorization`` in its job)."""
    registry = metrics.exposition(database, kept(request, session, "silent", metrics.count_silent))
    return Response(metrics.text(registry), media_type="text/plain; version=0.0.4; charset=utf-8")
