"""The independent judge of the simulation: it sees what devices really do, and knows the promises, not the rules.

It counts gates from what devices reported, reads windows off the clock on the wall, and keeps its own list of what
was halted, revoked, held, barred and excluded. Nothing of :mod:`midflight.server.domain` decides here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from bench.simulation.fleet import DAY, HOUR, OLD_KERNEL, Sim, moment
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
SLACK = 26 * HOUR
"""Silence is looked for twice a day, and not while the server is away."""


@dataclass
class Watch:
    """What the judge knows of one deployment."""

    policy: str
    content: Content
    start: int
    expedite: bool
    roster: dict[int, int] = field(default_factory=dict)
    """Device to ring; a device never changes it."""
    outcome: dict[int, str] = field(default_factory=dict)
    """Device to good, bad or silent."""
    offered: dict[int, int] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)
    """When it began, while its answer is due."""
    successes: dict[int, list[int]] = field(default_factory=dict)
    """Per ring, when successes were reported."""
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
        self.policy_paused: dict[str, tuple[int, int]] = {}
        self.required: dict[str, list[tuple[Content, int]]] = {}
        self.checks: Counter[str] = Counter()

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
        known = watch.roster.setdefault(device.index, ring)
        if known != ring:
            self.violation(
                "ring membership is stable", f"{device.id} moved from ring {known} to {ring} of {deployment}"
            )

    def offer(self, deployment: str, device: Sim, minute: int) -> None:
        """A device was offered content, to begin at once or in its window."""
        self.watches[deployment].offered.setdefault(device.index, minute)

    def applies(self, deployment: str, device: Sim, minute: int) -> None:
        """A device begins to apply content."""
        self.checks["apply"] += 1
        watch, content = self.watches[deployment], self.watches[deployment].content
        watch.told.setdefault(device.index, minute)
        what = f"{device.id} ({device.kind}) applied {content.id} of {deployment} at {moment(minute):%Y-%m-%d %H:%M}"
        if device.frozen:
            self.violation("exclusion wins", what)
        if device.disabled or device.policy != watch.policy:
            self.violation("only governed devices", what)
        if watch.stopped or minute < watch.paused_until:
            self.violation("what is paused, halted or stopped offers nothing", f"{what}: {watch.stopped}")
        pause = self.policy_paused.get(watch.policy)
        if pause and pause[0] <= minute < pause[1]:
            self.violation("what is paused, halted or stopped offers nothing", f"{what}: policy paused")
        if content.id in self.revoked:
            self.violation("what is revoked offers nothing", what)
        if watch.roster.get(device.index, 99) > watch.ring:
            self.violation("no ring before the gate of the ring before it", f"{what}: ring {watch.ring} in progress")
        if device.kernel == OLD_KERNEL and minute < self.held.get(content.id, 0):
            self.violation("held combinations are not offered", what)
        if content.id in device.bars:
            self.violation("what failed on a device is barred there", what)
        running = device.memory.get(content.package)
        if running is not None and running.sequence >= content.sequence:
            self.violation("nothing is applied twice or downgraded", what)
        if content.kind is ContentKind.HOTPATCH and content.package == "openssl" and device.disk not in content.images:
            self.violation("only the baselines it was made for", what)
        delay = DELAY[watch.policy] if content.kind is ContentKind.HOTPATCH or watch.policy != "servers" else 0
        if minute < watch.start + delay and not watch.approved:
            self.violation("approvals and their delays", what)
        if watch.policy == "servers" and content.kind is ContentKind.BASELINE and not watch.approved:
            self.violation("approvals and their delays", what)
        if watch.policy == "servers" and watch.roster.get(device.index, 0) >= 3 and len(watch.ring_approved) < 2:
            self.violation("two persons approve the fourth ring", what)
        if not self._may_begin(watch, device, minute):
            self.violation("nothing begins outside the window", what)

    def _may_begin(self, watch: Watch, device: Sim, minute: int) -> bool:
        if watch.expedite and watch.policy == "servers":
            return True
        deadline = DEADLINE.get(watch.policy)
        if deadline is not None and minute >= watch.offered.get(device.index, minute) + deadline:
            return True
        return in_window(watch.policy, device.zone, moment(minute))

    def reverts(self, deployment: str, device: Sim, minute: int) -> None:
        """A device takes content out by order."""
        watch = self.watches[deployment]
        if not watch.revert or device.memory.get(watch.content.package) is not watch.content:
            self.violation("reverts are ordered, and only where it runs", f"{device.id} {deployment} {minute}")

    def restarts(self, device: Sim, minute: int, staged: int) -> None:
        """A device restarts into a baseline by itself."""
        what = f"{device.id} restarted at {moment(minute)}"
        if device.kind == "laptop":
            if minute < staged + 4 * DAY and minute < device.back + 2 * DAY:
                self.violation("restarts keep deadline and grace", what)
        elif not in_window(device.policy or "", device.zone, moment(minute)):
            self.violation("restarts keep to the window", what)

    def reported(self, deployment: str, device: Sim, result: str, minute: int) -> None:
        """The server has a device's report."""
        watch = self.watches[deployment]
        watch.told.pop(device.index, None)
        if result == "applied":
            self._count(watch, device.index, "good")
            watch.successes.setdefault(watch.roster[device.index], []).append(minute)
        elif result in ("failed", "crashed", "health_failed"):
            self._count(watch, device.index, "bad")
        elif result == "reverted":
            self._count(watch, device.index, "out")

    def _count(self, watch: Watch, index: int, outcome: str) -> None:
        ring = watch.roster[index]
        before = watch.outcome.get(index)
        if before:
            watch.counts[ring, before] -= 1
        watch.outcome[index] = outcome
        watch.counts[ring, outcome] += 1

    # -- what the server decides

    def opened(self, deployment: str, ring: int, minute: int) -> None:
        """A ring began: was the gate before it really passed?"""
        watch = self.watches[deployment]
        if ring == watch.ring:
            return
        self.checks["gate"] += 1
        if ring != watch.ring + 1:
            self.violation("rings follow one another", f"{deployment} went from ring {watch.ring} to {ring}")
        if watch.ring >= 0:
            self._passed(deployment, watch, watch.ring, minute)
        watch.ring, watch.ring_since = ring, minute

    def _passed(self, deployment: str, watch: Watch, ring: int, minute: int) -> None:
        sample, _, _, _, soak = LIMITS[watch.policy][ring]
        members = [index for index, r in watch.roster.items() if r == ring]
        if not members:
            return
        good, bad = watch.counts[ring, "good"], watch.counts[ring, "bad"] + watch.counts[ring, "silent"]
        able = sum(self._could(watch, index, minute) for index in members if index not in watch.outcome)
        what = f"{deployment} ring {ring} passed at {moment(minute)}: {good} good, {bad} bad, {able} open"
        if good + max(bad, watch.accepted.get(ring, 0)) < sample and able:
            self.violation("a gate has its sample", what)
        if not good and not watch.accepted.get(ring):
            self.violation("a gate has a success", what)
        sampled = watch.successes.get(ring, [])[:sample]
        if sampled and minute < sampled[-1] + soak * HOUR:
            self.violation("a gate soaks", what)
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
        if minute > max(device.seen, watch.ring_since) + patience:
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
            if minute - told > hours * HOUR + SLACK and index not in watch.outcome:
                self._count(watch, index, "silent")

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

    def complies(self, device: Sim, admitted: bool, compliant: bool, minute: int) -> None:
        """The server says whether a device is compliant."""
        self.checks["compliance"] += 1
        what = f"{device.id} at {moment(minute)}"
        if admitted and (device.seen < 0 or minute - device.seen >= 8 * DAY):
            self.violation("stale is not compliant", what)
        if admitted and (device.policy is None or device.frozen or device.disabled):
            self.violation("unassigned, in conflict or disabled is not compliant", what)
        if not admitted or device.policy is None:
            return
        for content, since in self.required.get(device.policy, ()):
            if content.id in self.revoked or self.watches[f"{content.id}@{device.policy}"].revert:
                continue
            if content.package == "nginx" and not device.nginx:
                continue
            running = device.memory.get(content.package)
            fixed = int(device.disk[1:]) >= content.sequence if content.package == "openssl" else False
            if running is not None and running.sequence >= content.sequence:
                fixed = True
            # what the device did since its last report is not known to the server yet
            late = minute >= max(since, device.enrolled) + 14 * DAY
            if not fixed and not device.pending and (compliant or late):
                self.violation("a missing fix is not compliant", f"{what}: {content.id}")


def in_window(policy: str, zone: str, now: datetime) -> bool:
    """By the clock on the wall: servers from 01:00 for 4 h, kiosks on Sundays from 22:00 for 6 h, laptops always."""
    if policy == "laptops":
        return True
    place = ZoneInfo(zone)
    hour, length, sundays = (1, 4, False) if policy == "servers" else (22, 6, True)
    for back in (0, 1):
        day = now.astimezone(place).date() - timedelta(days=back)
        if sundays and day.weekday() != 6:
            continue
        opened = datetime(day.year, day.month, day.day, hour, tzinfo=place)
        if 0 <= now.timestamp() - opened.timestamp() < length * 3600:
            return True
    return False
