"""The clocks of this device, and what the server says the time is; see :mod:`midflight.agent.fleet.moments`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from midflight.agent import clocks
from midflight.agent.fleet.moments import JUMP, Anchor, Moment, moment
from midflight.agent.fleet.records import Records

_KEEP_EVERY = 3600.0


class DeviceClock:
    """Now, as well as it is known. For one thread."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._boot = clocks.boot()
        self._kept_at = -_KEEP_EVERY
        kept = records.fact("clock")
        self._floor = datetime.fromtimestamp(kept["time"], UTC) if kept else None
        self._anchor: Anchor | None = None
        if kept and kept["boot"] == self._boot:
            assert self._floor is not None
            self._anchor = Anchor(self._boot, kept["uptime"], self._floor, True)
        else:
            shown = datetime.now(UTC)
            if self._floor is None or shown >= self._floor - JUMP:
                self._anchor = Anchor(self._boot, clocks.uptime(), shown, False)

    def moment(self) -> Moment:
        """Now."""
        return moment(time.time(), clocks.uptime(), self._boot, self._anchor, self._floor)

    def now(self) -> datetime:
        """Now, the likeliest."""
        return self.moment().now

    def heard(self, said: datetime) -> None:
        """The server says that it is this time, to the second."""
        uptime = clocks.uptime()
        if self._anchor is not None and self._anchor.heard and abs(said - self.now()) < JUMP / 24:
            said = self.now()  # as it was already, to less than a second's worth of rounding and travel
        self._anchor = Anchor(self._boot, uptime, said, True)
        self._floor = said
        if uptime - self._kept_at >= _KEEP_EVERY:
            self._kept_at = uptime
            kept: dict[str, Any] = {"boot": self._boot, "uptime": uptime, "time": said.timestamp()}
            self._records.remember({"clock": kept})
