"""Whether this process lives (/healthz), and whether it can serve (/readyz)."""

from __future__ import annotations

from fastapi import APIRouter

from midflight import __version__
from midflight.server.api.deps import AppDatabase
from midflight.server.store.migrate import require_newest

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives. No authentication. Asks for no thread, so it answers however much there is to do."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
def readyz(database: AppDatabase) -> dict[str, str]:
    """The database answers and is of the right version. No authentication."""
    require_newest(database)
    return {"status": "ready"}
