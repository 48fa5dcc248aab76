"""Runs the application under uvicorn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from midflight.errors import InputError
from midflight.server.keys import tls_pin
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.migrate import require_newest

BACKLOG = 256
"""Connections that may wait to be accepted. Beyond it the kernel lets clients try again in a second or three: in a
stampede that is better than a queue in which everybody waits until they have given up."""
FOLDER = "MIDFLIGHT_SERVER_FOLDER"
"""Environment variable that names the server's folder to serving processes."""


def application() -> FastAPI:
    """The application of the server whose folder the environment names: what each serving process makes for itself."""
    from midflight.server.api.app import create_app

    return create_app(Settings.load(Path(os.environ[FOLDER])))


def serve(settings: Settings, say: Callable[[str], None], processes: int = 1) -> int:
    """Serve until stopped. Returns the exit status.

    Args:
        processes: how many serve; more than one needs PostgreSQL.

    Raises:
        DatabaseError: the database does not answer, or is of another version.
        InputError: the settings are wrong.
    """
    import uvicorn

    host, port = settings.address
    if processes > 1 and settings.sqlite:
        raise InputError("SQLite serves one process; give --processes 1, or set database to PostgreSQL")
    pin = tls_pin(settings)
    database = Database(settings.database_url, settings.database_connections)
    try:
        require_newest(database)
    finally:
        database.close()
    os.environ[FOLDER] = str(settings.folder)
    say(f"TLS pin {pin or 'of the proxy'}")
    say(f"serving {'https' if settings.tls else 'http'}://{settings.listen}, stop with Ctrl-C")
    uvicorn.run(
        "midflight.server.serve:application",
        factory=True,
        host=host,
        port=port,
        workers=processes,
        http="midflight.server.wire:BoundedHttp",
        log_level="warning",
        # an idle browser or agent does not answer the end of its TLS connection; nobody waits for it longer
        timeout_graceful_shutdown=5,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        ssl_certfile=settings.path(settings.tls_certificate) if settings.tls else None,
        ssl_keyfile=settings.path(settings.tls_key) if settings.tls else None,
    )
    return 0
