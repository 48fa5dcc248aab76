"""A synthetic fleet: servers, laptops and kiosks over the time zones, with absences and flaky devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random

from midflight.server.domain.audience import Governance, Group
from midflight.server.domain.model import (
    ApprovalMode,
    ApprovalRule,
    Audience,
    ComplianceRule,
    Content,
    ContentKind,
    Device,
    Gate,
    Image,
    Membership,
    Policy,
    RestartBehaviour,
    Ring,
    RingKind,
    RunningPatch,
    Window,
)
from midflight.server.domain.offers import Standing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = 60, 24 * 60
"""Simulated time is minutes since BEGIN."""
NEVER = 1 << 40

ZONES = (
    ("Europe/Berlin", 1), ("Europe/London", 0), ("America/New_York", -5), ("America/Los_Angeles", -8),
    ("Asia/Kolkata", 5.5), ("Asia/Tokyo", 9), ("Australia/Sydney", 10), ("America/Sao_Paulo", -3),
)  # fmt: skip
KERNELS = ("6.1.0-18-amd64", "6.12.5", "5.10.0-30-amd64")
OLD_KERNEL = KERNELS[2]
POLICY_OF = {"server": "servers", "laptop": "laptops", "kiosk": "kiosks"}
"""What must govern each kind of device, by the plan of this fleet (the rules find out by groups)."""
OUTAGES = (
    (40 * DAY + 9 * HOUR, 40 * DAY + 13 * HOUR),
    (103 * DAY + 20 * HOUR, 104 * DAY + 14 * HOUR),
    (255 * DAY, 256 * DAY + 6 * HOUR),
)
"""The server is away: nobody checks in, no work is done."""
OPENS, CLOSES = 8 * HOUR, 18 * HOUR
"""When laptops are on, from Monday to Friday, local standard time; each begins a little later than the other."""


@lru_cache(maxsize=20_000)
def moment(minute: float) -> datetime:
    """A minute of the simulation as time; the same object again, so that a million memberships share it."""
    return BEGIN + timedelta(minutes=minute)


_UNKNOWN = Standing({})
Traits = tuple[str, bool, bool, str, str, bool, tuple[str, ...], frozenset[str], bool]


@lru_cache(maxsize=20_000)
def served(minute: int) -> int:
    """The last minute by that one in which the server was there."""
    return next((begin - 1 for begin, end in OUTAGES if begin <= minute < end), minute)


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Devices that differ in nothing that groups and standings look at. The rules are asked once for all of them."""

    facts: Device
    groups: frozenset[str]
    governance: Governance


@dataclass(slots=True, eq=False)
class Sim:
    """One simulated device: what is true of it, and what the server knows (``standing``)."""

    index: int
    id: str
    kind: str
    zone: str
    policy: str | None
    """What must govern it (:data:`POLICY_OF`)."""
    offset: int
    """Of local standard time from UTC, minutes: for office hours alone."""
    kernel: str
    lab: bool
    flaky: float
    """Chance that an apply fails."""
    enrolled: int
    retired: int
    absences: list[tuple[int, int]]
    frozen: bool = False
    disabled: bool = False
    disk: str = "b0"
    """Build-id of openssl on disk."""
    nginx: bool = False
    memory: dict[str, Content] = field(default_factory=dict)
    """Package to the hotpatch that runs."""
    bars: frozenset[str] = frozenset()
    seen: int = -1
    """When its last check-in was that the simulation went through; see :meth:`heard`."""
    due: int = -1
    pending: list[tuple[str, str]] = field(default_factory=list)
    """Deployment and result, not yet reported."""
    fades: bool = False
    """It will vanish once it has reported."""
    staged: tuple[Content, str, int] | None = None
    restart: int = -1
    back: int = 0
    stale: bool = True
    """Its facts changed since its standing was made."""
    knows: int = -1
    """Which state of deployments, content and holds its standing was made from."""
    answered: int = -1
    """Which state of the deployments it was answered by, while that answer needs no second thought."""
    alike: Alike | None = None
    """As the server knows it: from its last report."""
    memberships: dict[str, Membership] = field(default_factory=dict)
    """By deployment."""
    standing: Standing = _UNKNOWN
    hotpatched: list[tuple[Content, int]] = field(default_factory=list)
    """Since the last restart into a baseline."""

    def traits(self) -> Traits:
        """All that its facts follow from but what is its own alone."""
        running = tuple(self.memory.values())
        return (
            self.kind, self.lab, self.frozen, self.kernel, self.disk, self.nginx,
            tuple(content.id for content in running), self.bars, self.disabled,
        )  # fmt: skip

    def facts(self) -> Device:
        """As it reports itself, without what is its own alone (id, name, time zone, times): see :class:`Alike`."""
        images = [Image(self.disk, "/usr/lib/libssl.so.3", "openssl", self.disk, 3)]
        if self.nginx:
            images.append(Image("n0", "/usr/sbin/nginx", "nginx", "1.22.1", 2))
        tags = {"kind": self.kind, "role": "lab" if self.lab else "", "change": "frozen" if self.frozen else ""}
        patches = tuple(RunningPatch(c.id, c.sequence, next(iter(c.images))) for c in self.memory.values())
        return Device(
            "", "", tags, "linux-x86_64", self.kernel, "1.0.0", "UTC", 4096, tuple(images), patches, self.bars,
            disabled=self.disabled,
        )  # fmt: skip

    def heard(self, minute: int) -> int:
        """When the server heard of it last, by a minute; never: -1. What is on and connected checks in every five
        minutes; check-ins that say nothing new and are answered as before are not gone through one by one."""
        if self.seen < 0:
            return -1
        minute = found = served(min(minute, self.retired - 1))
        while self.absences or self.kind == "laptop":
            found = minute = served(minute)
            for begin, end in self.absences:
                if begin <= minute < end:
                    minute = begin - 1
            if self.kind == "laptop":
                minute -= self._closed(minute)
            if minute == found:
                break
        return max(found, self.seen)

    def _closed(self, minute: int) -> int:
        """For how long the office has been closed (so to speak: a laptop that is on is closed for 0 minutes)."""
        day, time = divmod(minute + self.offset, DAY)
        weekday = (day + 3) % 7
        if weekday < 5 and OPENS + self.index % 90 <= time < CLOSES:
            return 0
        back = 0 if weekday < 5 and time >= CLOSES else 1
        while (day - back + 3) % 7 >= 5:
            back += 1
        return time - CLOSES + 1 + back * DAY

    def online(self, minute: int) -> int:
        """The first minute from this one on at which it is on and connected; past its retirement: never."""
        found = -1
        while found != minute:
            found = minute
            for begin, end in self.absences:
                if begin <= minute < end:
                    minute = end
            if self.kind == "laptop":
                minute += self._office(minute)
        return minute if minute < self.retired else NEVER

    def _office(self, minute: int) -> int:
        local = minute + self.offset
        day, time = divmod(local, DAY)
        opens = OPENS + self.index % 90
        # day 0 is a Thursday
        if (day + 3) % 7 < 5 and opens <= time < CLOSES:
            return 0
        ahead = 0 if time < opens else 1
        while (day + ahead + 3) % 7 >= 5:
            ahead += 1
        return ahead * DAY + opens - time


def build(count: int, seed: int, minutes: int) -> list[Sim]:
    """A fleet. ``minutes``: how long it will be watched."""
    random = Random(seed)
    return [_device(index, random, minutes) for index in range(count)]


def _device(index: int, random: Random, minutes: int) -> Sim:
    lot = random.random()
    kind = (
        "server"
        if lot < 0.58
        else "laptop"
        if lot < 0.92
        else "kiosk"
        if lot < 0.994
        else "stray"
        if lot < 0.998
        else "rival"
    )
    zone, offset = random.choices(ZONES, (30, 8, 20, 10, 8, 8, 6, 10))[0]
    absences = []
    for _ in range(2 if kind == "laptop" else 1):
        if random.random() < (0.9 if kind == "laptop" else 0.15):
            begin = random.randrange(minutes)
            absences.append((begin, begin + random.randrange(DAY, (21 if kind == "laptop" else 4) * DAY)))
    late = random.random() < 0.05
    return Sim(
        index, f"d{index:06}", kind, zone, POLICY_OF.get(kind), int(offset * 60),
        random.choices(KERNELS, (55, 30, 15))[0],
        lab=kind == "server" and random.random() < 0.01,
        flaky=0.03 if random.random() < 0.03 else 0.001,
        enrolled=random.randrange(minutes) if late else 0,
        retired=random.randrange(minutes // 2, minutes) if random.random() < 0.03 else NEVER,
        absences=sorted(absences),
        nginx=kind == "server" and random.random() < 0.4,
    )  # fmt: skip


GROUPS = (
    Group("servers", rule='tag.kind in ["server", "rival"]'),
    Group("laptops", rule='tag.kind == "laptop"'),
    Group("rivals", rule='tag.kind == "rival"'),
    Group("kiosks", rule='tag.kind == "kiosk"'),
    Group("lab", rule='tag.role == "lab" and kernel >= "5.4"'),
    Group("frozen", rule='tag.change == "frozen"'),
)


def policies() -> dict[str, Policy]:
    """What the administrators of this fleet decided."""
    frozen = frozenset({"frozen"})
    hours = timedelta(hours=1)
    night = Window("FREQ=DAILY;BYHOUR=1;BYMINUTE=0", datetime(2025, 1, 1), 4 * hours)
    sunday = Window("FREQ=WEEKLY;BYDAY=SU;BYHOUR=22;BYMINUTE=0", datetime(2025, 1, 1), 6 * hours)
    few = Gate(min_sample=8, max_failures=2, silence_after=36 * hours, soak=6 * hours)
    many = Gate(
        min_sample=50, max_failures=None, max_failure_percent=6, silence_after=60 * hours, soak=12 * hours
    )  # fmt: skip
    patient = Gate(min_sample=40, max_failures=None, max_failure_percent=10, silence_after=120 * hours, soak=12 * hours)
    delayed = (
        ApprovalRule(ApprovalMode.MANUAL, kinds=frozenset({ContentKind.BASELINE})),
        ApprovalRule(ApprovalMode.AUTOMATIC, delay=24 * hours),
    )
    rule = ComplianceRule(timedelta(days=8), timedelta(days=14))
    servers = Policy(
        "servers", "Servers", Audience(frozenset({"servers"}), frozen), 10, approvals=delayed, windows=(night,),
        rings=(
            Ring("one", RingKind.FIRST, 1, gate=Gate(soak=4 * hours, silence_after=36 * hours)),
            Ring("lab", RingKind.GROUP, group="lab", gate=few),
            Ring("5 %", RingKind.PERCENT, 5, gate=many),
            Ring("25 %", RingKind.PERCENT, 25, gate=many, mode=ApprovalMode.TWO_PERSON),
            Ring("rest", RingKind.REST, gate=many),
        ),
        deadline=timedelta(days=7), restart=RestartBehaviour.IN_WINDOW, expedite_allowed=True, revert_on_halt=True,
        compliance=rule,
    )  # fmt: skip
    laptops = Policy(
        "laptops", "Laptops", Audience(frozenset({"laptops"}), frozen), 5,
        approvals=(ApprovalRule(ApprovalMode.AUTOMATIC),),
        rings=(
            Ring("one", RingKind.FIRST, 1, gate=Gate(soak=2 * hours, silence_after=120 * hours)),
            Ring("20", RingKind.COUNT, 20, gate=Gate(min_sample=10, max_failures=4, silence_after=120 * hours)),
            Ring("10 %", RingKind.PERCENT, 10, gate=patient),
            Ring("rest", RingKind.REST, gate=patient),
        ),
        deadline=timedelta(days=2), grace=timedelta(days=2), compliance=rule,
    )  # fmt: skip
    kiosks = Policy(
        "kiosks", "Kiosks", Audience(frozenset({"kiosks"}), frozen), 5, hotpatch=False,
        approvals=(ApprovalRule(ApprovalMode.AUTOMATIC, delay=48 * hours),), windows=(sunday,),
        rings=(Ring("five", RingKind.COUNT, 5, gate=few), Ring("rest", RingKind.REST, gate=many)),
        restart=RestartBehaviour.IN_WINDOW, compliance=rule,
    )  # fmt: skip
    # rivals fall under two policies of the same priority: a conflict that nobody mended
    rivals = Policy("rivals", "Rivals", Audience(frozenset({"rivals"}), frozen), 10)
    return {policy.id: policy for policy in (servers, laptops, kiosks, rivals)}
