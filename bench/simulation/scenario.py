"""What happens in the year: monthly releases by the calendar, bad patches, emergencies, outages, and the people.

The administrators act a few hours late, look at what a gate halted, hold a bad combination when outcomes point at it,
order reverts, approve what needs approval, and freeze changes over Christmas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bench.simulation.fleet import BEGIN, DAY, HOUR, OLD_KERNEL, moment
from midflight.server.domain import rollout, safeguards
from midflight.server.domain.calendar import Calendar, OffTrack, off_track
from midflight.server.domain.model import (
    Approval,
    Content,
    ContentKind,
    Cve,
    Effective,
    Pause,
    Requested,
    Revocation,
    Severity,
)
from midflight.server.domain.reasons import Reason

if TYPE_CHECKING:
    from bench.simulation.world import Live, World

ALL = ("servers", "laptops", "kiosks")
UNPLANNED = datetime(2026, 5, 1).date()


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong with a content: with a chance, on a kernel or all, it crashes, or cuts the device off before it
    can say anything (``mute``) or after it reported success (``fades``)."""

    chance: float
    kernel: str = ""
    mute: bool = False
    fades: bool = False


BAD = {2: Bad(0.9, mute=True), 3: Bad(0.8, kernel=OLD_KERNEL), 8: Bad(0.5), 9: Bad(0.9, fades=True)}
"""By month of the hotpatch."""


class Scenario:
    """The events of a year, in time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._due: list[tuple[int, Callable[[], None]]] = []
        self.notes: list[str] = []
        self.calendar = calendar = Calendar(unplanned=frozenset({UNPLANNED}))
        base = "b0"
        for number, month in enumerate(calendar.year(2026), 1):
            at = _minute(datetime.combine(month.release, datetime.min.time(), UTC)) + 18 * HOUR
            off = month.kind is not month.planned
            if month.kind is ContentKind.BASELINE:
                to: tuple[str, ...] = ("servers",) if off else ALL
                self._release(at, _content(number * 10, ContentKind.BASELINE, f"b{number * 10}", number, not off), to)
                base = base if off else f"b{number * 10}"
            else:
                to = ("servers", "laptops")
                self._release(at, _content(number * 10, ContentKind.HOTPATCH, base, number), to, BAD.get(number))
                # who takes no hotpatches gets the month's fixes as a baseline
                self._release(
                    at, _content(number * 10 + 1, ContentKind.BASELINE, f"b{number * 10 + 1}", number), ("kiosks",)
                )
                if number in BAD and not BAD[number].kernel:
                    again = at + 9 * DAY
                    self._release(again, _content(number * 10 + 5, ContentKind.HOTPATCH, base, number), to)
        gone = replace(_content(1, ContentKind.HOTPATCH, "n0", 1), id="nginx-1", package="nginx")
        self._release(22 * DAY, gone, ("servers",))
        self._due.append((24 * DAY + 9 * HOUR, lambda: self._revoke(gone.id)))
        # its last day of deployment comes before all have it
        short = replace(
            _content(2, ContentKind.HOTPATCH, "n0", 2),
            id="nginx-2",
            package="nginx",
            deployable_until=moment(29 * DAY),
        )
        self._release(26 * DAY, short, ("servers",))
        world.checker.expired[short.id] = 29 * DAY
        nginx = replace(_content(3, ContentKind.HOTPATCH, "n0", 9), id="nginx-3", package="nginx")
        self._release(262 * DAY, nginx, ("servers",), expedite=True)
        quick = _content(113, ContentKind.HOTPATCH, "b100", 11)
        self._release(322 * DAY, quick, ("servers", "laptops"), expedite=True)
        self._due.append((70 * DAY + 5 * HOUR, lambda: self._pause("laptops", 3 * DAY)))
        self._due.append((20 * DAY, lambda: self._freeze(True)))
        self._due.append((200 * DAY, lambda: self._freeze(False)))
        self._due.append((210 * DAY, self._disable))
        self._due.append((353 * DAY, self._christmas))
        self._due.sort(key=lambda event: event[0])

    def hourly(self, minute: int) -> None:
        """What is due now, and what people do."""
        while self._due and self._due[0][0] <= minute:
            self._due.pop(0)[1]()
        for live in list(self.world.live.values()):
            if not live.ended:
                self._people(live, minute)

    def _release(
        self, at: int, content: Content, to: tuple[str, ...], bad: Bad | None = None, expedite: bool = False
    ) -> None:
        def publish() -> None:
            published = replace(content, published=moment(self.world.now))
            if not published.on_track:
                self.notes.append(f"{published.id}: {self._off_track(published)}")
            self.world.publish(published, bad, expedite, self.world.now, to)

        self._due.append((at, publish))

    def _off_track(self, baseline: Content) -> OffTrack:
        """What the administrator is shown before publishing an unplanned baseline."""
        world = self.world
        known = [
            (
                replace(device.alike.facts, id=device.id),
                device.alike.governance.policy if device.policy == "servers" else None,
            )
            for device in world.fleet
            if device.alike is not None
        ]
        return off_track(baseline, known, self.calendar, world.catalogue, moment(world.now).date())

    def _people(self, live: Live, minute: int) -> None:
        """The administrators of the fleet; they come to work four hours after something happened."""
        world, it = self.world, live.deployment
        watch = world.checker.watches[it.id]
        now = moment(minute)
        late = it.since is not None and now - it.since >= timedelta(hours=4)
        waiting = (Reason.AWAITING_APPROVAL, Reason.AWAITING_SECOND_APPROVAL)
        if it.reason in waiting and (late or it.ring_since is not None) and minute % 4 == 0:
            person = "bob" if it.reason is Reason.AWAITING_SECOND_APPROVAL else "ann"
            ring = it.ring + 1 if it.ring_since is not None else None
            if person == "bob" and (minute // HOUR) % 6:
                return
            live.deployment = rollout.approve(it, Approval(person, now, ring=ring))
            (watch.approved if ring is None else watch.ring_approved).add(person)
            world.advance(live, now, by_person=True)
        elif it.effective is Effective.HALTED and minute - live.halted >= 8 * HOUR and it.requested is Requested.NONE:
            self._halted(live, minute)

    def _halted(self, live: Live, minute: int) -> None:
        """Look at what a gate halted: hold a combination, take it out, or go on."""
        world, now = self.world, moment(minute)
        bad = world.published[live.content.id].bad
        found = [s for s in safeguards.suggest(live.outcomes.elements()) if s.field == "kernel"]
        if bad and not bad.kernel:
            live.deployment = rollout.revert(live.deployment)
            world.checker.watches[live.deployment.id].revert = True
            world.advance(live, now, by_person=True)
            return
        if found and live.content.id not in world.checker.held:
            hold = found[0].safeguard(f"sg-{len(world.holds)}", now)
            world.holds.append(hold)
            world.checker.held[live.content.id] = minute + 60 * DAY
            world.forget()
            self.notes.append(f"held {live.content.id} on {hold.kernel}: {hold.reason}")
            world.touch([device for device in world.fleet if device.kernel == hold.kernel])
        live.deployment = rollout.resume(live.deployment, world.situation(live), now)
        world.checker.resumed(live.deployment.id, live.deployment.accepted)
        world.checker.changed(live.deployment.id, "halted", live.deployment.effective, minute, True)
        world.advance(live, now, by_person=True)

    def _revoke(self, content: str) -> None:
        world = self.world
        known = world.catalogue[content]
        world.catalogue.contents[content] = replace(known, revoked=Revocation(moment(world.now), "wrong fix"))
        world.checker.revoked[content] = world.now
        world.forget()
        for policy in ALL:
            world.compile(policy)

    def _pause(self, policy: str, length: int) -> None:
        world, now = self.world, moment(self.world.now)
        for live in world.live.values():
            if live.policy == policy and not live.ended and live.deployment.effective is Effective.OFFERING:
                until = now + timedelta(minutes=length)
                live.deployment = rollout.pause(live.deployment, now, until)
                world.checker.changed(live.deployment.id, "offering", "paused", world.now, True)
                world.checker.watches[live.deployment.id].paused_until = world.now + length
                world.advance(live, now, by_person=True)

    def _freeze(self, on: bool) -> None:
        chosen = [device for device in self.world.fleet if device.index % 100 == 7]
        for device in chosen:
            device.frozen = on
        self.world.touch(chosen)

    def _disable(self) -> None:
        chosen = [device for device in self.world.fleet if device.index % 1000 == 3]
        for device in chosen:
            device.disabled = True
        self.world.touch(chosen)

    def _christmas(self) -> None:
        world, now = self.world, moment(self.world.now)
        for policy in ALL:
            pause = Pause(now, now + timedelta(days=9))
            world.policies[policy] = replace(world.policies[policy], pause=pause)
            world.checker.policy_paused[policy] = (world.now, world.now + 9 * DAY)
            for live in world.live.values():
                if live.policy == policy and not live.ended:
                    world.advance(live, now)


def _content(sequence: int, kind: ContentKind, image: str, month: int, on_track: bool = True) -> Content:
    cve = Cve(f"CVE-2026-{month:02}", 8.1, Severity.HIGH)
    return Content(
        f"{'h' if kind is ContentKind.HOTPATCH else 'base'}-{sequence}",
        kind, f"openssl {sequence}", sequence, "openssl",
        frozenset({image}), BEGIN, cves=(cve,), on_track=on_track,
    )  # fmt: skip


def _minute(at: datetime) -> int:
    return (at - BEGIN) // timedelta(minutes=1)
