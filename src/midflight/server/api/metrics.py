"""Metrics for Prometheus."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Request, Response

from midflight.server.api.deps import Actor, AppDatabase, require
from midflight.server.api.scopes import Scope
from midflight.server.outputs import metrics

router = APIRouter(tags=["metrics"])
_lock = threading.Lock()


@router.get("/metrics")
def scrape(request: Request, database: AppDatabase, _actor: Annotated[Actor, require(Scope.METRICS_READ)]) -> Response:
    """The fleet in numbers. Give Prometheus an API token with the scope metrics:read (``authorization`` in its job)."""
    with _lock:
        if not hasattr(request.app.state, "metrics"):
            request.app.state.metrics, _ = metrics.exposition(database)
    return Response(metrics.text(request.app.state.metrics), media_type="text/plain; version=0.0.4; charset=utf-8")
