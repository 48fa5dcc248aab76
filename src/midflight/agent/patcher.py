"""Works on one process at a time: sees what it has mapped, puts in what is wanted there, takes out what is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from midflight.agent.orders import Key
from midflight.agent.scope import Scope
from midflight.engine.apply import apply
from midflight.engine.everywhere import recover_everywhere, revert_everywhere
from midflight.engine.inventory import BuildIds
from midflight.engine.modules import Files
from midflight.engine.startup import Startup, startup
from midflight.engine.transaction import Limits, Outcome
from midflight.errors import ProcessError
from midflight.patch.hotpatch import Hotpatch
from midflight.process.live import LiveProcess, all_processes, open_process

_REMEMBERED = 1.0
"""Seconds for which the build-id of a mapped file is believed without looking at the file: a package upgrade may put
another one in its place, with the same name and even the same inode."""
_MOST_FILES = 400
_FIRST_PATIENCE = 0.25
"""Seconds to wait for busy threads the first time: others wait meanwhile. Later tries wait as long as is allowed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found."""

    process: LiveProcess
    images: frozenset[str]
    """Those images, of the ones asked for, that it has mapped."""
    startup: Startup
    mapped: int
    """How many files with code it has mapped, to compare with the next look."""


class Patcher:
    """The engine, with the files that it has open. ``patience``: seconds to wait for busy threads."""

    def __init__(self, patience: float, scope: Scope | None = None) -> None:
        self._patience = patience
        self._scope = scope or Scope()
        self._files = Files()
        self._known = BuildIds(self._files)
        self._born = 0.0

    def processes(self) -> list[LiveProcess]:
        """All processes that this agent looks after; the oldest first."""
        return [process for process in all_processes() if self._scope.covers(process.pid)]

    @contextmanager
    def see(self, pid: int, images: Collection[str], young: bool) -> Iterator[Seen]:
        """Look at a process; ``young``: its loader may be at work still.

        Raises:
            ProcessGone: it ended.
            ProcessError: we may not look at it.
        """
        now = time.monotonic()
        if now - self._born > _REMEMBERED:
            self._renew(now)
        if not self._scope.covers(pid):
            raise ProcessError(f"process {pid} is not among those that this agent looks after; see its settings")
        with open_process(pid) as process:
            code = process.code()
            found = frozenset(
                build_id for m in code if (build_id := self._known.of(process, m)) is not None and build_id in images
            )
            state = startup(process, code, self._files) if young and images else Startup.COMPLETE
            yield Seen(process, found, state, len(code))

    def _renew(self, now: float) -> None:
        if len(self._files) > _MOST_FILES:
            self._files.close()
        self._known = BuildIds(self._files)
        self._born = now

    def apply(self, process: LiveProcess, hotpatch: Hotpatch, tries: int) -> Outcome:
        """Put a hotpatch into a process; ``tries``: how often it was tried before."""
        patience = self._patience if tries > 1 else min(_FIRST_PATIENCE, self._patience)
        return apply(process, hotpatch, self._files, Limits(busy=patience))

    def take_out(self, keys: Collection[Key], alive: Callable[[], None]) -> list[Outcome]:
        """Take hotpatches out of all processes of this machine; ``alive`` is called before each, since busy ones take
        their time, and there may be a thousand."""

        def one_by_one() -> Iterator[LiveProcess]:
            for process in self.processes():
                alive()
                yield process

        limits = Limits(busy=self._patience)
        return revert_everywhere(
            one_by_one(), lambda ledger: (ledger.record.name, ledger.record.sequence) in keys, self._files, limits
        )

    def recover(self) -> list[Outcome]:
        """Clear up after engines that were killed."""
        return recover_everywhere(all_processes(), self._files, Limits(busy=self._patience), self._scope.covers)

    def close(self) -> None:
        """Let go of all files."""
        self._files.close()
