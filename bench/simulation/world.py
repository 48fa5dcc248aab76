"""A year of a fleet, driven through the server's own rules: publishing, rollouts, check-ins, people, outages.

What devices do is simulated here; what they may do is decided by :mod:`midflight.server.domain` alone, by the
functions that the server calls; whether that was right is judged by :mod:`bench.simulation.checker`. A device that
has nothing to do is looked at every few days instead of every five minutes; one that has is woken as it would be.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from bench.simulation.checker import Checker, Watch
from bench.simulation.fleet import BEGIN, DAY, GROUPS, HOUR, Sim, build, moment, policies
from bench.simulation.scenario import OUTAGES, Bad, Scenario
from midflight.server.domain import (
    audience,
    compliance,
    coverage,
    deadlines,
    memberships,
    offers,
    rings,
    rollout,
    safeguards,
    standing,
    windows,
)
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.memberships import Result
from midflight.server.domain.model import (
    ComplianceState,
    Content,
    ContentKind,
    Deployment,
    DeviceState,
    Effective,
    Gate,
    Membership,
    Policy,
    RingTally,
)
from midflight.server.domain.reasons import Reason

IDLE = 4 * DAY
_HALTS = (Reason.HALTED_BY_FAILURES, Reason.HALTED_BY_SILENCE, Reason.REVERTING_BY_GATE)
_OPEN = (DeviceState.OFFERED, DeviceState.DOWNLOADING)
_BAD = (Result.FAILED, Result.CRASHED, Result.HEALTH_FAILED)


@dataclass(slots=True, eq=False)
class Live:
    """A deployment with what a database would keep and count for it."""

    deployment: Deployment
    policy: str
    content: Content
    tallies: list[dict[DeviceState, int]] = field(default_factory=list)
    sampled: list[datetime | None] = field(default_factory=list)
    successes: list[int] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    outcomes: list[safeguards.Outcome] = field(default_factory=list)
    started: bool = False
    reached: int = 0
    halted: int = 0
    """When it last halted."""
    ended: bool = False


@dataclass
class Published:
    """What became of a content: for the report."""

    content: Content
    at: int
    bad: Bad | None
    affected: int = 0
    fixed: list[int] = field(default_factory=list)
    reached: int = 0
    halts: list[tuple[int, int]] = field(default_factory=list)
    """When, and how many devices it had reached by then."""


class World:
    """The simulation; :meth:`run` lets time pass."""

    def __init__(self, count: int, days: int, seed: int = 1) -> None:
        self.minutes = days * DAY
        self.random = Random(seed)
        self.fleet = build(count, seed, self.minutes)
        self.checker = Checker(self.fleet)
        self.policies: dict[str, Policy] = policies()
        self.groups = audience.Groups(GROUPS)
        self.catalogue = Catalogue()
        self.scenario = Scenario(self)
        self.live: dict[str, Live] = {}
        self.plans: dict[str, tuple[offers.Plan, ...]] = {}
        self.holds: list[safeguards.Safeguard] = []
        self.published: dict[str, Published] = {}
        self.queue: list[list[tuple[int, int]]] = [[] for _ in range(days * 24 + 1)]
        self.now = 0
        self.checkins = self.decisions = 0
        self.exposure = self.stopped = 0.0
        self.restarts = 0
        self.governed: dict[int, tuple[frozenset[str], audience.Governance]] = {}
        self.compliance: list[tuple[int, compliance.Overview]] = []

    # -- time

    def run(self, until: str = "", each_month: Callable[[int], None] | None = None) -> None:
        """Let time pass, hour by hour, to the end, or until a promise is broken."""
        for device in self.fleet:
            self.schedule(device, device.enrolled + self.random.randrange(HOUR))
        for hour in range(self.minutes // HOUR):
            self.now = hour * HOUR
            if each_month and self.now % (30 * DAY) == 0:
                each_month(self.now)
            back = next((end for begin, end in OUTAGES if begin <= self.now < end), None)
            if back is not None:
                self._postpone(hour, back)
                continue
            self.scenario.hourly(self.now)
            self.background(self.now)
            self.checker.hourly(self.now)
            bucket = self.queue[hour]
            heapq.heapify(bucket)
            while bucket:
                minute, index = heapq.heappop(bucket)
                device = self.fleet[index]
                if device.due == minute:
                    self.check_in(device, minute)
            if self.now % (7 * DAY) == 0 and hour:
                self.evaluate(self.now)
            if until in self.checker.violations:
                break
        self._settle()

    def schedule(self, device: Sim, minute: int) -> None:
        """The device's next check-in, when it is on; it never goes back in time."""
        minute = device.online(minute)
        device.due = minute
        if minute // HOUR < len(self.queue):
            heapq.heappush(self.queue[minute // HOUR], (minute, device.index))

    def wake(self, device: Sim, within: int = HOUR) -> None:
        """Something is there for a device: its next ordinary check-in finds it, at a time the server paces."""
        minute = self.now + self.random.randrange(5, 5 + within)
        if device.enrolled <= self.now and minute < device.due:
            self.schedule(device, minute)

    def _postpone(self, hour: int, back: int) -> None:
        for minute, index in self.queue[hour]:
            if self.fleet[index].due == minute:
                self.schedule(self.fleet[index], back + self.random.randrange(HOUR))
        self.queue[hour] = []

    # -- what the server's background work does

    def background(self, minute: int) -> None:
        """Advance each deployment, mark silence."""
        now = moment(minute)
        for live in list(self.live.values()):
            if live.ended or (live.deployment.effective is Effective.DONE and minute % (6 * HOUR)):
                continue
            if minute % (12 * HOUR) == 0:
                self._silence(live, now)
            self.advance(live, now)

    def advance(self, live: Live, now: datetime, by_person: bool = False) -> None:
        """What the server's worker does for one deployment."""
        before, minute = live.deployment, (now - BEGIN) // timedelta(minutes=1)
        if not live.started and before.starts <= now:
            self._recruit(live)
        situation = self.situation(live)
        live.deployment, transitions = rollout.advance(before, situation, now)
        if live.deployment == before and not by_person:
            return
        for change in transitions:
            if change.after is not change.before:
                self.checker.changed(before.id, change.before, change.after, minute, by_person)
        after = live.deployment
        if after.ring_since is not None and (before.ring_since is None or after.ring != before.ring):
            first = before.ring + 1 if before.ring_since is not None else 0
            for ring in range(first, after.ring + 1):
                self.checker.opened(after.id, ring, minute)
                if ring < len(live.members):
                    for index in live.members[ring]:
                        self.wake(self.fleet[index])
        if before.ring_since is None and after.ring_since is not None:
            self.checker.required.setdefault(live.policy, []).append((live.content, minute))
        for change in transitions:
            if change.reason in _HALTS and change.before is not change.after:
                live.halted = minute
                self.published[live.content.id].halts.append((minute, live.reached))
        if after.effective is Effective.REVERTING and before.effective is not Effective.REVERTING:
            for index in live.running:
                self.wake(self.fleet[index])
        # one that was away may still come back with what was reverted
        live.ended = rollout.final(after) and after.reason is not Reason.DONE_REVERTED
        self.compile(live.policy)

    def situation(self, live: Live) -> rollout.Situation:
        """What the deployment is judged by: counts that a database would give."""
        tallies = [RingTally(states, last) for states, last in zip(live.tallies, live.sampled, strict=True)]
        superseded = any(
            other.policy == live.policy
            and other.content.package == live.content.package
            and other.content.kind is live.content.kind
            and other.content.sequence > live.content.sequence
            and other.deployment.reason is Reason.DONE_OFFERED
            for other in self.live.values()
        )
        policy = self.policies[live.policy]
        return rollout.Situation(self.catalogue[live.content.id], policy, tallies, superseded, len(live.running))

    def compile(self, policy: str) -> None:
        """Deployments as decisions need them."""
        mine = [live for live in self.live.values() if live.policy == policy and not live.ended]
        rules = self.policies[policy]
        self.plans[policy] = offers.compile_plans(
            offers.compile_plan(live.deployment, rules, self.catalogue[live.content.id]) for live in mine
        )

    def _recruit(self, live: Live) -> None:
        """At the start: rings for all that can take it."""
        live.started = True
        now = self.now
        candidates: dict[str, rings.Candidate] = {}
        chosen: list[Sim] = []
        for device in self.fleet:
            if device.policy != live.policy or device.enrolled > now or device.seen < 0:
                continue
            self.renew(device, join=False)
            mine = device.standing
            content = live.content.id
            if live.deployment.id in mine.outside or content in mine.fixed or content in mine.ineligible:
                continue
            groups = self.governed[device.index][0]
            candidates[device.id] = rings.Candidate(groups, content not in mine.held and now - device.seen < 5 * DAY)
            chosen.append(device)
        assigned = rings.assign(self.policies[live.policy].rings, live.deployment.id, candidates)
        for device in chosen:
            self.set(live, device, Membership(assigned[device.id]))

    def _silence(self, live: Live, now: datetime) -> None:
        gates = [ring.gate for ring in self.policies[live.policy].rings]
        if live.deployment.effective is Effective.OFFERING:
            self._absence(live, live.deployment.ring, gates[live.deployment.ring], now)
        for index in list(live.open):
            device = self.fleet[index]
            membership = device.standing.memberships[live.deployment.id]
            if membership.ring is not None:
                silent = memberships.silence(membership, moment(device.seen), gates[membership.ring], now)
                if silent:
                    self.set(live, device, silent)

    def _absence(self, live: Live, ring: int, gate: Gate, now: datetime) -> None:
        for index in live.members[ring]:
            device = self.fleet[index]
            membership = device.standing.memberships[live.deployment.id]
            seen, since = moment(device.seen), live.deployment.ring_since
            absent = memberships.silence(membership, seen, gate, now, since)
            if absent and absent.reason is Reason.ABSENT:
                self.set(live, device, absent)

    def set(self, live: Live, device: Sim, after: Membership) -> None:
        """Write a membership, and keep the counts."""
        table = device.standing.memberships
        before = table.get(live.deployment.id)
        table[live.deployment.id] = after  # type: ignore[index]
        if after.state in _OPEN:
            live.open.add(device.index)
        else:
            live.open.discard(device.index)
        if before is not None and before.ring is not None:
            live.tallies[before.ring][before.state] -= 1
        if after.ring is None:
            return
        self.checker.joined(live.deployment.id, device, after.ring)
        if before is None or before.ring is None:
            live.members[after.ring].append(device.index)
        states = live.tallies[after.ring]
        states[after.state] = states.get(after.state, 0) + 1
        if after.state is DeviceState.APPLIED and (before is None or before.state is not after.state):
            live.successes[after.ring] += 1
            if live.successes[after.ring] <= self.policies[live.policy].rings[after.ring].gate.min_sample:
                live.sampled[after.ring] = after.since

    # -- a device checks in

    def renew(self, device: Sim, join: bool = True) -> None:
        """Make a device's standing anew: its facts, its groups or the deployments changed."""
        device.known = facts = device.facts()
        if device.moved:
            # rules over tags alone: only a changed tag moves a device
            groups = self.groups.of(facts)
            self.governed[device.index] = (groups, audience.governing(self.policies.values(), groups))
            device.moved = False
        groups, governance = self.governed[device.index]
        mine = [live for live in self.live.values() if live.policy == device.policy and not live.ended]
        live = [(each.deployment, self.policies[each.policy]) for each in mine]
        holds = safeguards.in_force(self.holds, moment(self.now))
        table = device.standing.memberships
        device.standing = standing.standing(facts, groups, governance, table, live, self.catalogue, holds)
        device.windows = governance.policy.windows if governance.policy else ()
        device.stale = False
        if join:
            for each in mine:
                self._join(each, device, groups)

    def _join(self, live: Live, device: Sim, groups: frozenset[str]) -> None:
        """A newcomer, or one that can take it at last."""
        mine, content = device.standing, live.content.id
        known = mine.memberships.get(live.deployment.id)
        if not live.started or (known is not None and known.ring is not None):
            return
        if (
            live.deployment.id in mine.outside
            or content in mine.fixed
            or content in mine.ineligible
            or content in mine.running
        ):
            return
        taken = [len(members) for members in live.members]
        rules = self.policies[live.policy].rings
        ring = rings.assign(rules, live.deployment.id, {device.id: rings.Candidate(groups)}, taken=taken)[device.id]
        self.set(live, device, Membership(ring))

    def check_in(self, device: Sim, minute: int) -> None:
        """One check-in: reports in, decision out."""
        if minute >= device.retired:
            return
        self.checkins += 1
        came = device.online(device.seen + 1) if device.seen >= 0 else minute
        if came - device.seen > DAY:
            device.back = came
        device.seen = minute
        now = moment(minute)
        if device.staged and 0 <= device.restart <= minute:
            self._restart(device, minute)
        self.report(device, minute, now)
        if device.stale:
            self.renew(device)
        plans = self.plans.get(device.policy or "", ())
        spans = windows.schedule(device.windows, device.zone, now) if device.windows and plans else ()
        self.decisions += 1
        decision = offers.decide(device.standing, plans, spans, now)
        waits = False
        for deployment, verdict in decision.verdicts.items():
            changed = memberships.follow(device.standing.memberships[deployment], verdict, now)
            if changed:
                self.set(self.live[deployment], device, changed)
        following = minute + IDLE + self.random.randrange(DAY)
        for action in decision.actions:
            if action.kind is not offers.ActionKind.REVERT:
                self.checker.offer(action.deployment, device, minute)
            if action.begin_now:
                if not device.pending:
                    self.act(device, action, minute)
                following = minute + self.random.randrange(6, 16)
            else:
                waits = True
        if device.staged:
            # it checks in every five minutes in truth; this often is enough not to be taken for silent
            following = min(following, minute + 12 * HOUR)
        if waits and following > minute + 12 * HOUR:
            opens = (spans[0].start - BEGIN) // timedelta(minutes=1) if spans else minute + DAY
            following = minute + 12 * HOUR
            if opens < following:
                following = max(minute + 5, opens + self.random.randrange(2 * HOUR))
        if device.staged and 0 <= device.restart < following:
            following = max(minute + 1, device.restart)
        self.schedule(device, following)

    def report(self, device: Sim, minute: int, now: datetime) -> None:
        """What the device did since its last check-in reaches the server."""
        pending, device.pending = device.pending, []
        for deployment, result in pending:
            live, word = self.live[deployment], Result(result)
            membership = device.standing.memberships[deployment]
            self.set(live, device, memberships.report(membership, word, now))
            self.checker.reported(deployment, device, result, minute)
            device.stale = True
            if word is Result.APPLIED and live.content.kind is ContentKind.HOTPATCH:
                if device.memory.get(live.content.package) is live.content:
                    live.running.add(device.index)
            elif word is Result.REVERTED:
                live.running.discard(device.index)
            if word is Result.APPLIED or word in _BAD:
                facts = (("kernel", device.kernel), ("platform", "linux-x86_64"))
                live.outcomes.append(safeguards.Outcome(live.content.id, word in _BAD, facts))

    # -- what a device does

    def act(self, device: Sim, action: offers.Action, minute: int) -> None:
        """A device follows an action: it works, fails, crashes, or is never heard of again for a while."""
        live = self.live[action.deployment]
        content = live.content
        if action.kind is offers.ActionKind.REVERT:
            self.checker.reverts(action.deployment, device, minute)
            device.memory.pop(content.package, None)
            device.hotpatched = [(c, at) for c, at in device.hotpatched if c.package != content.package]
            device.pending.append((action.deployment, Result.REVERTED))
            return
        self.checker.applies(action.deployment, device, minute)
        live.reached += 1
        self.published[content.id].reached += 1
        if action.kind is offers.ActionKind.BASELINE:
            self._stage(device, live, minute)
            return
        result = self._fate(device, content)
        if result is Result.APPLIED:
            self._replace(device, content)
            device.memory[content.package] = content
            device.hotpatched.append((content, minute))
            self.stopped += 0.2 * self.random.random() + 0.1
            self.fixed(device, content, minute)
        elif result is Result.CRASHED:
            device.bars.add(content.id)
        device.pending.append((action.deployment, result))

    def _fate(self, device: Sim, content: Content) -> Result:
        if self.random.random() < device.flaky:
            return Result.FAILED
        bad = self.published[content.id].bad
        if bad and (not bad.kernel or device.kernel == bad.kernel) and self.random.random() < bad.chance:
            if bad.mute:
                device.absences = sorted([*device.absences, (device.seen + 1, device.seen + 9 * DAY)])
                return Result.APPLIED
            return Result.CRASHED
        return Result.APPLIED

    def _replace(self, device: Sim, content: Content) -> None:
        """A cumulative hotpatch takes its predecessor's place."""
        running = device.memory.pop(content.package, None)
        if running is not None:
            self.live[f"{running.id}@{device.policy}"].running.discard(device.index)

    def fixed(self, device: Sim, content: Content, minute: int) -> None:
        """A device runs a fix for the first time, and with it the older ones that it never had."""
        entry = self.published[content.id]
        entry.fixed.append(minute)

    def _stage(self, device: Sim, live: Live, minute: int) -> None:
        policy = self.policies[live.policy]
        device.staged = (live.content, live.deployment.id, minute)
        device.pending.append((live.deployment.id, Result.STAGED))
        spans = windows.schedule(policy.windows, device.zone, moment(minute)) if policy.windows else ()
        plan = deadlines.restart(policy, moment(minute), moment(device.back), spans, moment(minute))
        if plan.in_window is not None and device.kind != "laptop":
            begin = max(minute + 5, (plan.in_window.start - BEGIN) // timedelta(minutes=1))
            end = (plan.in_window.end - BEGIN) // timedelta(minutes=1)
            device.restart = begin + self.random.randrange(max(1, end - begin - 5))
        elif plan.forced is not None:
            device.restart = (plan.forced - BEGIN) // timedelta(minutes=1)

    def _restart(self, device: Sim, minute: int) -> None:
        assert device.staged
        content, deployment, staged = device.staged
        policy = self.policies[self.live[deployment].policy]
        spans = windows.schedule(policy.windows, device.zone, moment(minute)) if policy.windows else ()
        plan = deadlines.restart(policy, moment(staged), moment(device.back), spans, moment(minute))
        now = moment(minute)
        inside = plan.in_window is not None and now in plan.in_window and device.kind != "laptop"
        if not inside and not (plan.forced is not None and now >= plan.forced):
            # it slept through its window, or has just come back: wait anew
            at = plan.in_window.start if plan.in_window is not None else plan.forced
            device.restart = minute + DAY if at is None else max(minute + 1, (at - BEGIN) // timedelta(minutes=1) + 3)
            return
        self.checker.restarts(device, minute, staged)
        device.staged, device.restart = None, -1
        device.disk = next(iter(content.images))
        self._replace(device, content)
        ended = [coverage.Hotpatching(moment(at), now) for c, at in device.hotpatched if c.package == content.package]
        self._save(ended, now)
        device.hotpatched = [(c, at) for c, at in device.hotpatched if c.package != content.package]
        device.pending.append((deployment, Result.APPLIED))
        self.fixed(device, content, minute)

    def _save(self, ended: list[coverage.Hotpatching], now: datetime) -> None:
        saved = coverage.saved(ended, now)
        self.exposure += saved.exposure_hours
        self.restarts += saved.restarts

    def _settle(self) -> None:
        """At the end: what hotpatches still save now, and deployments' last word."""
        end = moment(self.now)
        for device in self.fleet:
            self._save([coverage.Hotpatching(moment(at), None) for _, at in device.hotpatched], end)

    # -- compliance

    def evaluate(self, minute: int) -> None:
        """Every device's compliance, as the server's weekly report has it."""
        now = moment(minute)
        needs = {
            policy: compliance.required(
                self.policies[policy],
                self._started(policy),
            )
            for policy in self.policies
        }
        found = []
        for device in self.fleet:
            if device.enrolled > minute or device.retired <= minute or device.index not in self.governed:
                continue
            governance = self.governed[device.index][1]
            policy = governance.policy.id if governance.policy else ""
            known = replace(device.known, last_seen=moment(device.seen))
            word = compliance.evaluate(known, governance, needs.get(policy, ()), self.catalogue, now)
            compliant = word.state is ComplianceState.COMPLIANT
            self.checker.complies(device, word.admitted, compliant, minute)
            found.append(word)
        self.compliance.append((minute, compliance.overview(found)))

    def _started(self, policy: str) -> list[tuple[Content, datetime]]:
        """What a policy offered and has not taken back: nobody is blamed for lacking what was ordered out."""
        return [
            (self.catalogue[live.content.id], moment(at))
            for content, at in self.checker.required.get(policy, ())
            if (live := self.live[f"{content.id}@{policy}"]).deployment.reason is not Reason.DONE_REVERTED
            and live.deployment.effective is not Effective.REVERTING
        ]

    def publish(self, content: Content, bad: Bad | None, expedite: bool, minute: int, to: tuple[str, ...]) -> None:
        """Content comes out: a deployment for each policy that it is for."""
        self.catalogue = Catalogue([*self.catalogue.contents.values(), content])
        affected = sum(
            d.policy in to and d.enrolled <= minute < d.retired and (content.package == "openssl" or d.nginx)
            for d in self.fleet
        )
        self.published[content.id] = Published(content, minute, bad, affected)
        for policy in to:
            id = f"{content.id}@{policy}"
            it = Deployment(id, content.id, policy, moment(minute), moment(minute), expedite=expedite)
            count = len(self.policies[policy].rings)
            live = Live(it, policy, content, sampled=[None] * count, successes=[0] * count)
            live.tallies, live.members = [{} for _ in range(count)], [[] for _ in range(count)]
            self.live[id] = live
            self.checker.watches[id] = Watch(policy, content, minute, expedite)
            self.compile(policy)
        for device in self.fleet:
            device.stale = device.stale or device.policy in to

    def touch(self, chosen: list[Sim]) -> None:
        """Facts of devices changed (a tag, a hold): their standings are made anew."""
        for device in chosen:
            device.moved = True
            if device.seen >= 0:
                self.renew(device)
            self.wake(device)
