"""What the agent tells people: one line an event, to standard error (which the journal of systemd keeps), to a log
file and the event log on Windows."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
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
_SYSLOG = {"information": 6, "warning": 4, "error": 3}  # sd-daemon(3)


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened, in a line for people."""

    kind: Kind
    text: str

    @property
    def level(self) -> Level:
        """How much it matters."""
        return LEVELS[self.kind]


Tell = Callable[[Notice], None]


def to_stream(stream: TextIO | None = None, journal: bool = False) -> Tell:
    """Lines on standard error; with the priority in front where the journal of systemd reads them."""
    out = stream or sys.stderr

    def tell(notice: Notice) -> None:
        text = notice.text.replace("\n", " ")
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z ")
        line = f"<{_SYSLOG[notice.level]}>{notice.kind}: {text}" if journal else f"{when}{notice.kind}: {text}"
        # Nobody listens any more: no reason to stop patching.
        with contextlib.suppress(OSError, ValueError):
            out.write(line + "\n")
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
        logger.log(levels[notice.level], "%s: %s", notice.kind, notice.text.replace("\n", " "))

    return tell


def to_all(sinks: Sequence[Tell]) -> Tell:
    """To each of several."""

    def tell(notice: Notice) -> None:
        for sink in sinks:
            sink(notice)

    return tell


def under_journal() -> bool:
    """Whether standard error goes to the journal of systemd (systemd.exec(5))."""
    return bool(os.environ.get("JOURNAL_STREAM"))
