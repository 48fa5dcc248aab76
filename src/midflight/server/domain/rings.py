"""Which device is in which ring of a deployment: deterministic, a partition, and stable when devices come and go.

Each device has two numbers in [0, 1), made from its id and the deployment's, so that it is not always the same
devices that go first. The one orders devices for ``first`` and ``count``, the other places them for ``percent`` by
thresholds, so that a newcomer's place depends on nobody else. Who has a ring keeps it. (The thresholds are those of
feature flags; hawkBit's groups shift when devices come, Autopatch splits by percent of what is there at one moment.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import nsmallest

from midflight.errors import InputError
from midflight.server.domain.model import Ring, RingKind

MAX_RINGS = 20
_SPAN = float(1 << 32)


class RingsError(InputError):
    """A policy's rings make no sense; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that is to get a ring. ``ready``: eligible and seen lately."""

    groups: frozenset[str] = frozenset()
    ready: bool = True


def validate(rings: Sequence[Ring]) -> None:
    """Check a policy's rings: the last is ``rest`` (so that everybody has a ring), amounts are possible, names differ.

    Raises:
        RingsError: the first fault.
    """
    if not 1 <= len(rings) <= MAX_RINGS:
        raise RingsError(f"a policy has 1 to {MAX_RINGS} rings, not {len(rings)}")
    if len({ring.name for ring in rings}) != len(rings):
        raise RingsError("two rings have the same name; give each its own")
    if [ring.kind for ring in rings].count(RingKind.REST) != 1 or rings[-1].kind is not RingKind.REST:
        raise RingsError("exactly the last ring must be 'rest', so that every device has a ring")
    percents = 0.0
    for ring in rings:
        fault = ""
        if ring.kind in (RingKind.FIRST, RingKind.COUNT) and (ring.amount < 1 or ring.amount != int(ring.amount)):
            fault = f"{ring.amount} is no number of devices; give a whole number from 1"
        elif ring.kind is RingKind.PERCENT:
            percents += ring.amount
            fault = (
                ""
                if 0 < ring.amount <= 100 and percents <= 100
                else "the percents of all rings must be 1 to 100 together"
            )
        elif ring.kind is RingKind.GROUP and not ring.group:
            fault = "name its group"
        gate = ring.gate
        if gate.min_sample < 1 or (gate.max_failures or 0) < 0 or not 0 <= (gate.max_failure_percent or 0) <= 100:
            fault = "its gate needs a sample from 1, a count from 0 and a percentage from 0 to 100"
        if fault:
            raise RingsError(f"ring {ring.name!r}: {fault}")


def lot(device: str, deployment: str) -> tuple[float, float]:
    """The two numbers of a device in a deployment, each in [0, 1) and independent of the other."""
    digest = blake2b(f"{deployment}\0{device}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big") / _SPAN, int.from_bytes(digest[4:], "big") / _SPAN


def assign(
    rings: Sequence[Ring],
    deployment: str,
    candidates: Mapping[str, Candidate],
    existing: Mapping[str, int] | None = None,
    *,
    taken: Sequence[int] = (),
) -> dict[str, int]:
    """The ring of each candidate: at the begin of a deployment for all, later for newcomers. Who has a ring keeps it.

    Args:
        rings: of the policy (:func:`validate`).
        deployment: its id.
        candidates: the devices that are in the audience and can take the content.
        existing: rings given before; they never change, and count towards ``first`` and ``count``.
        taken: instead of ``existing``, how many devices each ring has, where it would be too much to read them all.
    """
    existing = existing or {}
    left = {device: lot(device, deployment) for device in candidates if device not in existing}
    counts = list(taken) or [0] * len(rings)
    for index in existing.values():
        if index < len(rings):
            counts[index] += 1
    assigned: dict[str, int] = {}
    begin = 0.0
    for index, ring in enumerate(rings):
        chosen: list[str]
        if ring.kind in (RingKind.FIRST, RingKind.COUNT):
            first = ring.kind is RingKind.FIRST
            wanted = max(0, int(ring.amount) - counts[index])
            chosen = nsmallest(wanted, left, key=lambda d: (first and not candidates[d].ready, left[d][0], d))
        elif ring.kind is RingKind.PERCENT:
            end = begin + ring.amount / 100
            chosen = [device for device, numbers in left.items() if begin <= numbers[1] < end]
            begin = end
        elif ring.kind is RingKind.GROUP:
            chosen = [device for device in left if ring.group in candidates[device].groups]
        else:
            chosen = list(left)
        for device in chosen:
            assigned[device] = index
            del left[device]
    return assigned
