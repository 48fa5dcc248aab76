"""Rows as the rules have them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import cast

from midflight.server.domain import model as m
from midflight.server.domain.reasons import Reason
from midflight.server.domain.safeguards import Safeguard, Source
from midflight.server.store.base import to_micros
from midflight.server.store.catalogue import Content
from midflight.server.store.devices import Device
from midflight.server.store.documents import PolicyDocument, audience_of, rings_of
from midflight.server.store.policies import ApprovalRow, Deployment, Hold, Membership, Policy


def reason_of(word: str) -> Reason:
    """The reason that a stored word names.

    Raises:
        KeyError: there is none.
    """
    return cast(Reason, Reason._value2member_map_[word])


def content_of(row: Content, images: Iterable[str], cves: Iterable[m.Cve]) -> m.Content:
    """A piece of content."""
    details = row.details
    return m.Content(
        id=row.id,
        kind=m.ContentKind(row.kind),
        name=row.name,
        sequence=row.sequence,
        package=row.package,
        images=frozenset(images),
        published=row.published,
        classification=m.Classification(row.classification),
        cves=tuple(cves),
        path=row.path,
        sha256=row.sha256,
        length=row.length,
        deployable_until=row.deployable_until,
        revoked=_withdrawn(row),
        supersedes=frozenset(row.supersedes),
        platforms=frozenset(details.get("platforms", ())),
        min_kernel=details.get("min_kernel", ""),
        min_agent=details.get("min_agent", ""),
        memory_mib=details.get("memory_mib", 0),
        on_track=details.get("on_track", True),
    )


def _withdrawn(row: Content) -> m.Revocation | None:
    if row.revoked is not None:
        return m.Revocation(row.revoked, row.revoked_reason)
    if row.missing:
        return m.Revocation(row.published, "it is no longer in the repository")
    return None


def policy_of(row: Policy) -> m.Policy:
    """A policy."""
    pause = None if row.paused_since is None else m.Pause(row.paused_since, row.paused_until)
    return PolicyDocument.model_validate(row.document).policy(row.id, row.name, row.priority, pause)


def deployment_of(row: Deployment, approvals: Iterable[ApprovalRow]) -> m.Deployment:
    """A deployment, with what people said of it."""
    return m.Deployment(
        id=row.id,
        content=row.content_id,
        policy=row.policy_id,
        created=row.created,
        starts=row.starts,
        requested=m.Requested(row.requested),
        pause=None if row.paused_since is None else m.Pause(row.paused_since, row.paused_until),
        effective=m.Effective(row.effective),
        reason=reason_of(row.reason),
        detail=row.detail,
        since=row.since,
        ring=row.ring,
        ring_since=row.ring_since,
        accepted=tuple(row.accepted),
        approvals=tuple(
            m.Approval(a.person, a.at, a.approved, None if a.ring < 0 else a.ring)
            for a in sorted(approvals, key=lambda a: a.at)
        ),
        expedite=row.expedite,
        audience=audience_of(row.audience),
    )


def write_deployment(row: Deployment, deployment: m.Deployment) -> None:
    """Write what the rules changed of a deployment into its row."""
    row.requested = deployment.requested.value
    row.paused_since = deployment.pause.since if deployment.pause else None
    row.paused_until = deployment.pause.until if deployment.pause else None
    row.effective = deployment.effective.value
    row.reason = deployment.reason.value
    row.detail = deployment.detail
    row.since = deployment.since or row.since
    row.ring = deployment.ring
    row.ring_since = deployment.ring_since
    if list(row.accepted) != list(deployment.accepted):
        row.accepted = list(deployment.accepted)


def frozen_rings(policy: m.Policy, row: Deployment) -> m.Policy:
    """The policy with the rings that a deployment began with."""
    return replace(policy, rings=rings_of(row.rings))


def safeguard_of(row: Hold) -> Safeguard:
    """A safeguard."""
    return Safeguard(
        id=row.id,
        reason=row.reason,
        created=row.created,
        content=row.content,
        package=row.package,
        version=row.package_version,
        baseline=row.baseline,
        kernel=row.kernel,
        platform=row.platform,
        agent=row.agent,
        source=Source(row.source),
        expires=row.expires,
        lifted=row.lifted,
    )


def membership_of(row: Membership) -> m.Membership:
    """How a device stands in a deployment."""
    return m.Membership(row.ring, m.DeviceState(row.state), reason_of(row.reason), row.detail, row.since, row.offered)


def membership_values(membership: m.Membership) -> dict[str, object]:
    """The columns of a membership; times in microseconds."""
    return {
        "ring": membership.ring,
        "state": membership.state.value,
        "reason": membership.reason.value,
        "detail": membership.detail,
        "since": to_micros(membership.since) if membership.since else 0,
        "offered": to_micros(membership.offered) if membership.offered else None,
    }


def patches_of(state: Mapping[str, object] | None, content_ids: Mapping[str, str]) -> tuple[m.RunningPatch, ...]:
    """The hotpatches of a state document; those that the catalogue does not know are left out."""
    patches = state.get("patches", ()) if state else ()
    assert isinstance(patches, Sequence)
    return tuple(
        m.RunningPatch(
            content_ids[patch["sha256"]],
            patch["sequence"],
            patch["build_id"],
            patch["processes"],
            patch["stopped_us"] / 1000,
            patch["missing"] == 0 and patch["processes"] > 0,
        )
        for patch in patches
        if patch["sha256"] in content_ids
    )


def device_of(
    row: Device,
    images: Iterable[m.Image] | None,
    content_ids: Mapping[str, str],
    last_seen: datetime | None = None,
) -> m.Device:
    """A device as the rules see it.

    Args:
        images: its inventory; None: never reported.
        content_ids: ids of content by the sha256 of the file.
        last_seen: when it was seen last where known.
    """
    state = row.state
    bars = state.get("bars", ()) if state else ()
    return m.Device(
        id=row.id,
        hostname=row.hostname,
        tags=row.tags,
        platform=row.platform,
        kernel=row.kernel,
        agent=row.agent,
        timezone=row.timezone or "UTC",
        memory_free_mib=row.memory_free_mib,
        images=None if images is None or not row.inventory_digest else tuple(images),
        patches=patches_of(state, content_ids),
        bars=frozenset(
            content_ids[bar["sha256"]]
            for bar in bars
            if bar["sha256"] in content_ids and bar["sha256"] not in row.lifted
        ),
        boot_id=row.boot_id,
        enrolled=row.enrolled,
        last_seen=last_seen,
        disabled=row.disabled is not None,
        integrity_violated=row.integrity_violated,
    )
