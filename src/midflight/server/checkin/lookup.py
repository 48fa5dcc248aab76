"""The one query of a quiet check-in, by the shortest way: a connection of its own for each thread, no transaction
around it.

A pooled session would cost four round trips (a ping, BEGIN, the query, ROLLBACK) and as much processor time as all
the rest of a check-in.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import Any, NamedTuple

import psycopg

from midflight.server.store.database import Database, DatabaseError

_QUERY = (
    "SELECT c.device_id, c.public_key, c.not_before, c.not_after, c.revoked_reason, d.sequence, d.state_digest,"
    " d.inventory_digest, a.sequence, a.until, a.interval_s, a.regroup, p.last_seen"
    " FROM certificate c JOIN device d ON d.id = c.device_id JOIN answer a ON a.device_id = c.device_id"
    " JOIN presence p ON p.device_id = c.device_id WHERE c.fingerprint = "
)


class Known(NamedTuple):
    """What is known of the device that has a certificate. Times are in microseconds since 1970."""

    device: str
    public_key: bytes
    not_before: int
    not_after: int
    revoked_reason: str | None
    sequence: int
    state_digest: str
    inventory_digest: str
    told: int
    """Sequence of the instructions that it was told last."""
    until: int
    """Until when they need no second thought."""
    interval_s: int
    regroup: bool
    last_seen: int


class Lookup:
    """Finds devices by the fingerprint of their certificate; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._sqlite = database.sqlite
        _, self._arguments = database.engine.dialect.create_connect_args(database.url)
        self._path = database.url.database or ""
        self._query = _QUERY + ("?" if self._sqlite else "%s")
        self._local = threading.local()

    def find(self, fingerprint: str) -> Known | None:
        """The device that has a certificate, or None.

        Raises:
            DatabaseError: the database does not answer.
        """
        for attempt in range(2):
            try:
                row = self._connection().execute(self._query, (fingerprint,)).fetchone()
                return None if row is None else Known._make(row)
            except (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError) as error:
                # a server that was started again: the old connection is of no use, a new one may be
                self._local.connection = None
                if attempt:
                    raise DatabaseError(f"the database does not answer: {str(error).splitlines()[0]}") from None
        raise AssertionError("unreachable")

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            if self._sqlite:
                connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            else:
                connection = psycopg.connect(
                    **self._arguments, autocommit=True, prepare_threshold=0, connect_timeout=10
                )
            self._local.connection = connection
        return connection
