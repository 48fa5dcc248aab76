"""What the server is told of this device. A quiet device tells nothing new: numbers that move by themselves are told
when they have moved far, or a while ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from midflight.agent.fleet.facts import Facts
from midflight.agent.fleet.packages import NONE, Package
from midflight.agent.fleet.survey import Survey
from midflight.agent.state import Bar as LocalBar
from midflight.patch.fields import FieldError, text
from midflight.trust.checkin import (
    MEMORY_STEP_MIB,
    Bar,
    ImageReport,
    PatchReport,
    Probe,
    Restart,
    State,
    Violation,
    rounded_memory,
)

NEWS_AFTER = 600.0
"""Seconds after which a number is told again though it moved little."""
INVENTORY_LEAST = 30.0
"""Seconds between two inventories, unless the server asks: programs come and go on a busy machine."""
_MOST_IMAGES, _MOST_PATCHES, _MOST_BARS, _MOST_VIOLATIONS, _MOST_PROBES = 5000, 2000, 500, 200, 500


@dataclass(frozen=True, slots=True)
class Watched:
    """A hotpatch after it came into force here."""

    sha256: str
    passed: tuple[int, ...]
    """Seconds of the checks that are over, without a crash or a failed probe."""
    failed: str = ""
    """Why it was taken out; empty: it was not."""
    failed_after_s: int = 0


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a report is made of."""

    facts: Facts
    boot: str
    survey: Survey
    bars: Sequence[LocalBar]
    digests: Mapping[tuple[str, int], str]
    """sha256 of hotpatches by name and sequence."""
    watched: Sequence[Watched]
    violations: Sequence[Violation]
    restart: Restart
    more: Mapping[str, str]


def state_of(material: Material) -> State:
    """The state, as it is now."""
    known = material.facts
    patches = [
        PatchReport(
            one.name, one.sequence, one.sha256, one.build_id, len(one.pids), len(one.missing), one.stopped_us
        )
        for _, one in sorted(material.survey.running.items())
    ]  # fmt: skip
    bars = [
        Bar(one.name, one.sequence, material.digests[one.name, one.sequence], _word(one), _instant(one.since))
        for one in sorted(material.bars, key=lambda bar: (bar.name, bar.sequence))
        if (one.name, one.sequence) in material.digests
    ]
    probes = []
    for watched in material.watched:
        probes += [Probe(watched.sha256, after, True, "") for after in watched.passed]
        if watched.failed:
            probes.append(Probe(watched.sha256, watched.failed_after_s, False, watched.failed[:1000]))
    return State(
        hostname=known.hostname,
        platform=known.platform,
        kernel=known.kernel[:200],
        agent=known.agent,
        timezone=known.timezone,
        boot_id=material.boot,
        memory_free_mib=None if known.memory_free_mib is None else rounded_memory(known.memory_free_mib),
        patches=tuple(patches[:_MOST_PATCHES]),
        bars=tuple(bars[:_MOST_BARS]),
        violations=tuple(material.violations[:_MOST_VIOLATIONS]),
        health=tuple(probes[:_MOST_PROBES]),
        restart=material.restart,
        facts={"os": known.os, "memory_mib": str(known.memory_total_mib), **material.more},
    )


def inventory_of(survey: Survey, packages: Mapping[str, Package]) -> tuple[ImageReport, ...]:
    """The images that are mapped, by processes that are not only passing."""
    found = []
    for (build_id, path), pids in sorted(survey.images.items()):
        settled = pids - survey.young
        if settled and 4 <= len(build_id) <= 128 and _reportable(path):
            package = packages.get(path, NONE) if path in survey.host else NONE
            found.append(ImageReport(build_id, path, package.name[:200], package.version[:200], len(settled)))
    return tuple(found[:_MOST_IMAGES])


@dataclass(frozen=True, slots=True)
class Told:
    """What the server was told last, and when (uptime)."""

    state: State | None = None
    inventory: tuple[ImageReport, ...] | None = None
    state_at: float = 0.0
    inventory_at: float = 0.0


def tell_state(new: State, told: Told, now: float) -> State:
    """The state to tell: the old one again, where only numbers moved, and not far."""
    old = told.state
    if old is None or now - told.state_at >= NEWS_AFTER:
        return new
    free, before = new.memory_free_mib, old.memory_free_mib
    if free is not None and before is not None and abs(free - before) <= MEMORY_STEP_MIB:
        new = replace(new, memory_free_mib=before)
    earlier = {(patch.sha256, patch.build_id): patch for patch in old.patches}
    patches = tuple(_same_patch(patch, earlier.get((patch.sha256, patch.build_id))) for patch in new.patches)
    new = replace(new, patches=patches)
    return old if new == old else new


def tell_inventory(
    new: tuple[ImageReport, ...], told: Told, now: float, pressing: bool = False
) -> tuple[ImageReport, ...]:
    """The inventory to tell: the old one again, where only the numbers of processes moved, and for a moment always,
    unless it is pressing."""
    old = told.inventory
    if old is not None and now - told.inventory_at < INVENTORY_LEAST and not pressing:
        return old
    if old is None or now - told.inventory_at >= NEWS_AFTER:
        return new
    return old if [replace(i, processes=0) for i in old] == [replace(i, processes=0) for i in new] else new


def _same_patch(new: PatchReport, old: PatchReport | None) -> PatchReport:
    if old is None or bool(new.missing) != bool(old.missing) or bool(new.processes) != bool(old.processes):
        return new
    if max(new.processes, old.processes) > 2 * min(new.processes, old.processes):
        return new
    return replace(new, processes=old.processes, missing=old.missing, stopped_us=old.stopped_us)


def plain(words: str, most: int = 1000) -> str:
    """Text as the server takes it: one line, no control characters, not too long."""
    line = " ".join(words.split())[:most]
    try:
        return text(0, most)(line)
    except FieldError:
        return "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in line)[:most]


def _word(bar: LocalBar) -> str:
    return {"hand": "barred"}.get(bar.cause, bar.cause)


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _reportable(path: str) -> bool:
    return 1 <= len(path) <= 4096 and path.isprintable()
