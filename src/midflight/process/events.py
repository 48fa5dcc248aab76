"""Which processes begin and end, as it happens: the one Protocol between the agent and what an operating system tells.

Times are those of CLOCK_MONOTONIC (``time.monotonic``), in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["started", "forked", "ended", "missed"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    started: ``pid`` runs a new program since ``at``. forked: it was made by ``parent`` and runs the same program.
    ended: with ``signal`` when that ended it (Linux), or with ``status`` (Windows: the 32-bit exit code); both 0 when
    unknown. missed: some events were lost; only a look at everything tells what they were.
    """

    kind: Kind
    pid: int = 0
    at: float = 0.0
    parent: int = 0
    signal: int = 0
    status: int = 0


class ProcessEvents(Protocol):
    """A source of events. Events may come late, twice, or of processes that are gone: each is a reason to look, no
    more."""

    source: str
    """What tells them, for people."""
    tells_how_processes_end: bool
    """Whether ``ended`` says how."""

    def wait(self, timeout: float) -> Sequence[Event]:
        """What happened since the last call; waits up to ``timeout`` seconds for something. Never raises for what can
        go wrong on the way: that is ``missed``."""

    def wake(self) -> None:
        """Let a ``wait`` in another thread (or the next one) return at once. May be called from a signal handler."""

    def close(self) -> None:
        """Give back what it holds."""


def open_events() -> ProcessEvents:
    """The best source that this system and this user have: told by the kernel on Linux, otherwise by looking."""
    if sys.platform == "win32":
        from midflight.process.snapshots import Snapshots

        return Snapshots()
    from midflight.errors import ProcessError
    from midflight.process.netlink import Connector
    from midflight.process.procpolling import ProcPolling

    try:
        return Connector()
    except ProcessError as error:
        return ProcPolling(str(error))
