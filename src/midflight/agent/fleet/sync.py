"""The thread that speaks with the server and does what it may: check-ins, content, decisions, outcomes.

One thing at a time, each guarded by itself: what goes wrong in one is a problem that people are told of, is tried again
later, and keeps nothing else from going on. Nothing here can stop the agent's loop.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from midflight.agent import clocks
from midflight.agent.fleet import pace
from midflight.agent.fleet.baselines import LIVE, Around, Baselines
from midflight.agent.fleet.clock import DeviceClock
from midflight.agent.fleet.contents import Contents
from midflight.agent.fleet.conversation import Conversation
from midflight.agent.fleet.decisions import Situation, decide
from midflight.agent.fleet.eligibility import Machine
from midflight.agent.fleet.facts import disk_free, facts
from midflight.agent.fleet.following import Following
from midflight.agent.fleet.hotpatching import Hotpatching, Post
from midflight.agent.fleet.moments import JUMP
from midflight.agent.fleet.packages import NONE, Package, Packages
from midflight.agent.fleet.place import Place
from midflight.agent.fleet.reasons import Code
from midflight.agent.fleet.records import Records
from midflight.agent.fleet.report import Material, inventory_of, plain, state_of
from midflight.agent.fleet.source import FleetOrders
from midflight.agent.fleet.staging import Staging
from midflight.agent.fleet.survey import Survey, ended, root_of, survey
from midflight.agent.fleet.watching import Integrity, watched
from midflight.agent.notices import Notice, Tell
from midflight.agent.orders import Orders
from midflight.agent.scope import Scope
from midflight.agent.state import Snapshot, look, take_bar
from midflight.engine.modules import Files
from midflight.errors import MidflightError
from midflight.process.live import all_processes
from midflight.trust.agreement import Agreement, combine
from midflight.trust.checkin import ImageReport, Restart, State
from midflight.trust.content import Catalog
from midflight.trust.errors import InstructionsRefused
from midflight.trust.instructions import Instructions

REFRESH = 3600.0
"""Seconds after which the repository's metadata is asked for again: revocations come by it."""
REFRESH_LEAST = 15.0
AGAIN = 10.0
"""Seconds, on average, after which what went wrong here is tried again."""
QUIET = 60.0
"""Seconds between two looks at what came of orders, when nothing is on its way."""
USERS_EVERY = 0.5
"""Seconds between two looks at whether those that run what a baseline replaces are still there."""
OFFLINE = 15.0
"""The same for a device to which instructions are carried by hand."""
_REFUSED = {"unknown": Code.UNKNOWN_CONTENT, "revoked": Code.REVOKED, "unreadable": Code.AGENT_TOO_OLD}


class Sync:
    """The thread of one device; ``start`` it, and ``stop`` it."""

    def __init__(
        self, place: Place, orders: FleetOrders, tell: Tell, draw: Callable[[], float] = random.random
    ) -> None:
        self._place, self._orders, self._tell, self._draw = place, orders, tell, draw
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._problems: dict[str, str] = {}
        self._told_problems: dict[str, str] = {}
        self._laid: Orders | None = None
        self._urgent = False
        orders.news = self._news
        self._records = Records(place.state)
        self._clock = DeviceClock(self._records)
        self._contents = Contents(
            place.state, place.enrolled, place.trusted, place.server.mirror, place.server.proxy, place.timeouts
        )
        self._following = Following(self._records, place.enrolled)
        self._post = Post(self._records, self._clock.now)
        boot = clocks.boot()
        staging = Staging(place.state, self._records, boot, place.root)
        self._staging = staging
        self._hotpatching = Hotpatching(self._records, self._contents, self._post, tell, place.server.patience)
        self._baselines = Baselines(self._records, self._contents, staging, self._post, tell, place.server, boot)
        self._integrity = Integrity(self._records, tell, self._pause)
        self._scope = Scope(place.settings.processes)
        self._packages = Packages(str(place.root))
        self._root = root_of("self")
        self._files = Files()
        self._conversation = Conversation(place, self._records, self._clock, draw)
        self._survey = Survey()
        self._owners: dict[str, Package] = {}
        self._work_at = self._refresh_at = 0.0
        self._users: frozenset[int] = frozenset()
        """Processes that run what a baseline waits to replace."""
        self._refreshed_at = -REFRESH
        self._integrity_at = time.monotonic() + place.server.integrity
        self._active_since: float | None = None

    # -- the thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lay out what is in force as far as is known here, and begin."""
        if self._records.lost:
            self._problem("records", self._records.lost)
        self._guarded("instructions", lambda: self._following.restore(self._clock.now()))
        self._guarded("baselines", self._staging.settle)
        self._lay_out()
        if self._place.enrolled.connected:
            self._conversation.begin()
        self._thread.start()

    def stop(self) -> None:
        """End it; waits for what cannot be left half-done, a few seconds at most."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10.0)
        if not self._thread.is_alive():
            self._conversation.close()
            self._files.close()
            self._records.close()

    def _news(self) -> None:
        """Look at what happened at once, and tell it."""
        self._urgent = True
        self._wake.set()

    def _pause(self, seconds: float) -> None:
        """Sleep, unless it is to end."""
        if seconds < 0.01:
            time.sleep(seconds)
        else:
            self._wake.wait(seconds)

    def _run(self) -> None:
        while not self._stopping:
            self._step()
            now = time.monotonic()
            times = [self._work_at]
            if self._place.enrolled.connected:
                times.append(self._conversation.next_at)
            longest = USERS_EVERY if self._users else 3600.0
            self._wake.wait(max(0.0, min(min(times) - now, longest)))
            if not self._stopping:
                self._wake.clear()
            if any(ended(pid) for pid in self._users):
                self._users = frozenset()
                self._work_at = 0.0

    def _step(self) -> None:
        now = time.monotonic()
        due = self._place.enrolled.connected and now >= self._conversation.next_at
        if due or self._urgent or now >= self._work_at:
            self._urgent = False
            self._guarded("work", self._work)
        if self._place.enrolled.connected:
            if self._unheard():
                self._conversation.soon()
            if time.monotonic() >= self._conversation.next_at:
                before = self._following.held
                self._guarded("server", self._check_in)
                if self._following.held != before:
                    self._guarded("work", self._work)
        self._lay_out()

    def _unheard(self) -> bool:
        try:
            return bool(self._records.unheard())
        except MidflightError:
            return False

    def _guarded(self, what: str, work: Callable[[], object]) -> bool:
        """Do something; what goes wrong is a problem until it goes right."""
        try:
            work()
        except MidflightError as error:
            self._problem(what, str(error))
        except OSError as error:
            self._problem(what, f"{error.filename or what}: {error.strerror or error}")
        except Exception as error:
            self._problem(what, f"internal error: {type(error).__name__}: {error}")
        else:
            self._problems.pop(what, None)
            return True
        self._work_at = time.monotonic() + AGAIN * (0.5 + self._draw())
        return False

    def _problem(self, what: str, text: str) -> None:
        self._problems[what] = text

    def _lay_out(self) -> None:
        """Hand the orders to the agent's loop, when they changed."""
        problems = {**self._problems, **self._baselines.problems}
        for what, text in problems.items():
            if self._told_problems.get(what) != text:
                self._tell(Notice("problem", f"{what}: {text}"))
        self._told_problems = problems
        try:
            orders = self._hotpatching.orders(sorted(problems.items()))
        except MidflightError:
            return  # the records cannot be read now: what was laid out stays
        if orders != self._laid or (orders.out and self._hotpatching.active):
            self._laid = orders
            self._orders.lay_out(orders)

    # -- work --------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """See what came of the orders, and carry out what the instructions say."""
        now = time.monotonic()
        if self._place.server.instructions is not None:
            path = self._place.server.instructions
            self._guarded("instructions", lambda: self._carried(path))
        snapshot = look(self._place.state, clocks.boot())  # before the survey: see Hotpatching.follow
        self._look()
        catalog = self._catalog(now)
        if catalog is not None:
            self._hotpatching.heed_revocations(catalog)
        revoked = {one.sha256 for one in catalog.revoked} if catalog is not None else set()
        self._hotpatching.follow(self._survey, snapshot, revoked)
        moment = self._clock.moment()
        instructions = self._holding(max(moment.readings))
        if instructions is not None:
            if catalog is not None:
                self._lift(instructions, snapshot)
            self._carry_out(instructions, catalog, snapshot)
        self._baselines.follow(Around(self._survey, instructions, moment, self._back(moment.now)))
        self._users = frozenset(
            pid
            for one in self._records.baselines()
            if one.state in ("staged", "swapping", "swapped")
            for pid in self._survey.users(one.replaced)
        )
        self._integrity_round(now)
        self._tidy(catalog)
        self._records.remember({"patches_seen": len(self._survey.running)})
        self._schedule()

    def _schedule(self) -> None:
        """When to look again: soon while something is on its way, and before the instructions' next moment."""
        now = time.monotonic()
        active = self._hotpatching.active or self._baselines.active
        if not active:
            self._active_since = None
            self._work_at = now + (QUIET if self._place.enrolled.connected else OFFLINE)
        else:
            self._active_since = self._active_since or now
            # Looking costs what it costs: at most a tenth of one processor, and less the longer it lasts.
            self._work_at = now + max(10 * self._survey.took, pace.poll(QUIET, now - self._active_since))
        current = self._following.current
        if current is not None:
            moments = [window.start for window in current.windows] + [
                time_ for action in current.actions for time_ in (action.not_before, action.deadline) if time_
            ]
            ahead = [(one - self._clock.now()).total_seconds() for one in moments]
            self._work_at = min([self._work_at, *(now + left + 0.05 for left in ahead if left > 0)])

    def _holding(self, now: datetime) -> Instructions | None:
        """The instructions, while they hold; says so when they do not any more."""
        revoked = self._records.fact("revoked")
        if revoked:
            self._problem("device", f"the server does not know this device any more ({revoked}): it obeys no more; "
                          "what is in force stays; enroll it again: midflight agent enroll --again")  # fmt: skip
            return None
        self._problems.pop("device", None)
        current = self._following.current
        if current is None:
            return None
        found = self._following.in_force(now)
        if found is None:
            self._problem("instructions", f"those of {current.issued:%Y-%m-%d %H:%M} UTC are over: what is in force "
                          "stays, nothing new begins until the server is heard")  # fmt: skip
        return found

    def _look(self) -> None:
        processes = [process for process in all_processes() if self._scope.covers(process.pid)]
        self._survey = survey(processes, self._files, self._pause, self._root)
        self._owners = self._packages.of(self._survey.host)
        for name, path in self._place.server.files.items():
            # What the settings name, and no package has, goes by that name.
            if self._owners.get(real := str(path.resolve()), None) == NONE:
                self._owners[real] = Package(name)
        if len(self._files) > 400:
            self._files.close()
            self._files = Files()

    def _catalog(self, now: float) -> Catalog | None:
        """What exists, as fresh as it must be."""
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH * (0.9 + 0.2 * self._draw())
            if not self._guarded("content", self._refresh):
                self._refresh_at = now + REFRESH_LEAST * (1.0 + self._draw())
        if self._guarded("content-kept", self._contents.known):
            return self._contents.catalog
        if self._refreshed_at + REFRESH_LEAST < now:
            self._refresh_at = 0.0
        return None

    def _refresh(self) -> None:
        self._refreshed_at = time.monotonic()
        _, record = self._contents.refresh()
        if record is None:
            return
        followed = self._following.enrolled.followed(record)
        if followed != self._following.enrolled:
            followed.save()
            self._following.enrolled = followed
            self._place = replace(self._place, enrolled=followed)
            self._contents.follow(followed)
            self._conversation.moved(self._place)

    def _carried(self, path: Path) -> None:
        if self._following.carried(path, self._clock.now()):
            assert self._following.current is not None
            self._tell(Notice("orders", f"instructions {self._following.current.sequence} were carried here ({path})"))
            self._refresh_at = 0.0

    def _lift(self, instructions: Instructions, snapshot: Snapshot) -> None:
        """Lift the bars that somebody looked at on the server; once, for one set of instructions."""
        lifted = instructions.policy.get("lift_bars")
        if not isinstance(lifted, list) or not lifted or self._records.fact("lifted") == instructions.sequence:
            return
        self._records.remember({"lifted": instructions.sequence})
        keys = {row.key for row in self._records.hotpatches() if row.sha256 in lifted}
        for bar in snapshot.bars:
            if (bar.name, bar.sequence) in keys:
                take_bar(self._place.state, bar.name, bar.sequence)
                self._tell(Notice("unbarred", f"{bar.name} {bar.sequence}: somebody looked, says the server"))

    def _carry_out(self, instructions: Instructions, catalog: Catalog | None, snapshot: Snapshot) -> None:
        """Do what is to be done now. Without a catalogue (the repository cannot be had, or is over by our clock) only
        what takes hotpatches out: that needs nobody's word but the server's, and may be urgent."""
        if catalog is None:
            out = [action for action in instructions.actions if action.kind == "revert"]
            agreement = combine(out, Catalog(0, instructions.issued, {}, (), {}))
        else:
            agreement = self._agreement(instructions, catalog)
        self._tell_refused(agreement)
        for decision in decide(instructions, agreement.agreed, self._situation(snapshot)):
            if decision.action.kind == "baseline":
                self._baselines.carry_out(decision, self._survey, self._owners)
            else:
                self._hotpatching.carry_out(decision, self._survey)
            self._lay_out()

    def _agreement(self, instructions: Instructions, catalog: Catalog) -> Agreement:
        agreement = combine(instructions, catalog)
        new = any(one.reason == "unknown" for one in agreement.refused)  # published a moment ago, perhaps
        old = time.monotonic() - self._refreshed_at > REFRESH_LEAST
        if new and old and self._guarded("content", self._refresh):
            agreement = combine(instructions, self._contents.known())
        return agreement

    def _tell_refused(self, agreement: Agreement) -> None:
        for one in agreement.refused:
            code = _REFUSED.get(one.reason, Code.CONTENT_MISMATCH)
            if self._post(one.action.id, one.action.deployment, "refused", code, one.message):
                self._tell(Notice("problem", one.message))

    def _situation(self, snapshot: Snapshot) -> Situation:
        hotpatches = self._records.hotpatches()
        known = facts()
        machine = Machine(
            known.platform, known.kernel, known.agent, known.memory_free_mib, disk_free(self._place.state),
            frozenset(build_id for build_id, _ in self._survey.images),
            {package.name: package.version for package in self._owners.values() if package.name},
        )  # fmt: skip
        return Situation(
            machine,
            self._clock.moment(),
            {row.sha256: row.key for row in hotpatches if row.state == "in_force"},
            frozenset(row.sha256 for row in hotpatches if row.state == "out"),
            frozenset((bar.name, bar.sequence) for bar in snapshot.bars),
            frozenset(one.sha256 for one in self._records.baselines() if one.state in LIVE),
            frozenset(path.name.partition(".")[0] for path in self._contents.folder.glob("*.*")),
            frozenset(self._place.server.files),
        )

    def _integrity_round(self, now: float) -> None:
        if now >= self._integrity_at:
            self._integrity_at = now + self._place.server.integrity
            self._integrity.round(self._survey, self._clock.now())

    def _tidy(self, catalog: Catalog | None) -> None:
        """Fetch what should be here and is not; remove what nobody needs."""
        if catalog is None:
            return
        missing = set(self._hotpatching.missing_files())
        for content in catalog.contents.values():
            if content.sha256 in missing:
                self._contents.fetch(content)
        current = self._following.current
        ordered = {action.sha256 for action in current.actions if action.sha256} if current is not None else set()
        keep = ordered | {row.sha256 for row in self._records.hotpatches() if row.state == "in_force"}
        keep |= {one.sha256 for one in self._records.baselines() if one.state in ("staged", "swapping")}
        self._contents.prune(keep)

    def _back(self, now: datetime) -> datetime:
        found = self._records.fact("back")
        return datetime.fromtimestamp(found, now.tzinfo) if found else now - timedelta(days=3650)

    # -- the server --------------------------------------------------------------------------------------------------

    def _check_in(self) -> None:
        state, inventory = self._report()
        answer = self._conversation.check_in(self._following.held, state, inventory)
        if answer.instructions is not None:
            self._take(answer.instructions)

    def _take(self, envelope: bytes) -> None:
        """Follow new instructions.

        Raises:
            InstructionsRefused: they are not to be followed.
        """
        try:
            found = self._following.accept(envelope, self._clock.now())
        except InstructionsRefused as error:
            if error.reason != "untrusted":
                raise
            self._refresh()  # the server's keys may have been replaced
            found = self._following.accept(envelope, self._clock.now())
        kinds = ", ".join(sorted({action.kind for action in found.actions})) or "nothing to do"
        self._tell(Notice("orders", f"instructions {found.sequence} of the server: {kinds}"))
        if any(action.target is not None for action in found.actions):
            self._refresh_at = 0.0

    def _report(self) -> tuple[State, tuple[ImageReport, ...]]:
        snapshot = look(self._place.state, clocks.boot())
        rows = self._records.hotpatches()
        known = facts()
        more = {"source": "server"}
        if current := self._baselines.current():
            more["baselines"] = current[:1000]
        off = self._clock.moment().off
        if abs(off) > JUMP:
            more["clock_off_minutes"] = str(round(off.total_seconds() / 60))
        pending = Restart(known.reboot_pending, "the system waits for a restart" if known.reboot_pending else "")
        material = Material(
            known,
            clocks.boot(),
            self._survey,
            snapshot.bars,
            {row.key: row.sha256 for row in rows},
            watched(rows, snapshot, bool(self._place.settings.probes), self._place.settings.checks),
            self._integrity.violations(),
            self._baselines.restart if self._baselines.restart.pending else pending,
            {key: plain(value) for key, value in more.items()},
        )
        return self._conversation.settled(state_of(material), inventory_of(self._survey, self._owners))
