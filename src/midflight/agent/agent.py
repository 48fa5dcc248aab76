"""The loop: events lead to looks at processes, looks to applying, crashes and failed probes to taking out and a bar.

One thread does everything, one thing at a time, the most urgent first: what just happened, then looks that are due,
then the look at all processes that goes on in the background in small pieces, then timers. Whatever is killed at any
moment is cleared up at the next start; hotpatches stay in force when the agent stops.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from midflight.agent import clocks
from midflight.agent.health import crash
from midflight.agent.looks import SOON, SOON_COMPARED, Look, Looks
from midflight.agent.notices import Notice, Tell
from midflight.agent.observation import Observation
from midflight.agent.orders import Key, Orders, OrderSource, Wanted, key_of, show, wanted, withdrawn
from midflight.agent.patcher import Patcher, Seen
from midflight.agent.scope import Scope
from midflight.agent.settings import Settings
from midflight.agent.state import Application, Cause, State
from midflight.agent.summary import Summary
from midflight.agent.tracked import Processes, Tracked, suspects
from midflight.engine.startup import Startup
from midflight.engine.transaction import Outcome
from midflight.errors import MidflightError, ProcessGone
from midflight.patch.hotpatch import Hotpatch
from midflight.process.events import Event, ProcessEvents
from midflight.process.live import LiveProcess, alive, command_name, hold, holding_tells, open_process, program_of

_COMPARED = sys.platform == "win32"
"""Whether processes must be seen twice to know that they are complete."""
_ORDERS_EVERY = 1.0
_FLUSH_EVERY = 0.5
_MOST_PLAIN = 10_000
_SLICE = 0.002
"""Seconds of background work between two looks at what happened."""
_RESCAN_SHARE, _RESCAN_STRETCH = 1000.0, 10.0
"""The look at all processes is repeated after the time that is set, or after this many times what it took (0.1 % of one
processor), whichever is longer; but never after more than ten times what is set."""


class ServiceManager(Protocol):
    """Whoever started us, and wants to hear that we are well."""

    def ready(self, status: str) -> None:
        """The first look at the machine is about to begin; events are coming in."""

    def alive(self, status: str) -> None:
        """Called often."""

    def stopping(self) -> None:
        """We are about to end."""


class Foreground:
    """Nobody wants to hear anything."""

    def ready(self, status: str) -> None:
        """See the protocol."""

    def alive(self, status: str) -> None:
        """See the protocol."""

    def stopping(self) -> None:
        """See the protocol."""


class Agent:
    """One agent; ``run`` it, and ``stop`` it from a signal handler or another thread."""

    def __init__(
        self, settings: Settings, source: OrderSource, events: ProcessEvents, state: State, tell: Tell,
        service: ServiceManager | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._source, self._events, self._state, self._tell = settings, source, events, state, tell
        self._service: ServiceManager = service or Foreground()
        self._patcher = Patcher(settings.timeout, Scope(settings.processes))
        self._processes = Processes()
        self._summary = Summary(tell)
        self._observation = Observation(settings, state)
        self._orders = Orders()
        self._wanted = Wanted()
        self._hold = not events.tells_how_processes_end
        self._looks = Looks(SOON_COMPARED if _COMPARED else SOON)
        self._seen: dict[int, int] = {}
        self._missing: set[int] = set()
        self._plain: set[tuple[int, int, int] | None] = set()
        self._background: deque[int] = deque()
        self._background_cost = 0.0
        self._rescan_at = 0.0
        self._orders_at = self._flush_at = 0.0
        self._still_in: set[Key] = set()
        self._trouble = ""
        self._stopping = False

    def stop(self) -> None:
        """Let ``run`` return soon. Everything that is in force stays so."""
        self._stopping = True
        self._events.wake()

    def hurry(self) -> None:
        """Orders changed: look at them now. May be called from another thread."""
        self._orders_at = 0.0
        if not self._stopping:
            self._events.wake()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop``."""
        try:
            self._start()
            while not self._stopping:
                self._step()
        finally:
            self._stopping = True
            self._service.stopping()
            self._observation.close()
            self._summary.close()
            self._tell(Notice("stopped", "the agent stops; what is in force stays in force"))
            self._state.fact("stopped", time.time())
            self._state.close()
            self._patcher.close()
            self._events.close()

    def _start(self) -> None:
        self._state.prune()
        for key, value in (
            ("started", time.time()), ("source", self._source.describe()), ("events", self._events.source),
            ("stopped", None),
        ):  # fmt: skip
            self._state.fact(key, value)
        self._tell(Notice("started", f"{self._source.describe()}; new processes are noticed by {self._events.source}"))
        if self._state.lost:
            self._tell(Notice("problem", self._state.lost))
        if self._hold and not holding_tells():
            text = "how processes end is not told here: crashes are not noticed"
            self._state.fact("events", f"{self._events.source}; {text}")
            self._tell(Notice("problem", text))
        for outcome in self._patcher.recover():
            what = f"process {outcome.pid}, which carries what an earlier run put there"
            self._tell(Notice("problem", f"{what}: {outcome.reason}"))
        self._remember()
        self._look_at_orders(first=True)
        # What is here now stays: to look through it again and again would cost 20 ms, in which a new process waits.
        gc.collect()
        gc.freeze()
        self._service.ready(self._status())

    def _remember(self) -> None:
        """Processes that an earlier agent patched are observed on."""
        offset = time.monotonic() - clocks.uptime()
        for one in self._state.alive():
            try:
                with open_process(one.pid) as process:
                    if process.start_time != one.start_time:
                        raise ProcessGone(f"process {one.pid} is another one now")
                    tracked = self._processes.of(process, one.command)
                    tracked.applied[one.name, one.sequence] = one.uptime + offset
                    self._keep_hold(tracked, process)
            except MidflightError:
                self._state.ended(one.pid, one.start_time, "while no agent ran")

    def _step(self) -> None:
        for event in self._events.wait(self._pause()):
            self._happened(event)
        self._due_looks()
        self._work_in_background()
        self._timers()
        self._service.alive(self._status())

    def _pause(self) -> float:
        """Seconds until something is to be done whatever happens."""
        if self._background:
            return 0.0
        now = time.monotonic()
        times = [self._orders_at, self._rescan_at, self._summary.next_due]
        due = self._looks.next_due()
        if due is not None:
            times.append(due)
        if self._state.dirty:
            times.append(self._flush_at)
        pause = self._observation.pause(clocks.uptime())
        return max(0.0, min(min(times) - now, pause))

    def _happened(self, event: Event) -> None:
        if event.kind == "missed":
            self._rescan_at = 0.0
        elif event.kind == "started":
            self._ended(event.pid, "it became another program")
            if self._wanted.by_image:
                program = program_of(event.pid)
                self._looks.begin(event.pid, event.at, program, later=program in self._plain)
        elif event.kind == "forked":
            if not self._processes.forked(event.parent, event.pid, event.at):
                self._looks.begin(event.pid, event.at)
        elif event.kind == "ended":
            self._looks.forget(event.pid)
            self._seen.pop(event.pid, None)
            tracked = self._processes.get(event.pid)
            if tracked is not None:
                ending = tracked.held.ending() if tracked.held is not None else None
                signal, status = ending or (event.signal, event.status)
                how = crash(signal, status)
                known = f"signal {signal}, status {status}" if signal or status or not self._hold else "it ended"
                self._ended(event.pid, f"crashed {how}" if how else known)
                if how:
                    self._crashed(tracked, how)

    def _ended(self, pid: int, how: str) -> None:
        tracked = self._processes.forget(pid)
        if tracked is not None:
            if tracked.start_time:
                self._state.ended(pid, tracked.start_time, how)
            if tracked.held is not None:
                tracked.held.close()

    # -- looking and applying ----------------------------------------------------------------------------------------

    def _due_looks(self) -> None:
        until = time.monotonic() + 20 * _SLICE
        while (look := self._looks.due(time.monotonic())) is not None:
            self._look(look, young=not look.retry)
            if time.monotonic() > until:
                return  # first see what else happened

    def _look(self, look: Look, young: bool) -> None:
        try:
            with self._patcher.see(look.pid, self._wanted.by_image.keys(), young) as seen:
                before = self._seen.get(look.pid)
                complete = seen.startup is Startup.COMPLETE or (
                    seen.startup is Startup.UNKNOWN and before == seen.mapped
                )
                self._seen[look.pid] = seen.mapped
                if complete or not young:
                    self._seen.pop(look.pid, None)
                    if seen.images:
                        self._plain.discard(look.program)
                        self._serve(seen, look)
                    elif look.program is not None:
                        self._plain.add(look.program)
                elif not self._looks.again(look):
                    self._seen.pop(look.pid, None)
        except ProcessGone:
            self._seen.pop(look.pid, None)
        except MidflightError:
            pass  # another user's process, which we may not look at
        except Exception as error:
            # One strange process must not keep all others from being patched.
            self._summary.problem(f"internal error with process {look.pid}: {type(error).__name__}: {error}")

    def _serve(self, seen: Seen, look: Look) -> None:
        """Put into a process what is wanted there."""
        process = seen.process
        tracked = self._processes.get(process.pid)
        if tracked is not None and tracked.start_time not in (0, process.start_time):
            self._happened(Event("ended", process.pid, time.monotonic()))
            tracked = None
        command = tracked.command if tracked is not None and tracked.start_time else command_name(process.pid)
        tracked = self._processes.of(process, command)
        self._keep_hold(tracked, process)
        failed = False
        for hotpatch in self._wanted.for_images(seen.images):
            mine = {(hotpatch.digest, t.build_id) for t in hotpatch.manifest.targets if t.build_id in seen.images}
            if mine <= tracked.done:
                continue
            # Noted before, since a process may crash of it before we are back; its end is told afterwards.
            key, begun = key_of(hotpatch), time.monotonic()
            before = tracked.applied.setdefault(key, begun)
            outcome = self._patcher.apply(process, hotpatch, tracked.failures)
            if outcome.outcome in ("applied", "already"):
                tracked.done |= mine
                self._came_in(tracked, hotpatch)
            elif not alive(process):
                return
            else:
                if before == begun:
                    del tracked.applied[key]
                tracked.done |= mine if outcome.outcome == "skipped" else set()
                failed = failed or outcome.outcome == "failed"
            self._note(tracked, key_of(hotpatch), hotpatch.digest, outcome)
        if failed:
            tracked.failures += 1
            self._looks.retry(process.pid, look.number + 1 if look.retry else 0, time.monotonic())
        else:
            tracked.failures = 0

    def _keep_hold(self, tracked: Tracked, process: LiveProcess) -> None:
        """Where events do not say how a process ends, it can be asked who was held before."""
        if self._hold and tracked.held is None:
            tracked.held = hold(process)

    def _came_in(self, tracked: Tracked, hotpatch: Hotpatch) -> None:
        key = key_of(hotpatch)
        for other in [k for k in tracked.applied if k[0] == key[0] and k != key]:
            del tracked.applied[other]  # replaced
        tracked.applied.setdefault(key, time.monotonic())
        self._observation.begin(key, clocks.uptime())

    def _note(self, tracked: Tracked, key: Key, digest: str, outcome: Outcome) -> None:
        if outcome.outcome != "skipped" or "ended" not in outcome.reason:
            self._state.note(
                Application(
                    tracked.pid, tracked.start_time, tracked.command, *key, digest, outcome.outcome, outcome.reason,
                    outcome.stopped, clocks.uptime(),
                )
            )  # fmt: skip
        self._summary.add(key, tracked.pid, tracked.command, outcome)

    # -- everything, in the background -------------------------------------------------------------------------------

    def _begin_rescan(self) -> None:
        now = time.monotonic()
        if len(self._plain) > _MOST_PLAIN:
            self._plain.clear()
        pids = [process.pid for process in self._patcher.processes()]
        self._background = deque(pids)
        # Who is missing twice has ended without our hearing of it; once may be that we hear of it in a moment.
        missing = {tracked.pid for tracked in self._processes} - set(pids)
        for pid in missing & self._missing:
            self._happened(Event("ended", pid, now))
        self._missing = missing
        self._background_cost = time.monotonic() - now
        self._rescan_at = now + self._settings.rescan * _RESCAN_STRETCH
        if self._still_in:
            self._take_out(sorted(self._still_in), "it is to be out")

    def _work_in_background(self) -> None:
        if not self._background:
            if time.monotonic() < self._rescan_at:
                return
            self._begin_rescan()
        begin = time.monotonic()
        while self._background and time.monotonic() - begin < _SLICE:
            pid = self._background.popleft()
            if not self._wanted.by_image:
                self._background.clear()
            elif not self._looks.waits_for(pid):
                self._look(Look(pid, 0, begin), young=False)
        self._background_cost += time.monotonic() - begin
        if not self._background:
            usual = self._settings.rescan
            pause = max(usual, min(self._background_cost * _RESCAN_SHARE, usual * _RESCAN_STRETCH))
            self._rescan_at = time.monotonic() + pause

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _crashed(self, tracked: Tracked, how: str) -> None:
        keys = suspects(tracked, time.monotonic(), self._settings.crash_window)
        if keys:
            why = f"process {tracked.pid} ({tracked.command}) crashed {how} soon after it was applied"
            self._tell(Notice("crashed", f"{', '.join(map(show, keys))}: {why}"))
            self._bar(keys, why, "crashed")

    def _bar(self, keys: Iterable[Key], why: str, cause: Cause) -> None:
        """Never again on this machine until somebody looks; on record before the first process is touched."""
        keys = list(keys)
        for key in keys:
            self._state.bar(*key, why, cause)
            self._observation.end(key)
            self._tell(
                Notice(
                    "barred",
                    f"{show(key)} is barred on this machine: {why}; look at it, then midflight agent unbar {key[0]}",
                )
            )
        self._decide()
        self._take_out(keys, why)
        self._source.barred()

    def _take_out(self, keys: list[Key], why: str) -> None:
        outcomes = self._patcher.take_out(keys, lambda: self._service.alive(self._status()))
        out = [o for o in outcomes if o.outcome == "reverted"]
        left = [o for o in outcomes if o.outcome == "failed"]
        text = ", ".join(map(show, keys))
        if out:
            self._tell(Notice("reverted", f"{text}: taken out of {len(out)} processes, since {why}"))
        for outcome in left:
            self._tell(Notice("failed", f"{text}: cannot be taken out of process {outcome.pid}: {outcome.reason}"))
        for key in keys:
            self._observation.end(key)
            (self._still_in.add if left else self._still_in.discard)(key)
            self._processes.reverted(key)
        for outcome in out + left:
            tracked = self._processes.get(outcome.pid)
            for key in keys:
                command = tracked.command if tracked is not None else command_name(outcome.pid)
                self._state.note(
                    Application(
                        outcome.pid, outcome.start_time, command, *key, "", outcome.outcome, outcome.reason or why,
                        outcome.stopped, clocks.uptime(),
                    )
                )  # fmt: skip

    # -- orders and timers -------------------------------------------------------------------------------------------

    def _timers(self) -> None:
        now = time.monotonic()
        if now >= self._orders_at:
            self._orders_at = now + _ORDERS_EVERY
            self._look_at_orders()
        failed = self._observation.step(clocks.uptime(), self._processes.with_key)
        if failed is not None:
            keys, why = failed
            self._bar(keys, f"a probe failed: {why}", "health_failed")
        self._summary.step(now)
        if self._state.dirty and now >= self._flush_at:
            self._flush_at = now + _FLUSH_EVERY
            self._state.flush()
            if self._state.trouble and self._state.trouble != self._trouble:
                self._tell(Notice("problem", f"the state cannot be written ({self._state.trouble}): it is tried again"))
            self._trouble = self._state.trouble

    def _look_at_orders(self, first: bool = False) -> None:
        before = self._state.bars()
        if self._state.reread_bars():
            after = self._state.bars()
            for key in before.keys() - after.keys():
                self._tell(Notice("unbarred", f"{show(key)} is not barred any more"))
            fresh = after.keys() - before.keys()
            for key in fresh:
                self._tell(Notice("barred", f"{show(key)} is barred on this machine: {after[key].reason}"))
            self._decide()
            if fresh:
                self._take_out(sorted(fresh), "it was barred")
        orders = self._source.look()
        if orders is None:
            return
        # What was ordered before the agent started counts too: it may have been withdrawn meanwhile.
        ordered = self._state.ordered() if first else {key_of(hotpatch) for hotpatch in self._orders.hotpatches}
        self._orders = orders
        now = {key_of(hotpatch) for hotpatch in orders.hotpatches}
        self._decide()
        gone = [key for key in withdrawn(ordered, now) if key not in orders.out]
        if orders.out:
            self._take_out(sorted(orders.out), "that was ordered")
        if gone and self._settings.removed == "revert":
            self._take_out(gone, "it is not ordered any more")
        elif gone:
            self._tell(Notice("orders", f"{', '.join(map(show, gone))}: not ordered any more, stays where it is"))
        self._state.fact("ordered", sorted(now))

    def _decide(self) -> None:
        """Work out anew what is wanted, and look at everything with that in mind."""
        self._wanted = wanted(self._orders, self._state.bars().keys())
        problems = [*self._orders.problems, *self._wanted.problems]
        self._state.fact("wanted", sorted(self._wanted.keys))
        self._state.fact("problems", problems)
        self._tell(Notice("orders", f"in force: {', '.join(map(show, sorted(self._wanted.keys))) or 'nothing'}"))
        for what, why in problems:
            self._summary.problem(f"{what}: {why}")
        self._observation.keep(self._wanted.keys)
        self._plain.clear()
        self._rescan_at = 0.0
        self._background.clear()

    def _status(self) -> str:
        return f"{len(self._wanted.keys)} hotpatches in force, {len(self._processes)} processes patched"
