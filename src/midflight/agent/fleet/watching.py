"""Looks that are taken now and then: code memory against disk and ledger, and how hotpatches do after they came in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from midflight.agent import clocks
from midflight.agent.fleet.records import Ordered, Records
from midflight.agent.fleet.report import Watched, plain
from midflight.agent.fleet.survey import Survey
from midflight.agent.health import CHECKS
from midflight.agent.notices import Notice, Tell
from midflight.agent.state import Snapshot
from midflight.engine.integrity import Difference, check
from midflight.errors import MidflightError
from midflight.process.live import command_name, open_process
from midflight.trust.checkin import Violation

AT_ONCE = 20
"""Processes that one round looks at; the next round goes on with the next ones."""
_CONFIRM = 1.0
"""Seconds after which a difference must still be there: the agent may be at work in that process."""


class Integrity:
    """Compares the code of patched processes with disk plus ledger, some at a time."""

    def __init__(self, records: Records, tell: Tell, pause: Callable[[float], None] = time.sleep) -> None:
        self._records, self._tell, self._pause = records, tell, pause
        self._last = 0

    def violations(self) -> list[Violation]:
        """What was found, and is so still as far as is known."""
        return [
            Violation(v["build_id"], v["path"], v["process"], v["detail"], datetime.fromtimestamp(v["found"], UTC))
            for v in self._known()
        ]

    def round(self, survey: Survey, now: datetime) -> None:
        """Look at the next ones.

        Raises:
            StateError: it cannot be recorded.
        """
        patched = sorted({pid for one in survey.running.values() for pid in one.pids})
        if not patched:
            self._records.remember({"violations": []})
            return
        order = [pid for pid in patched if pid > self._last] + [pid for pid in patched if pid <= self._last]
        chosen = order[:AT_ONCE]
        self._last = chosen[-1]
        suspects = [pid for pid in chosen if self._differences(pid)]
        found: dict[int, list[dict[str, Any]]] = {pid: [] for pid in chosen}
        if suspects:
            self._pause(_CONFIRM)
        for pid in suspects:
            for difference in self._differences(pid)[:5]:
                found[pid].append(_violation(pid, difference, survey, now))
        self._keep(found, set(patched))

    def _keep(self, found: dict[int, list[dict[str, Any]]], patched: set[int]) -> None:
        known = {(v["pid"], v["detail"]): v for v in self._known()}
        kept = [v for v in known.values() if v["pid"] in patched and v["pid"] not in found]
        for violations in found.values():
            for violation in violations:
                before = known.get((violation["pid"], violation["detail"]))
                if before is None:
                    self._tell(Notice("problem", f"code of {violation['process']} was altered: {violation['detail']}"))
                kept.append(before or violation)
        self._records.remember({"violations": kept[:200]})

    def _known(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._records.fact("violations", [])
        return found

    @staticmethod
    def _differences(pid: int) -> Sequence[Difference]:
        try:
            with open_process(pid) as process:
                return check(process).differences
        except MidflightError:
            return ()


def _violation(pid: int, difference: Difference, survey: Survey, now: datetime) -> dict[str, Any]:
    path = difference.where.partition(" ")[0]
    build_id = next((b for (b, p), pids in survey.images.items() if p == path and pid in pids), "")
    guess = f", {difference.guess}" if difference.guess else ""
    return {
        "pid": pid,
        "build_id": build_id,
        "path": path if path.startswith("/") else "",
        "process": plain(f"{command_name(pid)} ({pid})", 200),
        "detail": plain(f"{difference.size} bytes at {difference.start:#x} in {difference.where}{guess}"),
        "found": int(now.timestamp()),
    }


def watched(
    rows: Sequence[Ordered], snapshot: Snapshot, probes: bool, checks: Sequence[float] = CHECKS
) -> list[Watched]:  # fmt: skip
    """How hotpatches do after they came into force here.

    Args:
        probes: whether there are any; otherwise a check that is over without a crash has passed.
    """
    digests = {row.key: row.sha256 for row in rows}
    found = []
    for watch in snapshot.watches:
        sha256 = digests.get((watch.name, watch.sequence))
        if sha256 is None:
            continue
        over = [after for after in checks if clocks.uptime() >= watch.since + after]
        passed = over[: watch.passed] if probes else over
        found.append(Watched(sha256, tuple(int(after) for after in passed)))
    for bar in snapshot.bars:
        sha256 = digests.get((bar.name, bar.sequence))
        if sha256 is not None and bar.cause != "hand":
            found.append(Watched(sha256, (), plain(bar.reason)))
    return found
