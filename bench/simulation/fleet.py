"""A synthetic fleet: servers, laptops and kiosks over the time zones, with absences and flaky devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from midflight.server.domain.audience import Group
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

ZONES = (
    ("Europe/Berlin", 1), ("Europe/London", 0), ("America/New_York", -5), ("America/Los_Angeles", -8),
    ("Asia/Kolkata", 5.5), ("Asia/Tokyo", 9), ("Australia/Sydney", 10), ("America/Sao_Paulo", -3),
)  # fmt: skip
KERNELS = ("6.1.0-18-amd64", "6.12.5", "5.10.0-30-amd64")
OLD_KERNEL = KERNELS[2]


def moment(minute: float) -> datetime:
    """A minute of the simulation as time."""
    return BEGIN + timedelta(minutes=minute)


@dataclass(slots=True, eq=False)
class Sim:
    """One simulated device: what is true of it, and what the server knows (``standing``)."""

    index: int
    id: str
    kind: str
    zone: str
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
    bars: set[str] = field(default_factory=set)
    seen: int = -1
    due: int = -1
    pending: list[tuple[str, str]] = field(default_factory=list)
    """Deployment and result, not yet reported."""
    staged: tuple[Content, str, int] | None = None
    restart: int = -1
    back: int = 0
    stale: bool = True
    """Its facts changed since its standing was made."""
    moved: bool = True
    """Its tags changed since its groups were looked up."""
    known: Device = field(default_factory=lambda: Device(""))
    """As the server knows it: from its last report."""
    standing: Standing = field(default_factory=lambda: Standing({}))
    windows: tuple[Window, ...] = ()
    hotpatched: list[tuple[Content, int]] = field(default_factory=list)
    """Since the last restart into a baseline."""

    @property
    def policy(self) -> str | None:
        """What must govern it, by the plan of this fleet (the rules find out by groups)."""
        return {"server": "servers", "laptop": "laptops", "kiosk": "kiosks"}.get(self.kind)

    def facts(self) -> Device:
        """As it reports itself."""
        images = [Image(self.disk, "/usr/lib/libssl.so.3", "openssl", self.disk, 3)]
        if self.nginx:
            images.append(Image("n0", "/usr/sbin/nginx", "nginx", "1.22.1", 2))
        tags = {"kind": self.kind, "role": "lab" if self.lab else "", "change": "frozen" if self.frozen else ""}
        patches = tuple(RunningPatch(c.id, c.sequence, next(iter(c.images))) for c in self.memory.values())
        return Device(
            self.id, f"{self.kind}-{self.index}", tags, "linux-x86_64", self.kernel, "1.0.0", self.zone, 4096,
            tuple(images), patches, frozenset(self.bars), "", moment(self.enrolled),
            moment(self.seen) if self.seen >= 0 else None, self.disabled,
        )  # fmt: skip

    def online(self, minute: int) -> int:
        """The first minute from this one on at which it is on and connected; past its retirement: never."""
        while True:
            away = next((end for begin, end in self.absences if begin <= minute < end), None)
            if away is not None:
                minute = away
            elif self.kind == "laptop" and (wait := self._office(minute)):
                minute += wait
            else:
                return minute if minute < self.retired else 1 << 40

    def _office(self, minute: int) -> int:
        local = minute + self.offset
        day, time = divmod(local, DAY)
        opens, closes = 8 * HOUR + self.index % 90, 18 * HOUR
        # day 0 is a Thursday
        if (day + 3) % 7 < 5 and opens <= time < closes:
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
        index, f"d{index:06}", kind, zone, int(offset * 60), random.choices(KERNELS, (55, 30, 15))[0],
        lab=kind == "server" and random.random() < 0.01,
        flaky=0.03 if random.random() < 0.03 else 0.001,
        enrolled=random.randrange(minutes) if late else 0,
        retired=random.randrange(minutes // 2, minutes) if random.random() < 0.03 else 1 << 40,
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
