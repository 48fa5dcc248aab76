"""May a device take a content, as far as the server can see? The device looks again for itself, with fresher facts.

Nobody is skipped in silence: each ineligible device has its reason. What it gets instead: :mod:`fallbacks`.
"""

from __future__ import annotations

from dataclasses import dataclass

from midflight.server.domain import versions
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.model import Content, ContentKind, Device, Policy
from midflight.server.domain.reasons import Reason


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a device cannot take a content."""

    reason: Reason
    detail: str = ""


def ineligible(device: Device, content: Content, policy: Policy, catalogue: Catalogue) -> Finding | None:
    """Why a device cannot take a content; None if it can."""
    if device.images is None:
        return Finding(Reason.NO_INVENTORY)
    if content.platforms and device.platform not in content.platforms:
        return Finding(
            Reason.WRONG_PLATFORM, f"{device.platform or 'unknown'}, not {', '.join(sorted(content.platforms))}"
        )
    mine = [image for image in device.images if image.package == content.package or image.build_id in content.images]
    if not mine and not (content.kind is ContentKind.BASELINE and catalogue.concerns(device, content.package)):
        return Finding(Reason.NOT_AFFECTED, f"no {content.package}")
    if content.kind is ContentKind.HOTPATCH:
        found = _off_baseline(device, content, policy, catalogue, {image.build_id for image in mine})
        if found:
            return found
    if content.min_kernel and not versions.at_least(device.kernel, content.min_kernel):
        return Finding(Reason.KERNEL_TOO_OLD, f"{device.kernel or 'unknown'}, needs {content.min_kernel}")
    if content.min_agent and not versions.at_least(device.agent, content.min_agent):
        return Finding(Reason.AGENT_TOO_OLD, f"{device.agent or 'unknown'}, needs {content.min_agent}")
    free = device.memory_free_mib
    if free is not None and free < content.memory_mib:
        return Finding(Reason.MEMORY_LOW, f"{free} MiB free, needs {content.memory_mib}")
    return None


def _off_baseline(
    device: Device, content: Content, policy: Policy, catalogue: Catalogue, build_ids: set[str]
) -> Finding | None:
    if not policy.hotpatch:
        return Finding(Reason.HOTPATCH_DISABLED, f"policy {policy.id}")
    if not content.images.isdisjoint(build_ids):
        return None
    installed = catalogue.installed(device, content.package)
    if installed is not None and installed.sequence >= content.sequence:
        return Finding(Reason.NOT_AFFECTED, f"{installed.name} has the fix")
    if installed is not None and not installed.on_track:
        return Finding(Reason.BASELINE_OFF_TRACK, f"on {installed.name}")
    return Finding(Reason.BASELINE_NOT_CURRENT, f"on {installed.name if installed else 'an unknown build'}")
