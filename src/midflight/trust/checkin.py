"""What a device and its server say to each other when the device checks in, and when it renews its certificate.

A check-in is the body of a signed request (:mod:`midflight.trust.requests`). The state of the device comes in two
parts, ``state`` (small, changes now and then) and ``inventory`` (large, changes rarely). Each is sent only when the
server has not got it: a check-in names the digests of both, and the server asks (``want``) for a part whose digest it
does not know. So a device to which nothing happens sends 300 bytes, and the server writes nothing of them. Outcomes
are sent until they are answered with 200; the server keeps one per action and result, however often it hears of it.

The answer has instructions (:mod:`midflight.trust.instructions`) only when those that the device holds, which it
names by their sequence, are not the current ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, TypeVar

from midflight.patch import strictjson
from midflight.patch.fields import FieldError, boolean, choice, integer, many, optional, pattern, record, show, text
from midflight.trust.encoding import MAX_INTEGER, canonical, decode_canonical, format_time, time
from midflight.trust.errors import TrustError

T = TypeVar("T")

VERSION = 1
CHECK_IN_PATH = "/device/v1/check-in"
ENROLL_PATH = "/device/v1/enroll"
RENEW_PATH = "/device/v1/renew"
MAX_CHECK_IN = 4 << 20
"""Bytes of a check-in with a whole inventory; more is refused unread."""
MEMORY_STEP_MIB = 256
"""Free memory is reported rounded down to this, so that it is not new state at every check-in."""

Result = Literal["downloading", "waiting", "applied", "staged", "failed", "reverted", "revert_failed", "refused"]
"""``waiting``: accepted, and waits for what the reason says; ``staged``: takes effect at a restart; ``refused``: the
device will not do it, and nothing was changed."""
Part = Literal["state", "inventory"]


@dataclass(frozen=True, slots=True)
class ImageReport:
    """An image that is mapped by processes of the device; ``package`` and ``version`` are empty where no package has
    it."""

    build_id: str
    path: str
    package: str
    version: str
    processes: int


@dataclass(frozen=True, slots=True)
class PatchReport:
    """A hotpatch as it is in the memory of processes."""

    name: str
    """Series, as in the catalog."""
    sequence: int
    sha256: str
    """Of the hotpatch file."""
    build_id: str
    processes: int
    missing: int
    """Processes that map the image and do not have it (yet)."""
    stopped_us: int
    """The longest time that a process was stopped for it, microseconds."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Content that this device will not take again until somebody lifts the bar."""

    name: str
    sequence: int
    sha256: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Violation:
    """Code in memory that is neither what is on disk nor what the ledger says."""

    build_id: str
    path: str
    process: str
    """Name and pid, for people."""
    detail: str
    found: datetime


@dataclass(frozen=True, slots=True)
class Probe:
    """A look at the health of what was patched, so many seconds after it was."""

    sha256: str
    after_s: int
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart that something staged waits for."""

    pending: bool = False
    reason: str = ""
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The part of a device's state that changes now and then. Nothing in it may change by itself from minute to
    minute."""

    hostname: str
    platform: str
    """Like ``linux-x86_64``."""
    kernel: str
    agent: str
    """Version of Midflight on the device."""
    timezone: str
    """IANA name."""
    boot_id: str
    memory_free_mib: int | None = None
    """Rounded down to a multiple of ``MEMORY_STEP_MIB``."""
    patches: tuple[PatchReport, ...] = ()
    bars: tuple[Bar, ...] = ()
    violations: tuple[Violation, ...] = ()
    health: tuple[Probe, ...] = ()
    restart: Restart = Restart()
    facts: Mapping[str, str] = field(default_factory=dict)
    """Whatever else is worth knowing: ``os``, ``machine``, …"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action of the instructions."""

    action: str
    """The action's id."""
    deployment: str | None
    result: Result
    at: datetime
    reason: str = ""
    """A machine-readable word: one of the server's reasons, or the agent's own."""
    detail: str = ""
    processes: int = 0
    stopped_us: int = 0


@dataclass(frozen=True, slots=True)
class CheckIn:
    """What a device says."""

    at: datetime
    instructions: int
    """Sequence of the instructions that it holds; 0: none."""
    state_digest: str
    inventory_digest: str
    state: State | None = None
    inventory: tuple[ImageReport, ...] | None = None
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says."""

    interval_s: int
    """Seconds until the next check-in; the device keeps to it (and adds no jitter of its own: the server has)."""
    instructions: bytes | None = None
    """The signed envelope; None: those that the device holds are the current ones."""
    want: tuple[Part, ...] = ()
    """Parts to send at once: the digests named are not known here."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The body of a signed request for the next certificate, and (other members set) its answer."""

    certificate_request: str = ""
    certificate: str = ""
    authority: str = ""


def state_document(state: State) -> dict[str, Any]:
    """A state as JSON; its canonical encoding is what ``state_digest`` is made of."""
    return {
        "hostname": state.hostname,
        "platform": state.platform,
        "kernel": state.kernel,
        "agent": state.agent,
        "timezone": state.timezone,
        "boot_id": state.boot_id,
        "memory_free_mib": state.memory_free_mib,
        "patches": [
            {
                "name": patch.name,
                "sequence": patch.sequence,
                "sha256": patch.sha256,
                "build_id": patch.build_id,
                "processes": patch.processes,
                "missing": patch.missing,
                "stopped_us": patch.stopped_us,
            }
            for patch in state.patches
        ],
        "bars": [
            {
                "name": bar.name,
                "sequence": bar.sequence,
                "sha256": bar.sha256,
                "reason": bar.reason,
                "since": format_time(bar.since),
            }
            for bar in state.bars
        ],
        "violations": [
            {
                "build_id": violation.build_id,
                "path": violation.path,
                "process": violation.process,
                "detail": violation.detail,
                "found": format_time(violation.found),
            }
            for violation in state.violations
        ],
        "health": [
            {"sha256": probe.sha256, "after_s": probe.after_s, "healthy": probe.healthy, "detail": probe.detail}
            for probe in state.health
        ],
        "restart": {
            "pending": state.restart.pending,
            "reason": state.restart.reason,
            "deadline": format_time(state.restart.deadline) if state.restart.deadline else None,
        },
        "facts": dict(state.facts),
    }


def inventory_document(inventory: tuple[ImageReport, ...]) -> list[dict[str, Any]]:
    """An inventory as JSON, in order of build-id and path."""
    ordered = sorted(inventory, key=lambda image: (image.build_id, image.path))
    return [
        {
            "build_id": image.build_id,
            "path": image.path,
            "package": image.package,
            "version": image.version,
            "processes": image.processes,
        }
        for image in ordered
    ]


def digest_of(document: object) -> str:
    """The digest of a state or an inventory document: sha256 of its canonical encoding, in hex."""
    return sha256(canonical(document)).hexdigest()


def encode_check_in(message: CheckIn) -> bytes:
    """The body of a check-in."""
    return canonical(
        {
            "version": VERSION,
            "at": format_time(message.at),
            "instructions": message.instructions,
            "state_digest": message.state_digest,
            "inventory_digest": message.inventory_digest,
            "state": state_document(message.state) if message.state else None,
            "inventory": inventory_document(message.inventory) if message.inventory is not None else None,
            "outcomes": [
                {
                    "action": outcome.action,
                    "deployment": outcome.deployment,
                    "result": outcome.result,
                    "at": format_time(outcome.at),
                    "reason": outcome.reason,
                    "detail": outcome.detail,
                    "processes": outcome.processes,
                    "stopped_us": outcome.stopped_us,
                }
                for outcome in message.outcomes
            ],
        }
    )


def decode_check_in(data: bytes) -> CheckIn:
    """Read a check-in. Its signature is verified already, which makes it the device's word, and not yet sensible.

    Raises:
        TrustError: reason ``malformed`` or ``oversized``.
    """
    if len(data) > MAX_CHECK_IN:
        raise TrustError(f"the check-in has {len(data)} bytes, at most {MAX_CHECK_IN} are read", "oversized")
    try:
        document = strictjson.loads(data)
        if type(document) is dict and type(document.get("version")) is int and document["version"] > VERSION:
            raise FieldError(f"is of version {document['version']}, and this server reads {VERSION}", ".version")
        message: CheckIn = _check_in(document)
        _check_digests(message)
    except (FieldError, strictjson.StrictJSONError) as error:
        raise TrustError(f"the check-in has a fault: {error}; update the agent or the server", "malformed") from None
    return message


def _check_digests(message: CheckIn) -> None:
    if message.state is not None and digest_of(state_document(message.state)) != message.state_digest:
        raise FieldError("is not that of the state", ".state_digest")
    if message.inventory is not None and digest_of(inventory_document(message.inventory)) != message.inventory_digest:
        raise FieldError("is not that of the inventory", ".inventory_digest")


def encode_answer(answer: Answer) -> bytes:
    """The body of an answer."""
    return canonical(
        {
            "version": VERSION,
            "interval_s": answer.interval_s,
            "instructions": answer.instructions.decode() if answer.instructions is not None else None,
            "want": list(answer.want),
        }
    )


def decode_answer(data: bytes) -> Answer:
    """Read an answer. Nothing in it is signed but the instructions; the connection is pinned.

    Raises:
        TrustError: reason ``malformed``.
    """
    return _decoded(data, _answer, "the server's answer")


def encode_renewal(renewal: Renewal) -> bytes:
    """The body of a request for renewal, or of its answer."""
    return canonical(
        {
            "version": VERSION,
            "certificate_request": renewal.certificate_request,
            "certificate": renewal.certificate,
            "authority": renewal.authority,
        }
    )


def decode_renewal(data: bytes) -> Renewal:
    """Read one.

    Raises:
        TrustError: reason ``malformed``.
    """
    return _decoded(data, _renewal, "the renewal")


def rounded_memory(free_mib: int) -> int:
    """Free memory as it is reported."""
    return free_mib // MEMORY_STEP_MIB * MEMORY_STEP_MIB


def _decoded(data: bytes, check: Callable[[object], T], what: str) -> T:
    try:
        return decode_canonical(data, check)
    except FieldError as error:
        raise TrustError(f"{what} has a fault: {error}; update the agent or the server", "malformed") from None


def _facts(value: object) -> Mapping[str, str]:
    if type(value) is not dict or len(value) > 64:
        raise FieldError("must be an object with at most 64 keys")
    for key, fact in value.items():
        if not 1 <= len(key) <= 64 or not key.isascii() or not key.isprintable():
            raise FieldError(f"has a key that is no name of a fact: {show(key)}")
        try:
            _free(fact)
        except FieldError as error:
            raise error.inside(f".{show(key)}") from None
    return value


_count = integer(0, 1 << 31)
_digest = pattern(r"[0-9a-f]{64}", "a sha256 in hex")
_no_digest = pattern(r"(?:[0-9a-f]{64})?", "a sha256 in hex, or nothing")
_build_id = pattern(r"[A-Za-z0-9-]{4,128}", "a build-id")
_series = pattern(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}", "a name")
_sequence = integer(1, MAX_INTEGER)
_identifier = pattern(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", "an identifier")
_word = pattern(r"[a-z0-9_.-]{0,64}", "a word of a-z, 0-9, '_', '.', '-'")
_free = text(0, 1000)
_short = text(0, 200)
_path = text(0, 4096)
_pem = text(0, 16 << 10, lines=True)
_image = record(ImageReport, build_id=_build_id, path=_path, package=_short, version=_short, processes=_count)
_patch = record(
    PatchReport,
    name=_series,
    sequence=_sequence,
    sha256=_digest,
    build_id=_build_id,
    processes=_count,
    missing=_count,
    stopped_us=integer(0, MAX_INTEGER),
)
_state = record(
    State,
    hostname=text(1, 253),
    platform=_short,
    kernel=_short,
    agent=_short,
    timezone=_short,
    boot_id=_short,
    memory_free_mib=optional(_count),
    patches=many(_patch, 0, 2000),
    bars=many(record(Bar, name=_series, sequence=_sequence, sha256=_digest, reason=_word, since=time), 0, 500),
    violations=many(
        record(
            Violation,
            build_id=pattern(r"[A-Za-z0-9-]{0,128}", "a build-id"),
            path=_path,
            process=_short,
            detail=_free,
            found=time,
        ),
        0,
        200,
    ),
    health=many(record(Probe, sha256=_digest, after_s=_count, healthy=boolean, detail=_free), 0, 500),
    restart=record(Restart, pending=boolean, reason=_short, deadline=optional(time)),
    facts=_facts,
)
_outcome = record(
    Outcome,
    action=_identifier,
    deployment=optional(_identifier),
    result=choice(("downloading", "waiting", "applied", "staged", "failed", "reverted", "revert_failed", "refused")),
    at=time,
    reason=_word,
    detail=_free,
    processes=_count,
    stopped_us=integer(0, MAX_INTEGER),
)


def _without_version(make: Callable[..., T]) -> Callable[..., T]:
    return lambda version, *fields: make(*fields)


_check_in = record(
    _without_version(CheckIn),
    version=integer(VERSION, VERSION),
    at=time,
    instructions=integer(0, MAX_INTEGER),
    state_digest=_digest,
    inventory_digest=_no_digest,
    state=optional(_state),
    inventory=optional(many(_image, 0, 5000)),
    outcomes=many(_outcome, 0, 1000),
)
_answer = record(
    lambda version, interval_s, instructions, want: Answer(
        interval_s, None if instructions is None else instructions.encode(), want
    ),
    version=integer(VERSION, VERSION),
    interval_s=integer(1, 86400 * 7),
    instructions=optional(text(1, 1 << 20, lines=True)),
    want=many(choice(("state", "inventory")), 0, 2),
)
_renewal = record(
    _without_version(Renewal),
    version=integer(VERSION, VERSION),
    certificate_request=_pem,
    certificate=_pem,
    authority=_pem,
)
