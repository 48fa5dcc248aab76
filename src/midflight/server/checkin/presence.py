"""When devices were seen, collected and written every few seconds in one statement.

What is lost with a killed process is a few seconds of "last seen", which the next check-in mends.
"""

from __future__ import annotations

import threading
from datetime import datetime

from sqlalchemy import text

from midflight.server.store.base import to_micros
from midflight.server.store.database import UNAVAILABLE, Database

_POSTGRESQL = text(
    "UPDATE presence SET last_seen = new.seen"
    " FROM unnest(CAST(:ids AS text[]), CAST(:seen AS bigint[])) AS new(id, seen)"
    " WHERE presence.device_id = new.id AND presence.last_seen < new.seen"
)
_SQLITE = text("UPDATE presence SET last_seen = :seen WHERE device_id = :id AND last_seen < :seen")


class Presence:
    """The collection of one process; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, int]] = {}

    def seen(self, device: str, sequence: int, now: datetime) -> None:
        """The device was here, with that request."""
        with self._lock:
            self._seen[device] = (to_micros(now), sequence)

    def last(self, device: str) -> tuple[int, int]:
        """When (microseconds) it was here last, and the sequence of that request, if that is not yet written; or
        zeros."""
        return self._seen.get(device, (0, 0))

    def flush(self) -> int:
        """Write what was collected; returns how many devices. What cannot be written now is kept for the next time."""
        with self._lock:
            seen, self._seen = self._seen, {}
        if not seen:
            return 0
        ids = sorted(seen)
        try:
            with self._database.write() as session:
                if self._database.sqlite:
                    session.execute(_SQLITE, [{"id": id, "seen": seen[id][0]} for id in ids])
                else:
                    session.execute(_POSTGRESQL, {"ids": ids, "seen": [seen[id][0] for id in ids]})
        except UNAVAILABLE:
            with self._lock:
                self._seen = seen | self._seen
            raise
        return len(ids)
