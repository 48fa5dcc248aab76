"""Builds the application: routers, errors, and the background work of the embedded mode."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from midflight import __version__
from midflight.server.api import ROUTERS, problems
from midflight.server.settings import Settings
from midflight.server.store import tables  # noqa: F401 - all tables, before the first session
from midflight.server.store.database import Database


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The application, as an ASGI callable.

    Args:
        settings: of this server.
        database: an open one (tests); otherwise the one that the settings name.
    """
    db = database or Database(settings.database_url, settings.database_connections)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        if database is None:
            db.close()

    app = FastAPI(
        title="Midflight",
        version=__version__,
        summary="Live patching of a fleet: devices, content, policies, deployments, compliance.",
        lifespan=lifespan,
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.settings = settings
    app.state.database = db
    problems.install(app)
    for name in ROUTERS:
        router = importlib.import_module(name).router
        assert isinstance(router, APIRouter)
        app.include_router(router)
    return app
