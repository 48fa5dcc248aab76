"""Runs the application under uvicorn."""

from __future__ import annotations

from collections.abc import Callable

from midflight.server.keys import tls_pin
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.migrate import require_newest


def serve(settings: Settings, say: Callable[[str], None]) -> int:
    """Serve until stopped. Returns the exit status.

    Raises:
        DatabaseError: the database does not answer, or is of another version.
        InputError: the settings are wrong.
    """
    import uvicorn

    from midflight.server.api.app import create_app

    host, port = settings.address
    database = Database(settings.database_url, settings.database_connections)
    try:
        require_newest(database)
    finally:
        database.close()
    tls = settings.tls
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=settings.path(settings.tls_certificate) if tls else None,
        ssl_keyfile=settings.path(settings.tls_key) if tls else None,
    )
    say(f"TLS pin {tls_pin(settings) or 'of the proxy'}")
    say(f"serving {'https' if tls else 'http'}://{settings.listen}, stop with Ctrl-C")
    uvicorn.Server(config).run()
    return 0
