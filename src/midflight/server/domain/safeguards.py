"""Safeguard holds: known-bad combinations of content and device, which nobody is offered until they are lifted or
expire.

(After the safeguard holds of Windows Update.) People write them, and outcomes suggest them: failures of a content
that are concentrated on one kernel, baseline, platform or agent, and not by chance (Fisher's exact test, one-sided).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from math import comb
from typing import Any

from midflight.errors import InputError
from midflight.server.domain.model import Content, Device

MIN_FAILURES = 3
MIN_RATE = 0.2
MAX_CHANCE = 0.01
EXPIRY = timedelta(days=60)
"""Of a suggested hold: what nobody looks at must not hold forever."""


class SafeguardError(InputError):
    """A safeguard holds nothing in particular."""


class Source(StrEnum):
    """Who made a safeguard."""

    PERSON = "person"
    OUTCOMES = "outcomes"


@dataclass(frozen=True, slots=True)
class Safeguard:
    """A known-bad combination. An empty field fits everything; ``kernel``, ``agent`` and ``version`` take ``*`` and
    ``?``."""

    id: str
    reason: str
    created: datetime
    content: str = ""
    package: str = ""
    version: str = ""
    """Of the package, as installed."""
    baseline: str = ""
    """Build-id of the running image."""
    kernel: str = ""
    platform: str = ""
    agent: str = ""
    source: Source = Source.PERSON
    expires: datetime | None = None
    lifted: datetime | None = None


def validate(safeguard: Safeguard) -> None:
    """Check a safeguard that a person wrote.

    Raises:
        SafeguardError: it would hold everything everywhere (a policy's pause does that), or expires before it begins.
    """
    fields = (
        safeguard.content,
        safeguard.package,
        safeguard.baseline,
        safeguard.kernel,
        safeguard.platform,
        safeguard.agent,
    )
    if not any(fields):
        raise SafeguardError(
            "a safeguard needs a content, package, baseline, kernel, platform or agent; pause the policy instead"
        )
    if safeguard.version and not safeguard.package:
        raise SafeguardError("a safeguard with a version needs the package whose version it is")
    if safeguard.expires is not None and safeguard.expires <= safeguard.created:
        raise SafeguardError("a safeguard must expire after it was made")


def in_force(safeguards: Iterable[Safeguard], now: datetime) -> list[Safeguard]:
    """Those that are neither lifted nor expired."""
    return [s for s in safeguards if not (s.lifted and s.lifted <= now) and (s.expires is None or now < s.expires)]


def holding(safeguards: Sequence[Safeguard], device: Device, content: Content) -> Safeguard | None:
    """The first of these safeguards that holds a content on a device."""
    return next((safeguard for safeguard in safeguards if holds(safeguard, device, content)), None)


def holds(safeguard: Safeguard, device: Device, content: Content) -> bool:
    """Does a safeguard hold this content on this device? All its fields must fit; a fact that is unknown does not
    fit."""
    if safeguard.content and safeguard.content != content.id:
        return False
    if safeguard.package and safeguard.package != content.package:
        return False
    if safeguard.platform and safeguard.platform != device.platform:
        return False
    if safeguard.kernel and not fnmatchcase(device.kernel, safeguard.kernel):
        return False
    if safeguard.agent and not fnmatchcase(device.agent, safeguard.agent):
        return False
    images = [image for image in device.images or () if image.package == content.package]
    if safeguard.version and not any(fnmatchcase(image.version, safeguard.version) for image in images):
        return False
    return not safeguard.baseline or any(image.build_id == safeguard.baseline for image in device.images or ())


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a content fared on one device; ``facts`` are the fields a safeguard can have, such as ``kernel``."""

    content: str
    failed: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A combination that looks bad. A person, or a policy that says so, makes a safeguard of it."""

    content: str
    field: str
    value: str
    failed: int
    tried: int
    others_failed: int
    others_tried: int
    chance: float
    """That failures would be so concentrated by accident."""

    def safeguard(self, id: str, now: datetime) -> Safeguard:
        """The safeguard it suggests; it expires by itself."""
        reason = (
            f"{self.failed} of {self.tried} devices with {self.field} {self.value} failed, "
            f"{self.others_failed} of {self.others_tried} others"
        )
        hold = Safeguard(id, reason, now, content=self.content, source=Source.OUTCOMES, expires=now + EXPIRY)
        fact: dict[str, Any] = {self.field: self.value}
        return replace(hold, **fact)


def suggest(outcomes: Iterable[Outcome]) -> list[Suggestion]:
    """Combinations of a content with one fact that fail more often than chance explains, the surest first.

    With a content that fails everywhere alike there is no combination to hold: that is the gates' business.
    """
    tried: Counter[tuple[str, str, str]] = Counter()
    failed: Counter[tuple[str, str, str]] = Counter()
    all_tried: Counter[str] = Counter()
    all_failed: Counter[str] = Counter()
    for outcome in outcomes:
        all_tried[outcome.content] += 1
        all_failed[outcome.content] += outcome.failed
        for name, value in outcome.facts:
            if value:
                tried[outcome.content, name, value] += 1
                failed[outcome.content, name, value] += outcome.failed
    found: list[Suggestion] = []
    for (content, name, value), bad in failed.items():
        n = tried[content, name, value]
        others_bad, others = all_failed[content] - bad, all_tried[content] - n
        if bad < MIN_FAILURES or bad / n < MIN_RATE or others == 0 or others_bad / others >= bad / n:
            continue
        chance = fisher(bad, n, others_bad, others)
        if chance <= MAX_CHANCE:
            found.append(Suggestion(content, name, value, bad, n, others_bad, others, chance))
    return sorted(found, key=lambda s: (s.chance, s.content, s.field, s.value))


def fisher(failed: int, tried: int, others_failed: int, others_tried: int) -> float:
    """The chance of at least so many failures among ``tried``, if failures fell at random (Fisher's exact test)."""
    bad, total = failed + others_failed, tried + others_tried
    ways = sum(comb(tried, k) * comb(others_tried, bad - k) for k in range(failed, min(bad, tried) + 1))
    return ways / comb(total, bad)
