"""The gate of a ring: what must be seen before the next ring begins.

- It needs its minimum sample, and among that at least one success (or a person's word): nothing follows from nothing.
- Silence after the offer counts as failure, as does a failed health check; being ineligible, held or excluded does not.
  So does silence after a success: what was patched and vanishes is how a bad patch looks.
- Beyond a limit it halts at once, and so does a gate that has passed when failures come late.
- The soak runs from the success that completed the sample, and is over when as many were heard of after it: a device
  that took the content out again says so at its next check-in, not before. Without a soak nobody is waited for.

(Lessons of hawkBit's thresholds, which pass rings nobody answered in, and of Graph's monitoring rules without a
sample.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from midflight.server.domain.model import DeviceState, Gate, RingTally
from midflight.server.domain.reasons import Reason

GOOD = DeviceState.APPLIED
_OUT = (
    DeviceState.INELIGIBLE, DeviceState.BARRED, DeviceState.HELD,
    DeviceState.EXCLUDED, DeviceState.SUPERSEDED, DeviceState.REVERTED,
)  # fmt: skip
"""They say nothing about the content, and are not waited for."""


class Outcome(StrEnum):
    """What a gate says."""

    PASS = "pass"
    WAIT = "wait"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A gate's word, and why."""

    outcome: Outcome
    reason: Reason | None = None
    detail: str = ""
    helpless: bool = False
    """It has members, and none that could ever give the sample: only a person can go on."""


def bad(gate: Gate, tally: RingTally) -> int:
    """Bad outcomes of a ring, silence included if the gate says so."""
    silent = tally.count(DeviceState.SILENT) if gate.silence_is_failure else 0
    return tally.count(DeviceState.FAILED) + silent


def beyond(gate: Gate, tally: RingTally, accepted: int = 0) -> Judgement | None:
    """The halt of a ring in progress, or of one whose gate has passed before; None: within all limits.

    ``accepted`` bad outcomes were seen and accepted by a person who resumed.
    """
    counted = bad(gate, tally) - accepted
    answered = tally.count(GOOD) + bad(gate, tally)
    percent = 100 * counted / answered if answered else 0.0
    over_count = gate.max_failures is not None and counted > gate.max_failures
    enough = answered >= _sample(gate, tally)
    over_percent = gate.max_failure_percent is not None and enough and percent > gate.max_failure_percent
    unlimited = gate.max_failures is None and gate.max_failure_percent is None
    if counted <= 0 or not (over_count or over_percent or unlimited):
        return None
    silent = tally.count(DeviceState.SILENT) if gate.silence_is_failure else 0
    reason = Reason.HALTED_BY_SILENCE if silent * 2 > counted else Reason.HALTED_BY_FAILURES
    failed = tally.count(DeviceState.FAILED)
    return Judgement(
        Outcome.HALT, reason, f"{failed} failed and {silent} silent of {answered} that answered or should have"
    )


def judge(gate: Gate, tally: RingTally, since: datetime, now: datetime, accepted: int = 0) -> Judgement:
    """What the gate of the ring in progress says.

    Args:
        gate: of the ring.
        tally: how the ring's devices stand.
        since: when the ring began, or a person last resumed it.
        now: the time.
        accepted: see :func:`beyond`.
    """
    halt = beyond(gate, tally, accepted)
    if halt:
        return halt
    if tally.members == 0:
        return Judgement(Outcome.PASS)
    able = tally.members - tally.count(*_OUT)
    if able == 0 and not tally.count(GOOD):
        detail = f"none of its {tally.members} devices can take it any more; approve the next ring to go on without"
        return Judgement(Outcome.WAIT, Reason.AWAITING_SAMPLE, detail, helpless=True)
    good, sample = tally.count(GOOD), _sample(gate, tally)
    answered = good + bad(gate, tally)
    until = soaked(gate, tally, since)
    if until is None or good + accepted < 1:
        return Judgement(Outcome.WAIT, Reason.AWAITING_SAMPLE, f"{answered} of {sample} answered")
    if now < until:
        return Judgement(Outcome.WAIT, Reason.SOAKING, f"until {until:%Y-%m-%d %H:%M %Z}")
    if gate.soak and tally.heard is not None and tally.heard < until:
        return Judgement(
            Outcome.WAIT, Reason.SOAKING, f"until {sample} of them were heard of after {until:%H:%M:%S %Z}"
        )
    return Judgement(Outcome.PASS)


def soaked(gate: Gate, tally: RingTally, since: datetime) -> datetime | None:
    """When the soak of a ring in progress is over; None: its sample is not complete. (``since``: see :func:`judge`.)"""
    if tally.count(GOOD) + bad(gate, tally) < _sample(gate, tally):
        return None
    return max(since, tally.sampled or since) + gate.soak


def _sample(gate: Gate, tally: RingTally) -> int:
    """The sample that the ring can give: all of it, where it is small."""
    return min(gate.min_sample, max(1, tally.members - tally.count(*_OUT)))
