"""Sees baselines through: laid ready, swapped in when nobody is in the way, restarted as the policy says, accounted."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime

from midflight.agent.fleet import restarts
from midflight.agent.fleet.contents import Contents, DiskFull
from midflight.agent.fleet.decisions import Decision, window_at
from midflight.agent.fleet.hotpatching import Post
from midflight.agent.fleet.moments import Moment
from midflight.agent.fleet.packages import Package
from midflight.agent.fleet.reasons import Code
from midflight.agent.fleet.records import Baseline, Records
from midflight.agent.fleet.settings import ServerSettings
from midflight.agent.fleet.staging import Offer, Staging, StagingError
from midflight.agent.fleet.survey import Survey
from midflight.agent.notices import Notice, Tell
from midflight.errors import MidflightError
from midflight.trust.checkin import Restart
from midflight.trust.errors import ContentError
from midflight.trust.instructions import Instructions

AGAIN = 900.0
"""Seconds after which a restart that did not help is tried again."""
LIVE = ("staged", "swapping", "swapped", "current")
"""States in which a baseline is here."""


@dataclass(frozen=True, slots=True)
class Around:
    """What the baselines depend on at one moment."""

    survey: Survey
    instructions: Instructions | None
    """None: there are none that hold; then nothing is restarted."""
    moment: Moment
    back: datetime


class Baselines:
    """The baselines of one device."""

    def __init__(
        self, records: Records, contents: Contents, staging: Staging, post: Post, tell: Tell, settings: ServerSettings,
        boot: str,
    ) -> None:  # fmt: skip
        self._records, self._contents, self._staging = records, contents, staging
        self._post, self._tell, self._settings, self._boot = post, tell, settings, boot
        self._tried: dict[str, float] = {}
        self.restart = Restart()
        self.problems: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether something waits for processes to end."""
        return any(one.state in ("staged", "swapping", "swapped") for one in self._records.baselines())

    def carry_out(self, decision: Decision, survey: Survey, packages: dict[str, Package]) -> None:
        """Do what was decided of one action.

        Raises:
            StateError: it cannot be recorded, so it was not done.
        """
        action, content = decision.action, decision.content
        row = next((one for one in self._records.baselines() if one.sha256 == action.sha256), None)
        if decision.step in ("wait", "refuse"):
            result = "waiting" if decision.step == "wait" else "refused"
            if self._post(action.id, action.deployment, result, decision.code, decision.detail):  # type: ignore[arg-type]
                self._tell(Notice("orders", f"{action.target}: {result}: {decision.detail}"))
        elif decision.step == "confirm":
            if row is not None and row.action != action.id:
                row = self._records.baseline(replace(row, action=action.id, deployment=action.deployment))
                result = "applied" if row.state == "current" else "staged"
                code = Code.APPLIED if row.state == "current" else Code.RESTART_NEEDED
                self._post(action.id, action.deployment, result, code)  # type: ignore[arg-type]
        elif content is not None and not (row is not None and row.action == action.id):
            self._stage(decision, survey, packages)

    def _stage(self, decision: Decision, survey: Survey, packages: dict[str, Package]) -> None:
        action, content = decision.action, decision.content
        assert content is not None and content.about.package is not None
        about, package = content.about, content.about.package
        try:
            file = self._contents.fetch(content)
        except ContentError as error:
            code = Code.DISK_LOW if isinstance(error, DiskFull) else Code.CONTENT_UNAVAILABLE
            self._post(action.id, action.deployment, "waiting", code, str(error))
            self.problems[about.name] = str(error)
            return
        # Expedited: the deadline is over at once, the grace is not.
        expedited = action.options.get("any_time") is True and action.deadline is None
        within = 0 if expedited else action.options.get("restart_within_s")
        counted = time.time() + within if isinstance(within, int) else None
        deadline = action.deadline.timestamp() if action.deadline else counted
        old = {b for (b, path), _ in survey.images.items() if packages.get(path, Package()).name == package.name}
        offer = Offer(content, file, action.id, action.deployment, deadline)
        try:
            self._staging.stage(offer, self._settings.files.get(package.name), old - set(about.images))
        except MidflightError as error:
            if not isinstance(error, StagingError):
                raise
            self._post(action.id, action.deployment, "failed", Code.STAGING_FAILED, str(error))
            self.problems[about.name] = str(error)
            return
        self.problems.pop(about.name, None)
        self._post(action.id, action.deployment, "staged", Code.RESTART_NEEDED)
        self._tell(Notice("orders", f"baseline {about.name} {about.sequence} lies ready, and waits for a restart"))

    # -- following ---------------------------------------------------------------------------------------------------

    def follow(self, around: Around) -> None:
        """Take each baseline one step further, if it is time.

        Raises:
            StateError: it cannot be recorded.
        """
        waiting: list[tuple[Baseline, restarts.Plan]] = []
        for one in self._records.baselines():
            try:
                found = self._one(one, around)
            except StagingError as error:
                self.problems[one.name] = str(error)
                continue
            if found is not None:
                waiting.append((one, found))
        self._note(waiting)

    def _one(self, one: Baseline, around: Around) -> restarts.Plan | None:
        users = around.survey.users(one.replaced)
        if one.state == "failed":
            self._post(one.action, one.deployment, "failed", Code.STAGING_FAILED, one.detail)
        elif one.state == "returned":
            self._post(one.action, one.deployment, "reverted", Code.REVERTED, "it was taken back on the device")
        if one.state not in ("staged", "swapping", "swapped"):
            return None
        if one.state != "swapped" and self._free(one, users, around):
            one = self._swapped(self._staging.swap(one))
        if one.state == "swapped" and not users:
            self._current(one, around)
            return None
        if around.instructions is None:
            return restarts.NEVER
        deadline = None if one.deadline is None else restarts.instant(one.deadline)
        plan = restarts.plan(around.instructions, restarts.instant(one.since), deadline, around.back, around.moment)
        if plan.now and time.monotonic() - self._tried.get(one.sha256, -AGAIN) >= AGAIN:
            self._restart(one, users, plan)
        elif plan.warnings > one.warned and plan.forced is not None and not plan.now:
            self._warn(one, users, plan, plan.forced)
        return plan

    def _free(self, one: Baseline, users: set[int], around: Around) -> bool:
        """Whether it may be swapped in now: nobody runs what it replaces, or the machine was restarted."""
        if one.boot != self._boot or (one.replaced and not users):
            return True
        if users or around.instructions is None:
            return False
        return all(window_at(around.instructions, now) is not None for now in around.moment.readings)

    def _swapped(self, one: Baseline) -> Baseline:
        if one.state == "swapped":
            self._tell(Notice("orders", f"baseline {one.name} {one.sequence} is in its place ({one.place})"))
        return one

    def _current(self, one: Baseline, around: Around) -> None:
        users = around.survey.users(one.images) - around.survey.young
        if one.images and not users:
            return  # whoever uses it has not started yet
        self._records.baseline(replace(one, state="current", since=time.time()))
        self._post(one.action, one.deployment, "applied", Code.APPLIED, "", len(users))
        self._tell(Notice("orders", f"baseline {one.name} {one.sequence} runs: no hotpatch is needed for it any more"))
        for other in self._records.baselines():
            if other.name == one.name and other.sequence < one.sequence:
                self._records.drop_baseline(other.sha256)

    def _restart(self, one: Baseline, users: set[int], plan: restarts.Plan) -> None:
        means = self._means(one, users)
        if means.left and not plan.machine:
            return  # only people can restart those
        self._tried[one.sha256] = time.monotonic()
        if one.state != "swapped":
            one = self._swapped(self._staging.swap(one))
        commands = (self._settings.reboot,) if means.left else means.commands
        for command in commands:
            self._tell(Notice("orders", f"baseline {one.name} {one.sequence}: the policy has it restarted: {command}"))
            why = restarts.run(command)
            if why:
                self.problems[one.name] = f"the restart failed: {why}"
                self._tell(Notice("failed", f"baseline {one.name} {one.sequence}: the restart failed: {why}"))

    def _means(self, one: Baseline, users: set[int]) -> restarts.Means:
        return restarts.means(one.name, users, self._settings.restart, restarts.units_of(users))

    def _warn(self, one: Baseline, users: set[int], plan: restarts.Plan, forced: datetime) -> None:
        self._records.baseline(replace(one, warned=plan.warnings))
        machine = plan.machine and bool(self._means(one, users).left)
        why = restarts.warn(restarts.warning(one.name, forced, machine), self._settings.warn)
        said = f"users cannot be warned: {why}" if why else "users were warned"
        self._tell(Notice("problem" if why else "orders", f"{one.name}: a restart is due at {forced}; {said}"))

    def _note(self, waiting: list[tuple[Baseline, restarts.Plan]]) -> None:
        names = ", ".join(sorted({f"{one.name} {one.sequence}" for one, _ in waiting}))
        times = [plan.forced.replace(microsecond=0) for _, plan in waiting if plan.forced is not None]
        self.restart = Restart(bool(waiting), f"baseline {names}"[:200] if waiting else "", min(times, default=None))

    def current(self) -> str:
        """The baselines that run in place of what they replaced, for the server."""
        return ",".join(f"{one.name}:{one.sequence}" for one in self._records.baselines() if one.state == "current")
