"""What the agent tells people: one line an event, to standard error, to a log file; the journal of systemd
(:mod:`midflight.agent.systemd`) and the event log of Windows (:mod:`midflight.agent.eventlog`) take it too."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

Kind = Literal[
    "started", "stopped", "orders", "problem", "applied", "reverted", "failed", "barred", "unbarred", "crashed"
]  # fmt: skip
Level = Literal["information", "warning", "error"]

LEVELS: dict[Kind, Level] = {
    "started": "information",
    "stopped": "information",
    "orders": "information",
    "problem": "warning",
    "applied": "information",
    "reverted": "warning",
    "failed": "error",
    "barred": "error",
    "unbarred": "information",
    "crashed": "error",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened, in a line for people."""

    kind: Kind
    text: str

    @property
    def level(self) -> Level:
        """How much it matters."""
        return LEVELS[self.kind]

    @property
    def line(self) -> str:
        """All of it, in one line."""
        return f"{self.kind}: {self.text}".replace("\n", " ")


Tell = Callable[[Notice], None]


def to_stream(stream: TextIO | None = None) -> Tell:
    """Lines on standard error."""
    out = stream or sys.stderr

    def tell(notice: Notice) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        # Nobody listens any more: no reason to stop patching.
        with contextlib.suppress(OSError, ValueError):
            out.write(f"{when} {notice.line}\n")
            out.flush()

    return tell


def to_file(path: Path) -> Tell:
    """Lines in a log file of at most 1 MiB, and five older ones."""
    logger = logging.Logger("midflight.agent")
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=5, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk
    logger.addHandler(handler)
    levels = {"information": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

    def tell(notice: Notice) -> None:
        logger.log(levels[notice.level], "%s", notice.line)

    return tell


def to_all(sinks: Sequence[Tell]) -> Tell:
    """To each of several."""

    def tell(notice: Notice) -> None:
        for sink in sinks:
            sink(notice)

    return tell
