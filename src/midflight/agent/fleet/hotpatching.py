"""Carries out what was decided of hotpatches, and finds out from the memory of processes what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime

from midflight.agent.fleet.contents import Contents, DiskFull, Mismatch
from midflight.agent.fleet.decisions import Decision
from midflight.agent.fleet.reasons import Code
from midflight.agent.fleet.records import Ordered, Records
from midflight.agent.fleet.report import plain
from midflight.agent.fleet.survey import Survey
from midflight.agent.notices import Notice, Tell
from midflight.agent.orders import Orders
from midflight.agent.state import Snapshot
from midflight.errors import MidflightError, PatchFileError
from midflight.patch.hotpatch import Hotpatch
from midflight.trust.checkin import Outcome, Result
from midflight.trust.content import Catalog, Content
from midflight.trust.errors import ContentError

LARGE = 4 << 20
"""Bytes from which on a download is told of before it begins."""


@dataclass(frozen=True, slots=True)
class Post:
    """Keeps outcomes for the server, with the time at which they happened."""

    records: Records
    now: Callable[[], datetime]

    def __call__(
        self,
        action: str,
        deployment: str | None,
        result: Result,
        code: str,
        detail: str = "",
        processes: int = 0,
        stopped_us: int = 0,
    ) -> bool:
        """Keep one; False: it was kept before."""
        at = self.now().replace(microsecond=0)
        return self.records.post(
            Outcome(action, deployment, result, at, code, plain(detail), processes, stopped_us)
        )  # fmt: skip


class Hotpatching:
    """The hotpatches of one device.

    Args:
        patience: seconds after which an apply that fails has failed.
    """

    def __init__(self, records: Records, contents: Contents, post: Post, tell: Tell, patience: float) -> None:
        self._records, self._contents, self._post, self._tell = records, contents, post, tell
        self._patience = patience
        self._since: dict[tuple[str, str], float] = {}
        self._settled: set[tuple[str, str]] = set()
        """(sha256, action) of what has come to an end as far as is known."""
        self.problems: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether something is on its way."""
        rows = self._records.hotpatches()
        return any(
            row.state == "out" or (row.state == "in_force" and (row.sha256, row.action) not in self._settled)
            for row in rows
        )

    # -- doing -------------------------------------------------------------------------------------------------------

    def carry_out(self, decision: Decision, survey: Survey) -> None:
        """Do what was decided of one action, and tell the server what will not be done.

        Raises:
            StateError: it cannot be recorded, so it was not done.
        """
        action, content = decision.action, decision.content
        rows = {row.sha256: row for row in self._records.hotpatches()}
        row = rows.get(action.sha256 or "")
        if action.kind == "revert":
            self._revert(decision, row, survey)
        elif decision.step in ("wait", "refuse"):
            result: Result = "waiting" if decision.step == "wait" else "refused"
            if self._post(action.id, action.deployment, result, decision.code, decision.detail):
                self._tell(Notice("orders", f"{action.target}: {result}: {decision.detail}"))
            if decision.code == Code.AWAITING_WINDOW and content is not None:
                self._fetch(decision, content)
        elif decision.step == "confirm":
            if row is not None and (row.action, row.deployment) != (action.id, action.deployment):
                self._records.order(replace(row, action=action.id, deployment=action.deployment))
        elif content is not None and not (row is not None and row.state == "gone" and row.action == action.id):
            self._begin(decision, content)

    def _begin(self, decision: Decision, content: Content) -> None:
        action, about = decision.action, content.about
        if content.length > LARGE and self._contents.fetched(content.sha256) is None:
            self._post(action.id, action.deployment, "downloading", "downloading")
        if self._fetch(decision, content) is None:
            return
        path = self._contents.fetched(content.sha256)
        assert path is not None
        row = Ordered(
            content.sha256, about.name, about.sequence, path.name, about.images, "in_force", action.id,
            action.deployment, time.time(),
        )  # fmt: skip
        self._records.order(row)
        self._since[row.sha256, row.state] = time.monotonic()
        self._tell(Notice("orders", f"{about.name} {about.sequence} comes into force ({action.id})"))

    def _fetch(self, decision: Decision, content: Content) -> Hotpatch | None:
        """Have a hotpatch on this machine, looked at; None: not now, or never."""
        action = decision.action
        what = action.target or ""
        try:
            hotpatch = self._contents.described(content, self._contents.fetch(content))
        except (Mismatch, PatchFileError) as error:
            self._post(action.id, action.deployment, "refused", Code.CONTENT_MISMATCH, str(error))
            self.problems[what] = str(error)
            return None
        except ContentError as error:
            code = Code.DISK_LOW if isinstance(error, DiskFull) else Code.CONTENT_UNAVAILABLE
            self._post(action.id, action.deployment, "waiting", code, str(error))
            self.problems[what] = str(error)
            return None
        self.problems.pop(what, None)
        return hotpatch

    def _revert(self, decision: Decision, row: Ordered | None, survey: Survey) -> None:
        action = decision.action
        sha256 = action.sha256 or ""
        running = next((one for (digest, _), one in survey.running.items() if digest == sha256), None)
        if row is not None and row.state == "out":
            return
        if row is not None and row.state == "in_force":
            row = replace(row, state="out", action=action.id, deployment=action.deployment, since=time.time())
        elif running is not None:  # it runs, and nobody here knows why
            row = Ordered(
                sha256, running.name, running.sequence, "", (), "out", action.id, action.deployment, time.time()
            )  # fmt: skip
        else:
            self._post(action.id, action.deployment, "reverted", Code.REVERTED, "it does not run here")
            return
        self._records.order(row)
        self._since[sha256, "out"] = time.monotonic()
        self._tell(Notice("orders", f"{row.name} {row.sequence} is to be taken out ({action.id})"))

    def heed_revocations(self, catalog: Catalog) -> None:
        """What was revoked is put into no further process; where its revocation says so, it is taken out."""
        for row in self._records.hotpatches():
            revocation = catalog.revocation(row.sha256)
            if revocation is None or row.state != "in_force":
                continue
            state = "out" if revocation.revert else "gone"
            self._records.order(replace(row, state=state, since=time.time()))  # type: ignore[arg-type]
            self._tell(Notice("orders", f"{row.name} {row.sequence} was revoked: {revocation.reason}"))

    # -- what came of it ---------------------------------------------------------------------------------------------

    def follow(self, survey: Survey, snapshot: Snapshot, revoked: Collection[str] = ()) -> None:
        """Tell the server what came of what is in force, and of what is to be out.

        Args:
            snapshot: what the agent knows, taken before the survey.
            revoked: sha256 of content that was revoked.

        Raises:
            StateError: it cannot be recorded.
        """
        bars = {(bar.name, bar.sequence): bar for bar in snapshot.bars}
        for row in self._records.hotpatches():
            if row.state == "gone":
                continue
            carriers = survey.carriers(row.sha256)
            bar = bars.get(row.key)
            if row.state == "out":
                code = Code.REVOKED if row.sha256 in revoked else Code.REVERTED
                self._going(row, carriers, code.value, "", survey)
            elif bar is not None:
                self._going(row, carriers, {"hand": "barred"}.get(bar.cause, bar.cause), bar.reason, survey)
            else:
                self._coming(row, carriers, survey, snapshot)

    def _going(self, row: Ordered, carriers: set[int], code: str, why: str, survey: Survey) -> None:
        waited = self._waited(row.sha256, "going")
        if not carriers:
            self._post(row.action, row.deployment, "reverted", code, why)
            self._records.order(replace(row, state="gone", since=time.time()))
        elif waited > self._patience:
            commands = ", ".join(sorted({f"{survey.commands.get(pid, '?')} ({pid})" for pid in carriers})[:5])
            self._post(row.action, row.deployment, "revert_failed", Code.REVERT_FAILED, f"still in {commands}")

    def _coming(self, row: Ordered, carriers: set[int], survey: Survey, snapshot: Snapshot) -> None:
        later = {
            pid
            for one in survey.running.values()
            if one.name == row.name and one.sequence > row.sequence
            for pid in one.pids
        }
        tries = {one.pid: one for one in snapshot.applications if one.digest == row.sha256}
        left_alone = {pid for pid, one in tries.items() if one.outcome == "skipped"}
        needs = survey.users(row.images) - carriers - later - left_alone
        mark = (row.sha256, row.action)
        if not needs:
            self._settled.add(mark)
            self._post(
                row.action, row.deployment, "applied", Code.APPLIED, "", len(carriers), survey.stopped_us(row.sha256)
            )
            return
        if needs <= survey.young and mark in self._settled:
            return
        waited = self._waited(row.sha256, "coming")
        failed = [tries[pid] for pid in needs if pid in tries and tries[pid].outcome == "failed"]
        if mark not in self._settled and waited > self._patience * (1 if failed else 3):
            self._settled.add(mark)
            one = min(failed, key=lambda t: t.pid, default=None)
            why = f"{one.command} ({one.pid}): {one.reason}" if one else "no try has come to an end"
            detail = f"{len(needs)} processes do not have it; {why}"
            stopped = survey.stopped_us(row.sha256)
            self._post(row.action, row.deployment, "failed", Code.APPLY_FAILED, detail, len(carriers), stopped)

    def _waited(self, sha256: str, what: str) -> float:
        return time.monotonic() - self._since.setdefault((sha256, what), time.monotonic())

    # -- for the loop ------------------------------------------------------------------------------------------------

    def orders(self, problems: Collection[tuple[str, str]]) -> Orders:
        """What is to be in force, and what is to be out, for the agent's loop."""
        found, out, wrong = [], set(), list(problems) + sorted(self.problems.items())
        for row in self._records.hotpatches():
            if row.state == "out":
                out.add(row.key)
            elif row.state == "in_force":
                path = self._contents.folder / row.file
                try:
                    found.append(self._contents.hotpatch(row.sha256, path))
                except MidflightError as error:
                    wrong.append((f"{row.name} {row.sequence}", str(error)))
        return Orders(tuple(found), tuple(wrong), frozenset(out))

    def missing_files(self) -> list[str]:
        """sha256 of hotpatches in force whose file is not here any more: it is to be fetched again."""
        return [
            row.sha256
            for row in self._records.hotpatches()
            if row.state == "in_force" and not (self._contents.folder / row.file).exists()
        ]
