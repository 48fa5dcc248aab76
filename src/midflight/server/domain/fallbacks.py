"""What a device gets that cannot have a hotpatch: the baseline, by a restart, under the rules of the same deployment.

(After Microsoft's hotpatch track, where who is not eligible gets the full update, through the same rings.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from midflight.server.domain import safeguards
from midflight.server.domain.approvals import content_approved
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.eligibility import ineligible
from midflight.server.domain.model import Content, ContentKind, Deployment, Device, Policy
from midflight.server.domain.offers import Standing
from midflight.server.domain.safeguards import Safeguard
from midflight.server.domain.standing import runs

_WORD = ".fallback."


def action_id(deployment: str, sha256: str) -> str:
    """Names the action of a fallback; the same for good, so that a device that took it back does not get it again."""
    return f"{deployment}{_WORD}{sha256}"


def baseline_of(action: str) -> str | None:
    """sha256 of the baseline that such an action is about; None: it is none of these."""
    return action.partition(_WORD)[2] or None


def instead(
    device: Device,
    standing: Standing,
    live: Iterable[tuple[Deployment, Policy]],
    deployed: Collection[tuple[str, str]],
    catalogue: Catalogue,
    holds: Sequence[Safeguard],
    now: datetime,
) -> dict[str, str]:
    """By deployment of a hotpatch that a device lacks: the newest baseline of the package, if the device may have it.

    Args:
        device: as last reported.
        standing: of the device.
        live: its deployments, with their policies.
        deployed: policies and the contents that were ever deployed under them. A baseline with a deployment of its own
            goes by that: by its rings, and by the word of whoever paused or stopped it.
        catalogue: all content.
        holds: the safeguards in force.
        now: the time.
    """
    found: dict[str, str] = {}
    for deployment, policy in live:
        content = catalogue[deployment.content]
        fixed = content.id in standing.running or content.id in standing.fixed
        if content.kind is not ContentKind.HOTPATCH or fixed or not policy.fallback:
            continue
        baseline = catalogue.newest_baseline(content.package)
        if baseline is None or (policy.id, baseline.id) in deployed:
            continue
        # what a person said of the hotpatch's deployment counts for what comes in its place
        if not content_approved(policy.approvals, baseline, deployment.approvals, now).approved:
            continue
        if _may_have(device, baseline, policy, catalogue, holds, now):
            found[deployment.id] = baseline.id
    return found


def _may_have(
    device: Device, baseline: Content, policy: Policy, catalogue: Catalogue, holds: Sequence[Safeguard], now: datetime
) -> bool:
    outdated = baseline.deployable_until is not None and now >= baseline.deployable_until
    # a baseline that is older than a hotpatch that runs would take fixes away
    needless = runs(device, baseline) or catalogue.fixed_by(device, baseline) is not None
    return not (
        outdated
        or needless
        or baseline.id in device.bars
        or ineligible(device, baseline, policy, catalogue)
        or safeguards.holding(holds, device, baseline)
    )
