"""Tells of applies without flooding anybody: the first of each hotpatch at once, the rest as a number every minute."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from midflight.agent.notices import Notice, Tell
from midflight.agent.orders import Key, show
from midflight.engine.transaction import Outcome

EVERY = 60.0


@dataclass(slots=True)
class _Count:
    applied: int = 0
    failed: int = 0
    reasons: set[str] = field(default_factory=set)


class Summary:
    """Collects what is to be told."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._seen: set[tuple[str, Key]] = set()
        self._counts: dict[Key, _Count] = {}
        self._problems: dict[str, float] = {}
        self.next_due = time.monotonic() + EVERY

    def add(self, key: Key, pid: int, command: str, outcome: Outcome) -> None:
        """What became of a hotpatch in a process."""
        if outcome.outcome not in ("applied", "failed"):
            return
        good = outcome.outcome == "applied"
        if (outcome.outcome, key) not in self._seen:
            self._seen.add((outcome.outcome, key))
            if good:
                milliseconds = f"stood still for {outcome.stopped * 1e3:.2f} ms"
                self._tell(Notice("applied", f"{show(key)} in process {pid} ({command}), {milliseconds}"))
            else:
                self._tell(Notice("failed", f"{show(key)} in process {pid} ({command}): {outcome.reason}"))
            return
        count = self._counts.setdefault(key, _Count())
        count.applied += good
        count.failed += not good

    def problem(self, text: str) -> None:
        """Something that is not as it should be: told once an hour while it stays so."""
        now = time.monotonic()
        if now - self._problems.get(text, -1e9) >= 3600:
            self._problems = {known: at for known, at in self._problems.items() if now - at < 3600}
            self._problems[text] = now
            self._tell(Notice("problem", text))

    def step(self, now: float) -> None:
        """Tell what was collected, when its time has come."""
        if now >= self.next_due:
            self.next_due = now + EVERY
            self.close()

    def close(self) -> None:
        """Tell what was collected."""
        for key, count in self._counts.items():
            if count.applied:
                self._tell(Notice("applied", f"{show(key)} in {count.applied} more processes"))
            if count.failed:
                self._tell(Notice("failed", f"{show(key)}: {count.failed} more tries; see midflight agent status"))
        self._counts.clear()
