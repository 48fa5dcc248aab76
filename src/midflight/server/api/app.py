"""Builds the application: routers, errors, and the background work of the embedded mode."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool

from midflight import __version__
from midflight.server import keys
from midflight.server.api import ROUTERS, problems
from midflight.server.api.device import CheckInGate
from midflight.server.api.headers import SafeHeaders
from midflight.server.api.retry import RetryLost
from midflight.server.api.turns import Turns
from midflight.server.checkin.presence import Presence
from midflight.server.checkin.receive import CheckIns
from midflight.server.outputs.kept import Kept
from midflight.server.settings import Settings
from midflight.server.store import tables  # noqa: F401 - all tables, before the first session
from midflight.server.store.database import UNAVAILABLE, Database, reason
from midflight.server.work.tasks import Context, Timer

MAX_BODY = 1 << 20
"""Bytes of a request to the API; larger ones are refused unread. Check-ins have a limit of their own."""
FLUSH_S = 2.0
"""Seconds between two writes of who was seen."""
_log = logging.getLogger(__name__)


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The application, as an ASGI callable.

    Args:
        settings: of this server.
        database: an open one (tests); otherwise the one that the settings name.
    """
    db = database or Database(settings.database_url, settings.database_connections)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(_flush(checkins.presence))]
        if settings.embedded_worker:
            timer = Timer(Context(db, settings, checkins.fleet))
            running.append(asyncio.create_task(_work(timer, settings.worker_interval)))
        yield
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(*UNAVAILABLE):
            await run_in_threadpool(checkins.presence.flush)
        if database is None:
            db.close()

    app = FastAPI(
        title="Midflight",
        version=__version__,
        summary="Live patching of a fleet: devices, content, policies, deployments, compliance.",
        lifespan=lifespan,
        docs_url=None,  # a page of scripts from elsewhere, with the right to act for whoever is signed in
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        max_body_size=MAX_BODY,
        openapi_url="/api/openapi.json",
    )
    app.state.settings = settings
    app.state.database = db
    app.state.kept = Kept(db)
    app.state.keys = keys.load(settings)
    checkins = CheckIns(db, settings, app.state.keys.signers)
    app.state.checkins = checkins
    app.add_middleware(RetryLost)
    app.add_middleware(Turns)
    app.add_middleware(SafeHeaders, public_url=settings.public_url)
    app.add_middleware(CheckInGate, checkins=checkins, settings=settings)
    problems.install(app)
    for name in ROUTERS:
        router = importlib.import_module(name).router
        assert isinstance(router, APIRouter)
        app.include_router(router)
    return app


async def _work(timer: Timer, every_s: int) -> None:
    """Do background work inside this process (embedded mode). A step that runs is finished before the process ends."""
    while True:
        step = asyncio.ensure_future(run_in_threadpool(timer.tick, datetime.now(UTC)))
        try:
            await asyncio.shield(step)
        except asyncio.CancelledError:
            await step
            raise
        await asyncio.sleep(every_s)


async def _flush(presence: Presence) -> None:
    """Write who was seen, every few seconds."""
    while True:
        await asyncio.sleep(FLUSH_S)
        try:
            await run_in_threadpool(presence.flush)
        except UNAVAILABLE as error:
            _log.warning("presence is written later: %s", reason(error))
