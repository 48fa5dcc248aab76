"""What is true of a device's vulnerabilities, in memory and on disk apart; pure.

Scanners read package versions from disk and so call a hotpatched device vulnerable. They are told both truths: the file
on disk is still the vulnerable one, and what runs is not. Nothing is ever called fixed that was not read from the
memory of every process that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from midflight.server.domain.model import Content, ContentKind, Cve, Device, Image, RunningPatch


class Memory(StrEnum):
    """What runs of a vulnerable image."""

    HOTPATCHED = "hotpatched"
    """Fixed code, in every process that maps the image."""
    PARTLY = "partly"
    """Fixed in some processes; the device counts as vulnerable."""
    VULNERABLE = "vulnerable"
    FIXED = "fixed"
    """The image itself is a fixed one: a baseline, after a restart."""
    UNKNOWN = "unknown"
    """The device's code memory is not what its report explains, so nothing it says of it counts."""

    @property
    def safe(self) -> bool:
        """Whether no vulnerable code runs."""
        return self in (Memory.HOTPATCHED, Memory.FIXED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One vulnerability in one package of one device."""

    cve: Cve
    package: str
    versions: tuple[str, ...]
    """Of the package, as its mapped images belong to; empty for images of no package."""
    memory: Memory
    images: tuple[Image, ...]
    hotpatch: str = ""
    """The name of the hotpatch that runs."""
    fix: str = ""
    """The name of the content that fixes it: the one that runs, else the newest there is."""

    @property
    def vulnerable_on_disk(self) -> bool:
        """Whether the files on disk are vulnerable ones (true of a hotpatched device, until its baseline)."""
        return self.memory is not Memory.FIXED


@dataclass(frozen=True, slots=True)
class DeviceTruth:
    """All that is known of a device, as of its last report."""

    device: str
    hostname: str
    at: datetime | None
    findings: tuple[Finding, ...]


def of_device(device: Device, contents: Sequence[Content]) -> DeviceTruth:
    """The vulnerabilities that the catalogue knows in what the device runs, each with its truth."""
    findings = []
    images = device.images or ()
    for package, cve in sorted({(c.package, cve.id) for c in contents for cve in c.cves}):
        finding = _finding(device, images, [c for c in contents if c.package == package], package, cve)
        if finding:
            findings.append(finding)
    return DeviceTruth(device.id, device.hostname, device.last_seen, tuple(findings))


def _finding(
    device: Device, images: Sequence[Image], contents: Sequence[Content], package: str, cve: str
) -> Finding | None:
    fixes = [c for c in contents if any(item.id == cve for item in c.cves)]
    since = min(c.sequence for c in fixes)
    known = next(item for c in fixes for item in c.cves if item.id == cve)
    patched = frozenset().union(*(c.images for c in fixes if c.kind is ContentKind.HOTPATCH))
    # a baseline contains every fix of lower sequence; what such a baseline installed is vulnerable to nothing of it
    safe = frozenset().union(
        *(c.images for c in contents if c.kind is ContentKind.BASELINE and c.sequence >= since and not c.revoked)
    )
    vulnerable = tuple(image for image in images if image.build_id in patched - safe)
    if not vulnerable:
        fixed = tuple(image for image in images if image.build_id in safe)
        if not fixed:
            return None
        name = max((c for c in contents if c.images & {i.build_id for i in fixed}), key=lambda c: c.sequence).name
        return Finding(known, package, _versions(fixed), Memory.FIXED, fixed, fix=name)
    hotpatches = {c.id: c for c in contents if c.kind is ContentKind.HOTPATCH and c.sequence >= since}
    states, running = [], ""
    for image in vulnerable:
        patches = [p for p in device.patches if p.build_id == image.build_id and p.content in hotpatches]
        states.append(_memory(device, image, patches))
        if patches:
            running = hotpatches[max(patches, key=lambda p: p.sequence).content].name
    newest = max((c for c in fixes if not c.revoked), key=lambda c: c.sequence, default=fixes[-1]).name
    memory = _worst(states)
    hotpatch = running if memory is Memory.HOTPATCHED or memory is Memory.PARTLY else ""
    return Finding(known, package, _versions(vulnerable), memory, vulnerable, hotpatch, hotpatch or newest)


def _memory(device: Device, image: Image, patches: Sequence[RunningPatch]) -> Memory:
    if device.integrity_violated or device.report_faulty:
        return Memory.UNKNOWN
    # processes come and go between two reports, so their numbers are not compared: the agent counts those that miss it
    if any(patch.complete and (patch.processes or not image.processes) for patch in patches):
        return Memory.HOTPATCHED
    return Memory.PARTLY if patches else Memory.VULNERABLE


def _worst(states: Iterable[Memory]) -> Memory:
    found = set(states)
    if Memory.UNKNOWN in found:
        return Memory.UNKNOWN
    if len(found) > 1:
        return Memory.PARTLY
    return found.pop()


def _versions(images: Iterable[Image]) -> tuple[str, ...]:
    return tuple(sorted({image.version for image in images if image.version}))
