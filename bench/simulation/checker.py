"""The independent judge of the simulation: it sees what devices really do, and knows the promises, not the rules.

It counts gates from what devices reported, reads windows off the clock on the wall, and keeps its own list of what
was halted, revoked, held, barred and excluded. Nothing of :mod:`midflight.server.domain` decides here.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from bench.simulation.fleet import DAY, HOUR, NEVER, OLD_KERNEL, Sim, moment
from midflight.server.domain.model import Content, ContentKind

DELAY = {"servers": 24 * HOUR, "laptops": 0, "kiosks": 48 * HOUR}
DEADLINE = {"servers": 7 * DAY, "laptops": 2 * DAY}
LIMITS: dict[str, list[tuple[int, int | None, float | None, int, int]]] = {
    "servers": [
        (1, 0, None, 36, 4), (8, 2, None, 36, 6), (50, None, 6, 60, 12), (50, None, 6, 60, 12), (50, None, 6, 60, 12),
    ],
    "laptops": [(1, 0, None, 120, 2), (10, 4, None, 120, 1), (40, None, 10, 120, 12), (40, None, 10, 120, 12)],
    "kiosks": [(8, 2, None, 36, 6), (50, None, 6, 60, 12)],
}  # fmt: skip
"""Per ring: sample, failures and per cent tolerated, hours until silence, hours of soak."""
PATIENCE = {"server": 4 * DAY, "kiosk": 15 * DAY, "laptop": 8 * DAY}
"""Within what a device that is there restarts into a staged baseline: two windows, or deadline, grace and a weekend."""
Demand = tuple[list[tuple[Content, int]], dict[str, int]]
"""Contents and since when they are required, and the newest sequence of each package."""
NONE, OUTCOMES = 255, ("", "good", "bad", "silent", "out")
SLACK = 26 * HOUR
"""Silence is looked for twice a day, and not while the server is away."""


@dataclass
class Watch:
    """What the judge knows of one deployment."""

    policy: str
    content: Content
    start: int
    expedite: bool
    roster: bytearray = field(default_factory=bytearray)
    """Ring of each device, or :data:`NONE`; a device never changes it."""
    outcome: bytearray = field(default_factory=bytearray)
    """Of each device, one of :data:`OUTCOMES`."""
    offered: array[int] = field(default_factory=lambda: array("i"))
    """When each was offered it first, or -1."""
    told: dict[int, int] = field(default_factory=dict)
    """When it began, while its answer is due."""
    fresh: dict[int, int] = field(default_factory=dict)
    """When it reported success, while it must be heard of again."""
    successes: dict[int, list[int]] = field(default_factory=dict)
    """Per ring, when the successes of the sample were reported."""
    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    ring: int = -1
    ring_since: int = 0
    stopped: str = ""
    """Why nothing may be offered, if so."""
    done: bool = False
    """All gates have passed: the server looks at it less often."""
    paused_until: int = 0
    """By a person's request."""
    revert: bool = False
    accepted: dict[int, int] = field(default_factory=dict)
    approved: set[str] = field(default_factory=set)
    ring_approved: set[str] = field(default_factory=set)


class Checker:
    """Takes note of each violation; :attr:`violations` must stay empty."""

    def __init__(self, fleet: list[Sim]) -> None:
        self.fleet = fleet
        self.violations: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.watches: dict[str, Watch] = {}
        self.revoked: dict[str, int] = {}
        self.held: dict[str, int] = {}
        """Contents held on the old kernel, and until when."""
        self.expired: dict[str, int] = {}
        """Contents and the first minute in which they may not be deployed any more."""
        self.policy_paused: dict[str, tuple[int, int]] = {}
        self.required: dict[str, list[tuple[Content, int]]] = {}
        self.checks: Counter[str] = Counter()
        self.vanished: dict[int, list[Watch]] = {}
        """Devices that count as silent after their success, until they come back."""
        self._demand: dict[str, Demand] = {}
        self._demanded_at = -1

    def watch(self, deployment: str, watch: Watch) -> None:
        """There is a new deployment."""
        count = len(self.fleet)
        watch.roster, watch.outcome, watch.offered = (
            bytearray([NONE]) * count,
            bytearray(count),
            array("i", [-1]) * count,
        )
        self.watches[deployment] = watch

    def violation(self, promise: str, what: str) -> None:
        """A promise was broken."""
        self.violations[promise] += 1
        self.examples.setdefault(promise, what)

    # -- what devices do

    def joined(self, deployment: str, device: Sim, ring: int | None) -> None:
        """The server has put a device into a ring."""
        watch = self.watches[deployment]
        if ring is None:
            return
        known = watch.roster[device.index]
        watch.roster[device.index] = ring
        if known not in (NONE, ring):
            self.violation(
                "ring membership is stable", f"{device.id} moved from ring {known} to {ring} of {deployment}"
            )

    def offer(self, deployment: str, device: Sim, minute: int) -> None:
        """A device was offered content, to begin at once or in its window."""
        self.checks["offer"] += 1
        watch = self.watches[deployment]
        if watch.offered[device.index] < 0:
            watch.offered[device.index] = minute
        for promise, note in self._forbidden(watch, device, minute):
            self._blame(promise, "was offered", deployment, device, minute, note)

    def applies(self, deployment: str, device: Sim, minute: int) -> None:
        """A device begins to apply content: that was offered, and this is the time for it."""
        self.checks["apply"] += 1
        watch = self.watches[deployment]
        watch.told.setdefault(device.index, minute)
        if not self._may_begin(watch, device, minute):
            self._blame("nothing begins outside the window", "applied", deployment, device, minute)

    def _blame(self, promise: str, did: str, deployment: str, device: Sim, minute: int, note: str = "") -> None:
        at = f"{moment(minute):%Y-%m-%d %H:%M}"
        self.violation(promise, f"{device.id} ({device.kind}) {did} {deployment} at {at}{note and ': '}{note}")

    def _forbidden(self, watch: Watch, device: Sim, minute: int) -> Iterator[tuple[str, str]]:
        """Each promise that an offer breaks."""
        content, ring = watch.content, watch.roster[device.index]
        if device.frozen:
            yield "exclusion wins", ""
        if device.disabled or device.policy != watch.policy:
            yield "only governed devices", ""
        if watch.stopped or minute < watch.paused_until:
            yield "what is paused, halted or stopped offers nothing", watch.stopped
        pause = self.policy_paused.get(watch.policy)
        if pause and pause[0] <= minute < pause[1]:
            yield "what is paused, halted or stopped offers nothing", "policy paused"
        if content.id in self.revoked:
            yield "what is revoked offers nothing", ""
        if minute >= self.expired.get(content.id, NEVER):
            yield "what is out of date offers nothing", ""
        if ring > watch.ring:
            yield "no ring before the gate of the ring before it", f"ring {watch.ring} in progress"
        if device.kernel == OLD_KERNEL and minute < self.held.get(content.id, 0):
            yield "held combinations are not offered", ""
        if content.id in device.bars:
            yield "what failed on a device is barred there", ""
        running = device.memory.get(content.package)
        if running is not None and running.sequence >= content.sequence:
            yield "nothing is applied twice or downgraded", ""
        if content.kind is ContentKind.HOTPATCH and content.package == "openssl" and device.disk not in content.images:
            yield "only the baselines it was made for", ""
        delay = DELAY[watch.policy] if content.kind is ContentKind.HOTPATCH or watch.policy != "servers" else 0
        if minute < watch.start + delay and not watch.approved:
            yield "approvals and their delays", ""
        if watch.policy == "servers" and content.kind is ContentKind.BASELINE and not watch.approved:
            yield "approvals and their delays", ""
        if watch.policy == "servers" and ring >= 3 and len(watch.ring_approved) < 2:
            yield "two persons approve the fourth ring", ""

    def _may_begin(self, watch: Watch, device: Sim, minute: int) -> bool:
        if watch.expedite and watch.policy == "servers":
            return True
        deadline, offered = DEADLINE.get(watch.policy), watch.offered[device.index]
        if deadline is not None and 0 <= offered <= minute - deadline:
            return True
        return in_window(watch.policy, device.zone, minute)

    def reverts(self, deployment: str, device: Sim, minute: int) -> None:
        """A device takes content out by order."""
        watch = self.watches[deployment]
        if not watch.revert or device.memory.get(watch.content.package) is not watch.content:
            self.violation("reverts are ordered, and only where it runs", f"{device.id} {deployment} {minute}")

    def restarts(self, device: Sim, minute: int, staged: int) -> None:
        """A device restarts into a baseline by itself."""
        self.checks["restart"] += 1
        what = f"{device.id} ({device.kind}) restarted, {device.zone}, minute {minute}"
        if device.kind == "laptop":
            if minute < staged + 4 * DAY and minute < device.back + 2 * DAY:
                self.violation("restarts keep deadline and grace", what)
        elif not in_window(device.policy or "", device.zone, minute):
            self.violation("restarts keep to the window", what)

    def reported(self, deployment: str, device: Sim, result: str, minute: int) -> None:
        """The server has a device's report."""
        watch = self.watches[deployment]
        watch.told.pop(device.index, None)
        if result == "applied":
            self._count(watch, device.index, "good")
            watch.fresh[device.index] = minute
            ring = watch.roster[device.index]
            successes = watch.successes.setdefault(ring, [])
            if len(successes) < LIMITS[watch.policy][ring][0]:
                successes.append(minute)
        elif result in ("failed", "crashed", "health_failed"):
            self._count(watch, device.index, "bad")
        elif result == "reverted":
            self._count(watch, device.index, "out")

    def came_back(self, device: Sim) -> None:
        """A device that counts as silent after its success is there again: what it runs says how it stands."""
        for watch in self.vanished.pop(device.index):
            if OUTCOMES[watch.outcome[device.index]] == "silent":
                content = watch.content
                runs = device.memory.get(content.package) is content or device.disk in content.images
                self._count(watch, device.index, "good" if runs else "out")

    def _count(self, watch: Watch, index: int, outcome: str) -> None:
        ring = watch.roster[index]
        watch.fresh.pop(index, None)
        before = OUTCOMES[watch.outcome[index]]
        if before:
            watch.counts[ring, before] -= 1
        watch.outcome[index] = OUTCOMES.index(outcome)
        watch.counts[ring, outcome] += 1

    # -- what the server decides

    def opened(self, deployment: str, ring: int, minute: int) -> None:
        """A ring began: was the gate before it really passed?"""
        watch = self.watches[deployment]
        if ring == watch.ring:
            return
        self.checks["gate"] += 1
        if watch.ring >= 0:
            self._passed(deployment, watch, watch.ring, minute)
        watch.ring, watch.ring_since = ring, minute

    def _passed(self, deployment: str, watch: Watch, ring: int, minute: int) -> None:
        sample, _, _, patience, soak = LIMITS[watch.policy][ring]
        members = [index for index, r in enumerate(watch.roster) if r == ring]
        if not members:
            return
        good, bad = watch.counts[ring, "good"], watch.counts[ring, "bad"] + watch.counts[ring, "silent"]
        able = sum(self._could(watch, index, minute) for index in members if not watch.outcome[index])
        what = f"{deployment} ring {ring} passed at {moment(minute)}: {good} good, {bad} bad, {able} open"
        if good + max(bad, watch.accepted.get(ring, 0)) < sample and able:
            self.violation("a gate has its sample", what)
        if not good and not watch.accepted.get(ring):
            self.violation("a gate has a success", what)
        sampled = watch.successes.get(ring, [])[:sample]
        if sampled and minute < sampled[-1] + soak * HOUR:
            self.violation("a gate soaks", what)
        if sampled:
            after = sampled[-1] + soak * HOUR
            silent = minute - (soak + patience) * HOUR
            heard = gone = 0
            for index in members:
                if OUTCOMES[watch.outcome[index]] != "good":
                    continue
                if self.fleet[index].heard(minute) >= after:
                    heard += 1
                elif silent > min(sampled[-1], watch.fresh.get(index, minute)):
                    # it is silent by now, counted as such a little later here, and not waited for
                    gone += 1
            if heard < min(good - gone, sample):
                self.violation("a gate hears of its sample after the soak", f"{what}, {heard} heard of")
        if self._beyond(watch, ring):
            self.violation("a gate beyond its limit does not pass", what)

    def _could(self, watch: Watch, index: int, minute: int) -> bool:
        """Might this member still take it, by what is true of it? An answer of it would be waited for."""
        device, content = self.fleet[index], watch.content
        running = device.memory.get(content.package)
        if (
            device.frozen
            or device.disabled
            or content.id in device.bars
            or (running and running.sequence >= content.sequence)
        ):
            return False
        if device.kernel == OLD_KERNEL and minute < self.held.get(content.id, 0):
            return False
        patience = LIMITS[watch.policy][watch.roster[index]][3] * HOUR
        if minute > max(device.heard(minute), watch.ring_since) + patience:
            # gone: silent if it was offered the content, absent if it was not; in neither case waited for
            return False
        if content.kind is ContentKind.HOTPATCH and content.package == "openssl":
            return device.disk in content.images
        return content.kind is ContentKind.HOTPATCH or int(device.disk[1:]) < content.sequence

    def _beyond(self, watch: Watch, ring: int) -> bool:
        sample, failures, percent, _, _ = LIMITS[watch.policy][ring]
        good, bad = watch.counts[ring, "good"], watch.counts[ring, "bad"] + watch.counts[ring, "silent"]
        counted = bad - watch.accepted.get(ring, 0)
        if failures is not None and counted > failures:
            return True
        answered = good + bad
        return percent is not None and answered >= sample and counted * 100 > percent * answered

    def hourly(self, minute: int) -> None:
        """Nothing that is beyond its limits may still be offering; silence is counted here too."""
        for deployment, watch in self.watches.items():
            if watch.ring < 0 or watch.stopped or watch.content.id in self.revoked:
                continue
            if watch.done and minute % (6 * HOUR):
                continue
            self.checks["limits"] += 1
            if minute % (12 * HOUR) == 0:
                self._silence(watch, minute)
            rings = range(min(watch.ring + 1, len(LIMITS[watch.policy])))
            if any(self._beyond(watch, ring) for ring in rings):
                self.violation("beyond its limit it halts by itself", f"{deployment} at {moment(minute)}")

    def _silence(self, watch: Watch, minute: int) -> None:
        for index, told in list(watch.told.items()):
            hours = LIMITS[watch.policy][watch.roster[index]][3]
            if minute - told > hours * HOUR + SLACK and not watch.outcome[index]:
                self._count(watch, index, "silent")
        for index, success in list(watch.fresh.items()):
            _, _, _, hours, soak = LIMITS[watch.policy][watch.roster[index]]
            if self.fleet[index].heard(minute) >= success + soak * HOUR:
                del watch.fresh[index]
            elif minute - success > (soak + hours) * HOUR + SLACK:
                self._count(watch, index, "silent")
                self.vanished.setdefault(index, []).append(watch)

    def changed(self, deployment: str, before: str, after: str, minute: int, by_person: bool) -> None:
        """A deployment's effective state changed."""
        watch = self.watches[deployment]
        if before == "halted" and after in ("offering", "done", "scheduled", "paused") and not by_person:
            self.violation("only a person resumes what a gate halted", f"{deployment} at {moment(minute)}")
        watch.done = after == "done"
        watch.revert = watch.revert or after == "reverting"
        watch.stopped = "reverted" if watch.revert else "" if after in ("offering", "done", "scheduled") else after

    def resumed(self, deployment: str, shown: tuple[int, ...]) -> None:
        """A person resumed: what went wrong so far is accepted (as shown, or as counted here), and no more."""
        watch = self.watches[deployment]
        for ring, count in enumerate(shown):
            watch.accepted[ring] = max(count, watch.counts[ring, "bad"] + watch.counts[ring, "silent"])

    def complies(self, device: Sim, heard: int, admitted: bool, compliant: bool, minute: int) -> None:
        """The server says whether a device is compliant; it heard of it last then."""
        self.checks["compliance"] += 1
        if admitted and minute - heard >= 8 * DAY:
            self.violation("stale is not compliant", f"{device.id}, minute {minute}")
        if admitted and (device.policy is None or device.frozen or device.disabled):
            self.violation("unassigned, in conflict or disabled is not compliant", f"{device.id}, minute {minute}")
        self._restarted(device, heard, minute)
        if not admitted or device.policy is None or device.pending:
            # what the device did since its last report is not known to the server yet
            return
        demanded, newest = self._demanded(device.policy, minute)
        for package, sequence in newest.items():
            if (package != "nginx" or device.nginx) and self._sequence(device, package) < sequence:
                break
        else:
            return
        for content, since in demanded:
            if content.package == "nginx" and not device.nginx:
                continue
            if self._sequence(device, content.package) >= content.sequence:
                continue
            if compliant or minute >= max(since, device.enrolled) + 14 * DAY:
                self.violation("a missing fix is not compliant", f"{device.id}, minute {minute}: {content.id}")

    def _sequence(self, device: Sim, package: str) -> int:
        """The newest fix of a package that a device has, on disk or in memory."""
        running = device.memory.get(package)
        disk = int(device.disk[1:]) if package == "openssl" else 0
        return disk if running is None else max(disk, running.sequence)

    def _restarted(self, device: Sim, heard: int, minute: int) -> None:
        """A staged baseline does not wait for ever: servers have a window each night, kiosks one a week, laptops a
        deadline and a grace, which begins anew when one was away."""
        if device.staged is None or minute - heard > DAY or device.kind not in PATIENCE:
            return
        if minute > max(device.staged[2], device.back) + PATIENCE[device.kind]:
            self.violation("restarts come by their deadline", f"{device.id} ({device.kind}), minute {minute}")

    def _demanded(self, policy: str, minute: int) -> Demand:
        """What a policy requires at a time, as the administrators of this fleet see it."""
        if self._demanded_at != minute:
            self._demanded_at = minute
            self._demand = {each: self._in_force(each, required, minute) for each, required in self.required.items()}
        return self._demand.get(policy, ([], {}))

    def _in_force(self, policy: str, required: list[tuple[Content, int]], minute: int) -> Demand:
        found = [
            (content, since)
            for content, since in required
            if content.id not in self.revoked
            and minute < self.expired.get(content.id, NEVER)
            and not self.watches[f"{content.id}@{policy}"].revert
        ]
        newest: dict[str, int] = {}
        for content, _ in found:
            newest[content.package] = max(content.sequence, newest.get(content.package, 0))
        return found, newest


def in_window(policy: str, zone: str, minute: int) -> bool:
    """By the clock on the wall: servers from 01:00 for 4 h, kiosks on Sundays from 22:00 for 6 h, laptops always."""
    # clocks are changed at whole quarters of an hour, and windows open and close at such
    return policy == "laptops" or _in_window(policy, zone, minute // 15)


@lru_cache(maxsize=4096)
def _in_window(policy: str, zone: str, quarter: int) -> bool:
    now, place = moment(quarter * 15), ZoneInfo(zone)
    hour, length, sundays = (1, 4, False) if policy == "servers" else (22, 6, True)
    for back in (0, 1):
        day = now.astimezone(place).date() - timedelta(days=back)
        if sundays and day.weekday() != 6:
            continue
        opened = datetime(day.year, day.month, day.day, hour, tzinfo=place)
        if 0 <= now.timestamp() - opened.timestamp() < length * 3600:
            return True
    return False
