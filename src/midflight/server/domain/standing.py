"""A device's standing: everything slow about a decision, done when the device's facts, groups or holds change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from midflight.server.domain import audience, safeguards
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.eligibility import Finding, ineligible
from midflight.server.domain.model import Content, ContentKind, Deployment, Device, Membership, Policy
from midflight.server.domain.offers import Standing
from midflight.server.domain.reasons import Reason
from midflight.server.domain.safeguards import Safeguard


def standing(
    device: Device,
    groups: frozenset[str],
    governance: audience.Governance,
    memberships: Mapping[str, Membership],
    live: Iterable[tuple[Deployment, Policy]],
    catalogue: Catalogue,
    holds: Sequence[Safeguard] = (),
) -> Standing:
    """What :func:`midflight.server.domain.offers.decide` needs of a device.

    Args:
        device: as last reported.
        groups: those it belongs to (:class:`audience.Groups`).
        governance: the policy that governs it (:func:`audience.governing`).
        memberships: its deployments.
        live: the deployments among them that still do something, with their policies.
        catalogue: all content.
        holds: the safeguards in force (:func:`safeguards.in_force`).
    """
    running, fixed, held = set[str](), set[str](), dict[str, str]()
    findings: dict[str, Finding] = {}
    outside: dict[str, Reason] = {}
    fixes = catalogue.fixes(device)
    for deployment, policy in live:
        content = catalogue[deployment.content]
        reason = not_for(deployment, policy, groups, governance)
        if reason:
            outside[deployment.id] = reason
        if runs(device, content):
            running.add(content.id)
            continue
        if catalogue.fixed_by(device, content, fixes):
            fixed.add(content.id)
            continue
        finding = ineligible(device, content, policy, catalogue)
        if finding:
            findings[content.id] = finding
            continue
        hold = safeguards.holding(holds, device, content)
        if hold:
            held[content.id] = hold.id
    return Standing(
        memberships, frozenset(running), frozenset(fixed), findings, held, device.bars, outside, device.disabled
    )


def not_for(
    deployment: Deployment, policy: Policy, groups: frozenset[str], governance: audience.Governance
) -> Reason | None:
    """Why a deployment is not for a device with these groups and this governance; None: it is."""
    if not policy.audience.excluded.isdisjoint(groups):
        return Reason.EXCLUDED
    if deployment.audience is not None:
        reason = audience.outside(deployment.audience, groups)
        if reason:
            return reason
    if governance.policy is None:
        return governance.reason
    return None if governance.policy.id == policy.id else Reason.NOT_IN_AUDIENCE


def runs(device: Device, content: Content) -> bool:
    """Does exactly this content run: the hotpatch in every process that needs it, or the baseline from disk?"""
    if content.kind is ContentKind.BASELINE:
        mine = {i.build_id for i in device.images or () if i.package == content.package}
        return bool(mine) and mine <= content.images
    found = [patch for patch in device.patches if patch.content == content.id]
    return bool(found) and all(patch.complete for patch in found)
