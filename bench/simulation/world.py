"""A year of a fleet, driven through the server's own rules: publishing, rollouts, check-ins, people, outages.

What devices do is simulated here; what they may do is decided by :mod:`midflight.server.domain` alone, by the
functions that the server calls; whether that was right is judged by :mod:`bench.simulation.checker`. A device that
has nothing to do is looked at every few days instead of every five minutes; one that has is woken as it would be, and
when each was heard of last is known to the minute.

What the rules say of facts is asked once for all devices with the same facts, and again when anything changed that it
depends on; a device that nothing has changed for since it was answered is answered as before, as the server does it.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from bench.simulation.checker import Checker, Watch
from bench.simulation.fleet import BEGIN, DAY, GROUPS, HOUR, NEVER, OUTAGES, Alike, Sim, Traits, build, moment, policies
from bench.simulation.scenario import Bad, Scenario
from midflight.server.domain import (
    audience,
    compliance,
    coverage,
    deadlines,
    gates,
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
    Membership,
    Policy,
    RingTally,
)
from midflight.server.domain.reasons import Reason

IDLE = 4 * DAY
READY = DAY
"""As the server's background work has it: seen so lately, a device is ready to be among the first."""
_HALTS = (Reason.HALTED_BY_FAILURES, Reason.HALTED_BY_SILENCE, Reason.REVERTING_BY_GATE)
_OPEN = (DeviceState.OFFERED, DeviceState.DOWNLOADING)
_BAD = (Result.FAILED, Result.CRASHED, Result.HEALTH_FAILED)
_DEVICES = 1 << 20
"""More than there are."""


@dataclass(slots=True, eq=False)
class Live:
    """A deployment with what a database would keep and count for it."""

    deployment: Deployment
    policy: str
    content: Content
    tallies: list[dict[DeviceState, int]] = field(default_factory=list)
    sampled: list[datetime | None] = field(default_factory=list)
    successes: list[int] = field(default_factory=list)
    members: list[array[int]] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    fresh: dict[int, int] = field(default_factory=dict)
    """Whose success is to be confirmed: by when it must be heard of again, at the latest."""
    outcomes: Counter[safeguards.Outcome] = field(default_factory=Counter)
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
    fixed: array[int] = field(default_factory=lambda: array("i"))
    reached: int = 0
    halts: list[tuple[int, int]] = field(default_factory=list)
    """When, and how many devices it had reached by then."""


def _effect(plans: tuple[offers.Plan, ...]) -> list[tuple[object, ...]]:
    """What of them changes the answers for all members; a ring that is opened changes those of its own alone."""
    return [(p.deployment, p.offers, p.reverts, p.expedited) for p in plans if p.offers or p.reverts]


class World:
    """The simulation; :meth:`run` lets time pass."""

    def __init__(self, count: int, days: int, seed: int = 1) -> None:
        self.minutes = days * DAY
        self.random = Random(seed)
        self.fleet = build(count, seed, self.minutes)
        self.checker = Checker(self.fleet)
        self.policies: dict[str, Policy] = policies()
        self.governed_by: dict[str | None, list[Sim]] = {policy: [] for policy in (None, *self.policies)}
        for device in self.fleet:
            self.governed_by[device.policy].append(device)
        self.groups = audience.Groups(GROUPS)
        self.catalogue = Catalogue()
        self.scenario = Scenario(self)
        self.live: dict[str, Live] = {}
        self.alive: dict[str | None, list[Live]] = {policy: [] for policy in self.governed_by}
        """Those of each policy that have not ended."""
        self.plans: dict[str | None, tuple[offers.Plan, ...]] = dict.fromkeys(self.governed_by, ())
        self.answers: dict[str | None, int] = dict.fromkeys(self.governed_by, 0)
        """How often the plans of a policy changed so that answers change."""
        self.state: dict[str | None, int] = dict.fromkeys(self.governed_by, 0)
        """How often anything changed that standings are made from."""
        self.alike: dict[Traits, Alike] = {}
        self.standings: dict[str | None, dict[Alike, offers.Standing]] = {policy: {} for policy in self.governed_by}
        """By the facts alone, without memberships."""
        self.holds: list[safeguards.Safeguard] = []
        self.in_force: list[safeguards.Safeguard] = []
        self.published: dict[str, Published] = {}
        self.queue: list[list[int]] = [[] for _ in range(days * 24 + 1)]
        """By hour: check-ins that are due, each as minute and device in one number."""
        self.now = 0
        self.checkins = self.decisions = 0
        self.exposure = self.stopped = 0.0
        self.restarts = 0
        self.compliance: list[tuple[int, compliance.Overview]] = []

    # -- time

    def run(self, until: str = "", each_month: Callable[[int], None] | None = None) -> None:
        """Let time pass, hour by hour, to the end, or until a promise is broken."""
        for device in self.fleet:
            self.schedule(device, device.enrolled + self.within(HOUR))
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
                minute, index = divmod(heapq.heappop(bucket), _DEVICES)
                device = self.fleet[index]
                if device.due == minute:
                    self.check_in(device, minute)
            if self.now % (7 * DAY) == 0 and hour:
                self.evaluate(self.now)
            if until in self.checker.violations:
                break
        self._settle()

    def within(self, minutes: int) -> int:
        """A number of minutes below that, by chance."""
        return int(self.random.random() * minutes)

    def schedule(self, device: Sim, minute: int) -> None:
        """The device's next check-in, when it is on; it never goes back in time."""
        if device.absences or device.kind == "laptop" or minute >= device.retired:
            minute = device.online(minute)
        device.due = minute
        hour = minute // HOUR
        if hour < len(self.queue):
            # buckets of hours to come are put in order when their time has come
            put = heapq.heappush if hour == self.now // HOUR else list.append
            put(self.queue[hour], minute * _DEVICES + device.index)

    def wake(self, device: Sim, within: int = HOUR) -> None:
        """Something is there for a device: its next ordinary check-in finds it, at a time the server paces."""
        minute = self.now + 5 + self.within(within)
        if device.enrolled <= self.now and minute < device.due:
            self.schedule(device, minute)

    def _postpone(self, hour: int, back: int) -> None:
        for due in self.queue[hour]:
            minute, index = divmod(due, _DEVICES)
            if self.fleet[index].due == minute:
                self.schedule(self.fleet[index], back + self.within(HOUR))
        self.queue[hour] = []

    # -- what the server's background work does

    def background(self, minute: int) -> None:
        """Advance each deployment, mark silence."""
        now = moment(minute)
        if safeguards.in_force(self.holds, now) != self.in_force:
            self.forget()
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
                        self.fleet[index].answered = -1
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
        if live.ended:
            self.alive[live.policy].remove(live)
        self.compile(live.policy)

    def situation(self, live: Live) -> rollout.Situation:
        """What the deployment is judged by: counts that a database would give."""
        tallies = [RingTally(states, last) for states, last in zip(live.tallies, live.sampled, strict=True)]
        it, policy = live.deployment, self.policies[live.policy]
        if it.effective is Effective.OFFERING and it.ring < len(tallies):
            soaked = self._soaked(live)
            if soaked is not None and 0 <= soaked <= self.now:
                sample = policy.rings[it.ring].gate.min_sample
                tallies[it.ring] = replace(tallies[it.ring], heard=self._heard(live, sample, soaked))
        superseded = any(
            other.policy == live.policy
            and other.content.package == live.content.package
            and other.content.kind is live.content.kind
            and other.content.sequence > live.content.sequence
            and other.deployment.reason is Reason.DONE_OFFERED
            for other in self.live.values()
        )
        return rollout.Situation(self.catalogue[live.content.id], policy, tallies, superseded, len(live.running))

    def _soaked(self, live: Live) -> int | None:
        """When the soak of the ring in progress is over."""
        it, rings = live.deployment, self.policies[live.policy].rings
        if it.ring_since is None or it.ring >= len(rings):
            return None
        tally = RingTally(live.tallies[it.ring], live.sampled[it.ring])
        end = gates.soaked(rings[it.ring].gate, tally, it.ring_since)
        return None if end is None else (end - BEGIN) // timedelta(minutes=1)

    def _heard(self, live: Live, sample: int, soaked: int) -> datetime:
        """Since when as many of the ring in progress that applied it as its sample needs were heard of; it is looked
        no further once they were after the soak."""
        it, heard = live.deployment, []
        needed = min(sample, live.tallies[it.ring].get(gates.GOOD, 0))
        for index in live.members[it.ring]:
            device = self.fleet[index]
            if device.memberships[it.id].state is gates.GOOD:
                heard.append(device.heard(self.now))
                if heard[-1] >= soaked:
                    needed -= 1
                    if needed <= 0:
                        break
        return moment(min(sorted(heard, reverse=True)[: max(1, min(sample, len(heard)))], default=-1))

    def compile(self, policy: str) -> None:
        """Deployments as decisions need them."""
        rules = self.policies[policy]
        plans = offers.compile_plans(
            offers.compile_plan(live.deployment, rules, self.catalogue[live.content.id]) for live in self.alive[policy]
        )
        if _effect(plans) != _effect(self.plans[policy]):
            self.answers[policy] += 1
        self.plans[policy] = plans

    def forget(self, policies: Iterable[str | None] = ()) -> None:
        """A deployment of these policies began, or content or holds changed: standings are made anew."""
        self.in_force = safeguards.in_force(self.holds, moment(self.now))
        for policy in policies or self.standings:
            self.standings[policy].clear()
            self.state[policy] += 1

    def _recruit(self, live: Live) -> None:
        """At the start: rings for all that can take it."""
        live.started = True
        self.forget([live.policy])
        now = self.now
        candidates: dict[str, rings.Candidate] = {}
        chosen: list[Sim] = []
        content = live.content.id
        for device in self.governed_by[live.policy]:
            if device.alike is None:
                continue
            facts = self._standing(device.alike, live.policy)
            if live.deployment.id in facts.outside or content in facts.fixed or content in facts.ineligible:
                continue
            ready = content not in facts.held and now - device.heard(now) < READY
            candidates[device.id] = rings.Candidate(device.alike.groups, ready)
            chosen.append(device)
        assigned = rings.assign(self.policies[live.policy].rings, live.deployment.id, candidates)
        for device in chosen:
            self.set(live, device, Membership(assigned[device.id]))

    def _silence(self, live: Live, now: datetime) -> None:
        """As the server's background work looks for it: who was offered it, who applied it, and in the ring in
        progress who was not there."""
        it, gate_of = live.deployment, [ring.gate for ring in self.policies[live.policy].rings]
        soaked, shortest = self._soaked(live), min(gate.silence_after for gate in gate_of) // timedelta(minutes=1)
        open_ring = live.members[it.ring] if it.effective is Effective.OFFERING and it.ring < len(gate_of) else ()
        absent = [i for i in open_ring if self.fleet[i].memberships[it.id].state is DeviceState.PENDING]
        unheard = []
        for index, soak_end in list(live.fresh.items()):
            heard = self.fleet[index].heard(self.now)
            if self.now - heard > shortest:
                unheard.append(index)
            elif heard >= soak_end and self.fleet[index].memberships[it.id].ring != it.ring:
                del live.fresh[index]
        for index in [*absent, *live.open, *unheard]:
            device = self.fleet[index]
            membership = device.memberships[it.id]
            ring = membership.ring
            if ring is None:
                continue
            opened, end = (it.ring_since, soaked) if ring == it.ring else (None, None)
            found = memberships.silence(
                membership,
                moment(device.heard(self.now)),
                gate_of[ring],
                now,
                opened,
                None if end is None else moment(end),
            )
            if found:
                self.set(live, device, found)
                device.answered = -1

    def set(self, live: Live, device: Sim, after: Membership) -> None:
        """Write a membership, and keep the counts."""
        before = device.memberships.get(live.deployment.id)
        device.memberships[live.deployment.id] = after
        if after.state in _OPEN:
            live.open.add(device.index)
        else:
            live.open.discard(device.index)
        if after.state is not DeviceState.APPLIED:
            live.fresh.pop(device.index, None)
        elif after.ring is not None and after.reason is Reason.APPLIED:
            soak = self.policies[live.policy].rings[after.ring].gate.soak
            live.fresh[device.index] = self.now + HOUR + soak // timedelta(minutes=1)
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

    def renew(self, device: Sim) -> None:
        """Make a device's standing anew: its facts, its groups, the deployments or the holds changed."""
        if device.stale or device.alike is None:
            device.alike, device.stale = self._alike(device), False
        say = self._standing(device.alike, device.policy)
        device.standing = offers.Standing(
            device.memberships, say.running, say.fixed, say.ineligible, say.held, say.bars, say.outside, say.disabled
        )
        device.answered, device.knows = -1, self.state[device.policy]
        for live in self.alive[device.policy]:
            if live.started and live.deployment.id not in device.memberships:
                self._join(live, device, device.alike.groups)

    def _alike(self, device: Sim) -> Alike:
        """What is known of all devices with the facts that this one has now."""
        traits = device.traits()
        known = self.alike.get(traits)
        if known is None:
            facts = device.facts()
            groups = self.groups.of(facts)
            known = self.alike[traits] = Alike(facts, groups, audience.governing(self.policies.values(), groups))
        return known

    def _standing(self, alike: Alike, policy: str | None) -> offers.Standing:
        """What the rules say of all devices with these facts."""
        found = self.standings[policy].get(alike)
        if found is None:
            live = [(each.deployment, self.policies[each.policy]) for each in self.alive[policy]]
            found = self.standings[policy][alike] = standing.standing(
                alike.facts, alike.groups, alike.governance, {}, live, self.catalogue, self.in_force
            )
        return found

    def _join(self, live: Live, device: Sim, groups: frozenset[str]) -> None:
        """A newcomer, or one that can take it at last."""
        mine, content = device.standing, live.content.id
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
        if minute - device.seen > DAY:
            came = device.online(device.seen + 1) if device.seen >= 0 else minute
            if came - device.seen > DAY:
                device.back = came
        device.seen = minute
        if device.index in self.checker.vanished:
            self.checker.came_back(device)
        now = moment(minute)
        if device.staged and 0 <= device.restart <= minute:
            self._restart(device, minute)
        if device.pending:
            self.report(device, minute, now)
        if device.stale or device.knows != self.state[device.policy]:
            self.renew(device)
        following = minute + IDLE + self.within(DAY)
        if device.answered != self.answers[device.policy]:
            following = min(following, self.decide(device, minute, now))
        if device.staged and 0 <= device.restart < following:
            following = max(minute + 1, device.restart)
        self.schedule(device, following)

    def decide(self, device: Sim, minute: int, now: datetime) -> int:
        """Ask the rules what a device gets now, and let it follow; returns when it has a reason to come again."""
        plans = self.plans[device.policy]
        governing = device.alike.governance.policy if device.alike else None
        spans = windows.schedule(governing.windows, device.zone, now) if governing and governing.windows else ()
        self.decisions += 1
        decision = offers.decide(device.standing, plans, spans, now)
        for deployment, verdict in decision.verdicts.items():
            changed = memberships.follow(device.memberships[deployment], verdict, now)
            if changed:
                self.set(self.live[deployment], device, changed)
        for action in decision.actions:
            if action.kind is not offers.ActionKind.REVERT:
                self.checker.offer(action.deployment, device, minute)
        following = NEVER
        for action in decision.actions:
            if action.begin_now:
                if not device.pending:
                    self.act(device, action, minute)
                following = minute + 6 + self.within(10)
            elif spans:
                opens = (spans[0].start - BEGIN) // timedelta(minutes=1)
                following = min(following, max(minute + 5, opens + self.within(2 * HOUR)))
        # where nothing is to be done, and nothing is to be tried again, only a change brings another answer
        settled = not decision.actions
        for plan in plans:
            membership = device.memberships.get(plan.deployment)
            if membership is not None and membership.state is DeviceState.INELIGIBLE:
                settled = settled and offers.offered_again(membership) is None
        device.answered = self.answers[device.policy] if settled else -1
        return following

    def report(self, device: Sim, minute: int, now: datetime) -> None:
        """What the device did since its last check-in reaches the server."""
        pending, device.pending = device.pending, []
        device.stale = True
        for deployment, result in pending:
            live, word = self.live[deployment], Result(result)
            self.set(live, device, memberships.report(device.memberships[deployment], word, now))
            self.checker.reported(deployment, device, result, minute)
            if word is Result.APPLIED and live.content.kind is ContentKind.HOTPATCH:
                if device.memory.get(live.content.package) is live.content:
                    live.running.add(device.index)
            elif word is Result.REVERTED:
                live.running.discard(device.index)
            if word is Result.APPLIED or word in _BAD:
                facts = (("kernel", device.kernel), ("platform", "linux-x86_64"))
                live.outcomes[safeguards.Outcome(live.content.id, word in _BAD, facts)] += 1
        if device.fades:
            device.fades = False
            device.absences = sorted([*device.absences, (minute + 1, minute + 9 * DAY)])

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
            device.bars |= {content.id}
        device.pending.append((action.deployment, result))

    def _fate(self, device: Sim, content: Content) -> Result:
        if self.random.random() < device.flaky:
            return Result.FAILED
        bad = self.published[content.id].bad
        if bad and (not bad.kernel or device.kernel == bad.kernel) and self.random.random() < bad.chance:
            if bad.mute:
                device.absences = sorted([*device.absences, (device.seen + 1, device.seen + 9 * DAY)])
            device.fades = bad.fades
            if bad.mute or bad.fades:
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
            device.restart = begin + self.within(max(1, end - begin - 5))
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
        found: list[compliance.Compliance] = []
        words: dict[tuple[Alike, int, int], compliance.Compliance] = {}
        for device in self.fleet:
            if device.enrolled > minute or device.retired <= minute or device.alike is None:
                continue
            heard = device.heard(minute)
            key = (device.alike, device.enrolled, heard)
            word = words.get(key)
            if word is None:
                governance = device.alike.governance
                policy = governance.policy.id if governance.policy else ""
                known = replace(device.alike.facts, enrolled=moment(device.enrolled), last_seen=moment(heard))
                word = words[key] = compliance.evaluate(known, governance, needs.get(policy, ()), self.catalogue, now)
            self.checker.complies(device, heard, word.admitted, word.state is ComplianceState.COMPLIANT, minute)
            found.append(word)
        self.compliance.append((minute, compliance.overview(found)))

    def _started(self, policy: str) -> list[tuple[Content, datetime]]:
        """What a policy offered and has not taken back: nobody is blamed for lacking what was ordered out, or what is
        not to be had any more."""
        return [
            (self.catalogue[live.content.id], moment(at))
            for content, at in self.checker.required.get(policy, ())
            if (live := self.live[f"{content.id}@{policy}"]).deployment.reason
            not in (Reason.DONE_REVERTED, Reason.FAULTED_OUTDATED)
            and live.deployment.effective is not Effective.REVERTING
        ]

    def publish(self, content: Content, bad: Bad | None, expedite: bool, minute: int, to: tuple[str, ...]) -> None:
        """Content comes out: a deployment for each policy that it is for."""
        self.catalogue = Catalogue([*self.catalogue.contents.values(), content])
        affected = sum(
            d.enrolled <= minute < d.retired and (content.package == "openssl" or d.nginx)
            for policy in to
            for d in self.governed_by[policy]
        )
        self.published[content.id] = Published(content, minute, bad, affected)
        for policy in to:
            id = f"{content.id}@{policy}"
            it = Deployment(id, content.id, policy, moment(minute), moment(minute), expedite=expedite)
            count = len(self.policies[policy].rings)
            live = Live(it, policy, content, sampled=[None] * count, successes=[0] * count)
            live.tallies, live.members = [{} for _ in range(count)], [array("i") for _ in range(count)]
            self.live[id] = live
            self.alive[policy].append(live)
            self.checker.watch(id, Watch(policy, content, minute, expedite))
            self.compile(policy)

    def touch(self, chosen: list[Sim]) -> None:
        """Facts of devices changed (a tag, a hold): their standings are made anew."""
        for device in chosen:
            if device.alike is not None:
                device.stale = True
                self.renew(device)
            self.wake(device)
