"""The things that the rules speak of: content, devices, policies, deployments. Frozen, without behaviour of their own.

All times are aware datetimes. The server keeps them in UTC; only maintenance windows are in local time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from midflight.server.domain.reasons import Reason

DAY = timedelta(days=1)


class ContentKind(StrEnum):
    """Hotpatches change running code; baselines need a restart. Kept apart everywhere."""

    HOTPATCH = "hotpatch"
    BASELINE = "baseline"


class Classification(StrEnum):
    """What kind of fix it is (Graph's catalogEntry classification, one finer)."""

    SECURITY = "security"
    CRITICAL = "critical"
    OTHER = "other"


class Severity(StrEnum):
    """CVSS v3.1 section 5, the qualitative rating; ``rank`` orders them."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return _SEVERITIES.index(self)

    @classmethod
    def of_score(cls, score: float) -> Severity:
        """From a CVSS base score, 0.0 to 10.0."""
        limits = ((9.0, cls.CRITICAL), (7.0, cls.HIGH), (4.0, cls.MEDIUM), (0.1, cls.LOW))
        return next((severity for limit, severity in limits if score >= limit), cls.NONE)


_SEVERITIES = tuple(Severity)


class Requested(StrEnum):
    """What a person asked of a deployment."""

    NONE = "none"
    """Let it run."""
    PAUSED = "paused"
    STOPPED = "stopped"
    """Final: nothing is offered ever again. What runs keeps running."""
    REVERT = "revert"
    """Final: what it applied is taken out."""


class Effective(StrEnum):
    """What a deployment does. Only ``offering`` and ``done`` offer content; only ``reverting`` orders reverts."""

    SCHEDULED = "scheduled"
    OFFERING = "offering"
    PAUSED = "paused"
    """By request or by policy."""
    HALTED = "halted"
    """By a gate (a person may resume it) or stopped for good; the reason says which."""
    REVERTING = "reverting"
    DONE = "done"
    FAULTED = "faulted"


class DeviceState(StrEnum):
    """One device in one deployment."""

    PENDING = "pending"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    APPLIED = "applied"
    FAILED = "failed"
    REVERTED = "reverted"
    INELIGIBLE = "ineligible"
    BARRED = "barred"
    HELD = "held"
    EXCLUDED = "excluded"
    SILENT = "silent"
    SUPERSEDED = "superseded"


class ComplianceState(StrEnum):
    """Graph's complianceStatus, with stale and unassigned told apart. Only COMPLIANT and IN_GRACE let a device in."""

    UNKNOWN = "unknown"
    COMPLIANT = "compliant"
    IN_GRACE = "in_grace"
    NONCOMPLIANT = "noncompliant"
    STALE = "stale"
    UNASSIGNED = "unassigned"
    CONFLICT = "conflict"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Interval:
    """A time span in UTC, the end not included."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


# -- content


@dataclass(frozen=True, slots=True)
class Cve:
    """A vulnerability that content fixes. ``exploited``: known to be used (CISA KEV or the like)."""

    id: str
    cvss: float | None = None
    severity: Severity = Severity.NONE
    exploited: bool = False


@dataclass(frozen=True, slots=True)
class Revocation:
    """Content was withdrawn. Final: nobody can take it back."""

    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Content:
    """A hotpatch or a baseline as published. Immutable but for its revocation.

    ``images`` are build-ids: of a hotpatch those that it patches, of a baseline those that it installs.
    ``sequence`` grows within a package; a baseline contains every fix of lower sequence.
    """

    id: str
    kind: ContentKind
    name: str
    sequence: int
    package: str
    images: frozenset[str]
    published: datetime
    classification: Classification = Classification.SECURITY
    cves: tuple[Cve, ...] = ()
    path: str = ""
    """TUF target path."""
    sha256: str = ""
    length: int = 0
    deployable_until: datetime | None = None
    revoked: Revocation | None = None
    supersedes: frozenset[str] = frozenset()
    """Ids of contents that this one replaces (hotpatches are cumulative)."""
    platforms: frozenset[str] = frozenset()
    """Such as ``linux-x86_64``; empty: any."""
    min_kernel: str = ""
    min_agent: str = ""
    memory_mib: int = 0
    """Free memory that a device needs to take it."""
    on_track: bool = True
    """Of a baseline: are further hotpatches made for it? An unplanned baseline may leave the track."""

    @property
    def severity(self) -> Severity:
        """The highest of its CVEs."""
        return max((cve.severity for cve in self.cves), key=lambda s: s.rank, default=Severity.NONE)

    @property
    def exploited(self) -> bool:
        return any(cve.exploited for cve in self.cves)


# -- devices


@dataclass(frozen=True, slots=True)
class Image:
    """One image in a device's inventory: what is mapped, and by how many processes."""

    build_id: str
    path: str = ""
    package: str = ""
    version: str = ""
    processes: int = 0


@dataclass(frozen=True, slots=True)
class RunningPatch:
    """A hotpatch that runs on a device, as read from process memory."""

    content: str
    sequence: int
    build_id: str
    processes: int = 1
    stopped_ms: float = 0.0
    complete: bool = True
    """In every process that needs it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the server knows it."""

    id: str
    hostname: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    kernel: str = ""
    agent: str = ""
    timezone: str = "UTC"
    """IANA name."""
    memory_free_mib: int | None = None
    images: tuple[Image, ...] | None = None
    """None: never reported."""
    patches: tuple[RunningPatch, ...] = ()
    bars: frozenset[str] = frozenset()
    """Contents that failed here and wait for someone to look."""
    boot_id: str = ""
    enrolled: datetime | None = None
    last_seen: datetime | None = None
    disabled: bool = False
    integrity_violated: bool = False
    report_faulty: bool = False


# -- policies


@dataclass(frozen=True, slots=True)
class Audience:
    """Groups, and groups that are excluded. Exclusion wins, whatever else says yes."""

    groups: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()


class ApprovalMode(StrEnum):
    """How content comes to be deployed under a rule."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"
    TWO_PERSON = "two_person"


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """The first rule of a policy that matches decides. Both severities are included."""

    mode: ApprovalMode
    kinds: frozenset[ContentKind] = frozenset(ContentKind)
    classifications: frozenset[Classification] = frozenset(Classification)
    min_severity: Severity = Severity.NONE
    max_severity: Severity = Severity.CRITICAL
    delay: timedelta = timedelta(0)
    """From publication until an automatic approval takes effect."""


class RingKind(StrEnum):
    """How a ring selects its devices from those that earlier rings left."""

    FIRST = "first"
    """``amount`` devices, those first that are ready (eligible, seen lately): they shall prove something."""
    COUNT = "count"
    """``amount`` devices."""
    PERCENT = "percent"
    """``amount`` per cent of what no ``first``, ``count`` or ``group`` before it took."""
    GROUP = "group"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a ring must show before the next one begins. ``None`` limits are not looked at.

    Without any limit every bad outcome counts: a gate with ``max_failures=0`` tolerates none.
    """

    min_sample: int = 1
    """Devices that must have answered or fallen silent (fewer, if the ring has fewer that could)."""
    max_failures: int | None = 0
    """Halts when more than this many failed (silence included)."""
    max_failure_percent: float | None = None
    """Halts when more than this share of those that answered or fell silent failed, once the sample is there."""
    silence_after: timedelta = timedelta(hours=24)
    """A device that was offered and does not report for so long (outside of its window it need not) is silent; so is
    one that applied it and is not heard of for so long after the soak."""
    silence_is_failure: bool = True
    soak: timedelta = timedelta(hours=1)
    """From the success that completed the sample until the gate passes, and from each device's own success until it
    must be heard of again."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One step of a rollout."""

    name: str
    kind: RingKind
    amount: float = 0
    group: str = ""
    gate: Gate = Gate()
    mode: ApprovalMode = ApprovalMode.AUTOMATIC
    """Manual or two-person: the ring begins only when it was approved."""


@dataclass(frozen=True, slots=True)
class Window:
    """A maintenance window: an RFC 5545 recurrence in local time, and how long it stays open."""

    rrule: str
    """Such as ``FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2;BYMINUTE=0``."""
    start: datetime
    """DTSTART, without time zone: local time."""
    duration: timedelta
    timezone: str | None = None
    """IANA name; None: each device's own."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause; with ``until`` it ends by itself."""

    since: datetime
    until: datetime | None = None


class RestartBehaviour(StrEnum):
    """What happens when a baseline waits for its restart."""

    NEVER = "never"
    """Only people restart."""
    SERVICES = "services"
    IN_WINDOW = "in_window"
    AT_DEADLINE = "at_deadline"


@dataclass(frozen=True, slots=True)
class ComplianceRule:
    """When a device counts as compliant."""

    validity: timedelta = 7 * DAY
    """A report older than this says nothing (Intune's default is 30 days)."""
    grace: timedelta = 7 * DAY
    """From when content is required of a device until its absence is noncompliance."""
    min_severity: Severity = Severity.NONE
    """Fixes below this are not required."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an administrator decided for an audience. A device is governed by one policy (the highest priority)."""

    id: str
    name: str
    audience: Audience
    priority: int = 0
    hotpatch: bool = True
    fallback: bool = True
    """Whoever cannot have a hotpatch is offered the newest baseline instead, if that may be deployed."""
    approvals: tuple[ApprovalRule, ...] = ()
    rings: tuple[Ring, ...] = ()
    windows: tuple[Window, ...] = ()
    """None at all: any time."""
    deadline: timedelta | None = None
    """From offer on; beyond it no window is waited for."""
    grace: timedelta = timedelta(0)
    """After the deadline, before a restart is forced; anew for a device that was away (as Intune does)."""
    restart: RestartBehaviour = RestartBehaviour.AT_DEADLINE
    expedite_allowed: bool = False
    pause: Pause | None = None
    revert_on_halt: bool = False
    check_in_s: int = 300
    compliance: ComplianceRule = ComplianceRule()


# -- deployments


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's word on a deployment (``ring`` None) or on one of its rings."""

    person: str
    at: datetime
    approved: bool = True
    ring: int | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """Content for the devices that a policy governs. Requested and effective state are kept apart.

    ``ring`` is the ring in progress; rings up to it are open. ``ring == len(policy.rings)``: all gates have passed.
    """

    id: str
    content: str
    policy: str
    created: datetime
    starts: datetime
    requested: Requested = Requested.NONE
    pause: Pause | None = None
    """With ``requested == paused``; with ``until`` the pause ends by itself."""
    effective: Effective = Effective.SCHEDULED
    reason: Reason = Reason.SCHEDULED_FOR_START
    detail: str = ""
    since: datetime | None = None
    """Of the effective state."""
    ring: int = 0
    ring_since: datetime | None = None
    accepted: tuple[int, ...] = ()
    """Per ring: bad outcomes that a person saw and accepted by resuming."""
    approvals: tuple[Approval, ...] = ()
    expedite: bool = False
    audience: Audience | None = None
    """Narrows the policy's audience."""


@dataclass(frozen=True, slots=True)
class Membership:
    """One device in one deployment."""

    ring: int | None
    """None: not (yet) eligible, so in no ring."""
    state: DeviceState = DeviceState.PENDING
    reason: Reason = Reason.AWAITING_RING
    detail: str = ""
    since: datetime | None = None
    offered: datetime | None = None
    """When it was first offered: its deadline counts from here."""


@dataclass(frozen=True, slots=True)
class RingTally:
    """How a ring stands: devices by state, and the time that its gate needs."""

    states: Mapping[DeviceState, int] = field(default_factory=dict)
    sampled: datetime | None = None
    """When the ``min_sample``-th device (in order of time, by the server's clock) became ``applied``, which completed
    the sample; with fewer, the last of them; without any, None. Not the last success of all: in a ring of thousands
    somebody comes back every minute, and the soak would never end (docs/adr/0072)."""
    heard: datetime | None = None
    """Since then as many devices of the ring that have ``applied`` were heard of as the sample needs. None: nobody
    looked, which a gate takes for heard of."""

    def count(self, *states: DeviceState) -> int:
        total = 0
        for state in states:
            total += self.states.get(state, 0)
        return total

    @property
    def members(self) -> int:
        return sum(self.states.values())
