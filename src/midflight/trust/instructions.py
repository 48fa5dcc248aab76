"""What the server tells one device to do: instructions, signed online (after the director of Uptane).

They are a DSSE envelope around canonical JSON, signed with Ed25519. They name content by TUF path, sha256 and length,
and can never add any: :mod:`midflight.trust.agreement` compares them with what is signed offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from midflight.patch.fields import FieldError, choice, integer, many, optional, pattern, record, show
from midflight.patch.signature import (
    Envelope,
    EnvelopeError,
    PublicKey,
    Signer,
    UntrustedError,
    decode_envelope,
    encode_envelope,
)
from midflight.trust.encoding import MAX_INTEGER, canonical, decode_canonical, format_time, time
from midflight.trust.errors import InstructionsRefused
from midflight.trust.paths import target_path

PAYLOAD_TYPE = "application/vnd.midflight.instructions+json"
VERSION = 1
OLDEST_VERSION = 1
"""Formats below this one are refused, so that nobody can bring back a format that was given up for a reason."""

MAX_ENVELOPE = 512 << 10
"""Bytes of an envelope; 1,000 actions take less."""
MAX_LIFETIME = timedelta(days=31)
"""From issued to expires: how long a stolen online key, or a server that was cut off, can speak from the grave."""
MAX_SKEW = timedelta(minutes=5)
"""How far the server's clock may be ahead of the device's."""
MAX_ACTIONS = 1000

ActionKind = Literal["apply", "revert", "baseline", "hold"]
Option = str | int | bool | None

DEVICE_ID = r"[a-z0-9][a-z0-9._-]{0,63}"
SHA256 = r"[0-9a-f]{64}"


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which changes may begin, UTC, the end not included."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do. ``hold`` without a target holds everything; the other kinds name theirs.

    ``not_before`` and ``deadline`` bound the time: after the deadline a window need not be waited for.
    """

    id: str
    kind: ActionKind
    deployment: str | None = None
    target: str | None = None
    sha256: str | None = None
    length: int | None = None
    not_before: datetime | None = None
    deadline: datetime | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instructions:
    """All that the server wants of one device until ``expires``. ``sequence`` only ever grows, per device."""

    device: str
    issued: datetime
    expires: datetime
    sequence: int
    interval_s: int
    """Seconds until the device should check in again (paced by the server)."""
    windows: tuple[Window, ...] = ()
    """When changes may begin. None at all: at any time."""
    actions: tuple[Action, ...] = ()
    policy: Mapping[str, object] = field(default_factory=dict)
    """Settings of the agent, as JSON; the agent reads what it knows."""
    version: int = VERSION


def sign_instructions(instructions: Instructions, signers: Sequence[Signer]) -> bytes:
    """The signed envelope of instructions, as :func:`verify_instructions` takes it.

    Raises:
        InstructionsRefused: no device would accept them (reason ``malformed`` or ``oversized``).
    """
    payload = encode_instructions(instructions)
    try:
        if decode_canonical(payload, _instructions) != instructions:
            raise FieldError("does not come out of its own encoding unchanged; times are whole seconds in UTC")
        _check_lifetime(instructions)
    except FieldError as error:
        raise InstructionsRefused(f"instructions for {instructions.device}: {error}", "malformed") from None
    envelope = Envelope(payload, {}, PAYLOAD_TYPE)
    for signer in signers:
        envelope = envelope.signed_by(signer)
    data = encode_envelope(envelope)
    if len(data) > MAX_ENVELOPE:
        raise InstructionsRefused(
            f"instructions for {instructions.device} have {len(data)} bytes, a device takes at most {MAX_ENVELOPE}",
            "oversized",
        )
    return data


def verify_instructions(
    envelope: bytes,
    keys: Iterable[PublicKey],
    device: str,
    now: datetime,
    last_sequence: int,
    *,
    same: bool = False,
) -> Instructions:
    """The instructions in an envelope, if this device should follow them now.

    Args:
        envelope: as it came from the server.
        keys: the online keys that the server's record in the TUF repository names (:mod:`midflight.trust.server`).
        device: the id of this device.
        now: the time, with a time zone.
        last_sequence: the highest sequence that this device accepted before; 0 for none.
        same: accept ``last_sequence`` itself again: for the envelope that the device has kept.

    Raises:
        InstructionsRefused: with the reason.
    """
    if len(envelope) > MAX_ENVELOPE:
        raise InstructionsRefused(
            f"the instructions have {len(envelope)} bytes, more than {MAX_ENVELOPE}; they were not read", "oversized"
        )
    instructions = _open(envelope, keys)
    if instructions.device != device:
        raise InstructionsRefused(
            f"the instructions are for device {instructions.device}, and this is {device}; nothing was done", "foreign"
        )
    if instructions.issued > now + MAX_SKEW:
        raise InstructionsRefused(
            f"the instructions are of {format_time(instructions.issued)}, which is in the future; "
            "compare the clocks of server and device",
            "early",
        )
    if instructions.expires <= now:
        raise InstructionsRefused(
            f"the instructions ended {format_time(instructions.expires)}; check in with the server again", "expired"
        )
    if instructions.sequence < last_sequence:
        raise InstructionsRefused(
            f"the instructions have sequence {instructions.sequence}, and {last_sequence} were followed before; "
            "somebody may be playing old instructions to this device",
            "older",
        )
    if instructions.sequence == last_sequence and not same:
        raise InstructionsRefused(
            f"the instructions with sequence {last_sequence} came before; nothing was done again", "replayed"
        )
    return instructions


def encode_instructions(instructions: Instructions) -> bytes:
    """The canonical JSON that is signed."""
    return canonical(
        {
            "version": instructions.version,
            "device": instructions.device,
            "issued": format_time(instructions.issued),
            "expires": format_time(instructions.expires),
            "sequence": instructions.sequence,
            "interval_s": instructions.interval_s,
            "window": [{"start": format_time(w.start), "end": format_time(w.end)} for w in instructions.windows],
            "actions": [_encode_action(action) for action in instructions.actions],
            "policy": dict(instructions.policy),
        }
    )


def _encode_action(action: Action) -> dict[str, object]:
    return {
        "id": action.id,
        "kind": action.kind,
        "deployment": action.deployment,
        "target": action.target,
        "sha256": action.sha256,
        "length": action.length,
        "not_before": format_time(action.not_before) if action.not_before else None,
        "deadline": format_time(action.deadline) if action.deadline else None,
        "options": dict(action.options),
    }


def _open(data: bytes, keys: Iterable[PublicKey]) -> Instructions:
    """Signature first, then version, then content: nothing of an unsigned payload is looked at."""
    try:
        envelope = decode_envelope(data, PAYLOAD_TYPE)
    except EnvelopeError as error:
        raise InstructionsRefused(f"what the server sent {error}; it was not read", "malformed") from None
    try:
        envelope.verified_by(keys)
    except UntrustedError as error:
        reason = "untrusted" if envelope.signatures else "unsigned"
        raise InstructionsRefused(f"what the server sent {error}; nothing was done", reason) from None
    except EnvelopeError as error:
        raise InstructionsRefused(f"what the server sent {error}; nothing was done", "altered") from None
    try:
        version = decode_canonical(envelope.payload, _version)
        if version < OLDEST_VERSION:
            raise InstructionsRefused(
                f"the instructions are of format {version}, which is no longer accepted; update the server",
                "downgraded",
            )
        if version > VERSION:
            raise InstructionsRefused(
                f"the instructions are of format {version}, and this Midflight reads {VERSION}; update it here",
                "future",
            )
        instructions = decode_canonical(envelope.payload, _instructions)
        _check_lifetime(instructions)
    except FieldError as error:
        raise InstructionsRefused(
            f"the instructions have a fault: {error}; this is a fault of the server", "malformed"
        ) from None
    return instructions


def _version(value: object) -> int:
    if type(value) is not dict or type(value.get("version")) is not int:
        raise FieldError("has no format version")
    number: int = value["version"]
    return number


def _check_lifetime(instructions: Instructions) -> None:
    if not timedelta(0) < instructions.expires - instructions.issued <= MAX_LIFETIME:
        raise FieldError(f"must be after issued, by at most {MAX_LIFETIME.days} days", "expires")


def _window(start: datetime, end: datetime) -> Window:
    if start >= end:
        raise FieldError("must be after start", ".end")
    return Window(start, end)


def _action(*fields: Any) -> Action:
    action = Action(*fields)
    named = [action.target is not None, action.sha256 is not None, action.length is not None]
    if any(named) != all(named):
        raise FieldError("must come with target and length, or none of them", ".sha256")
    if action.kind != "hold" and not all(named):
        raise FieldError(f"is needed for an action of kind {action.kind}", ".target")
    if action.not_before and action.deadline and action.deadline < action.not_before:
        raise FieldError("must not be before not_before", ".deadline")
    return action


def _options(value: object) -> Mapping[str, Option]:
    if type(value) is not dict:
        raise FieldError("must be an object")
    if len(value) > 64:
        raise FieldError(f"must have at most 64 keys, has {len(value)}")
    for key, option in value.items():
        if not (option is None or type(option) in (str, int, bool)):
            raise FieldError(f"must be text, an integer, true, false or null, is {show(option)}", f".{show(key)}")
        if type(option) is int and abs(option) > MAX_INTEGER:
            raise FieldError("must be an integer of at most 53 bits", f".{show(key)}")
    return value


def _policy(value: object) -> Mapping[str, object]:
    if type(value) is not dict:
        raise FieldError("must be an object")
    return value


def _unique(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    if len({action.id for action in actions}) != len(actions):
        raise FieldError("must have an id of its own for each action")
    return actions


def _after(check: Callable[[object], Any], then: Callable[[Any], Any]) -> Callable[[object], Any]:
    return lambda value: then(check(value))


_identifier = pattern(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", "an identifier")
_decoded = record(
    lambda actions, device, expires, interval_s, issued, policy, sequence, version, window: Instructions(
        device, issued, expires, sequence, interval_s, window, actions, policy, version
    ),
    actions=_after(
        many(
            record(
                _action,
                id=_identifier,
                kind=choice(("apply", "revert", "baseline", "hold")),
                deployment=optional(_identifier),
                target=optional(target_path),
                sha256=optional(pattern(SHA256, "a sha256 in hex")),
                length=optional(integer(1, MAX_INTEGER)),
                not_before=optional(time),
                deadline=optional(time),
                options=_options,
            ),
            0,
            MAX_ACTIONS,
        ),
        _unique,
    ),
    device=pattern(DEVICE_ID, "the id of a device"),
    expires=time,
    interval_s=integer(1, 86400 * 7),
    issued=time,
    policy=_policy,
    sequence=integer(1, MAX_INTEGER),
    version=integer(VERSION, VERSION),
    window=many(record(_window, start=time, end=time), 0, 1000),
)


def _instructions(value: object) -> Instructions:
    return _decoded(value)
