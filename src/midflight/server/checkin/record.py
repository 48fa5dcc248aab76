"""What a check-in brings that is new: state, inventory and outcomes, written so that the same again changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from midflight.server.domain import fallbacks
from midflight.server.domain import memberships as rules
from midflight.server.domain.reasons import Reason
from midflight.server.store import convert, events
from midflight.server.store.base import to_micros
from midflight.server.store.devices import Device, DeviceImage, DevicePatch, Image
from midflight.server.store.policies import Membership
from midflight.trust.checkin import ImageReport, State, state_document
from midflight.trust.checkin import Outcome as Report

_IMAGE = text(
    "INSERT INTO image (build_id, path, package, version) VALUES (:build_id, :path, :package, :version)"
    " ON CONFLICT (build_id, path, package, version) DO NOTHING"
)
_OUTCOME = text(
    "INSERT INTO outcome (device_id, action, result, deployment_id, content_id, reason, detail, processes, stopped_us,"
    " at, received) VALUES (:device_id, :action, :result, :deployment_id, :content_id, :reason, :detail, :processes,"
    " :stopped_us, :at, :received) ON CONFLICT (device_id, action, result) DO NOTHING RETURNING action"
)
_KEPT_IMAGES = 200_000


class ImageIds:
    """Ids of images, remembered: most devices report the same ones. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: dict[tuple[str, str, str, str], int] = {}

    def of(self, session: Session, images: Iterable[ImageReport]) -> dict[tuple[str, str, str, str], int]:
        """The id of each image; those that were never seen are put into the dictionary.

        What is remembered is committed: ids that this transaction gives out are remembered by a later one.
        """
        wanted = {(image.build_id, image.path, image.package, image.version) for image in images}
        found = {key: id for key in wanted if (id := self._ids.get(key)) is not None}
        missing = sorted(wanted - found.keys())
        if not missing:
            return found
        read = self._read(session, missing)
        with self._lock:
            if len(self._ids) > _KEPT_IMAGES:
                self._ids.clear()
            self._ids.update(read)
        found |= read
        new = [key for key in missing if key not in read]
        if new:
            # in order, so that two transactions that bring the same images wait for each other and do not lock up
            rows = [{"build_id": key[0], "path": key[1], "package": key[2], "version": key[3]} for key in new]
            session.execute(_IMAGE, rows)
            found |= self._read(session, new)
        return found

    @staticmethod
    def _read(session: Session, keys: Sequence[tuple[str, str, str, str]]) -> dict[tuple[str, str, str, str], int]:
        rows = session.execute(
            select(Image.id, Image.build_id, Image.path, Image.package, Image.version).where(
                Image.build_id.in_({key[0] for key in keys})
            )
        )
        wanted = set(keys)
        return {key: row[0] for row in rows if (key := (row[1], row[2], row[3], row[4])) in wanted}


def state(session: Session, device: Device, reported: State, digest: str, now: datetime) -> None:
    """A new state document."""
    document = state_document(reported)
    if reported.boot_id != device.boot_id and device.boot_id:
        events.publish(session, "device.restarted", {"boot_id": reported.boot_id}, subject=device.id, at=now)
    violated = bool(reported.violations)
    if violated and not device.integrity_violated:
        data = {"violations": document["violations"], "hostname": reported.hostname}
        events.publish(session, "device.integrity_violated", data, subject=device.id, at=now)
    device.hostname, device.platform, device.kernel = reported.hostname, reported.platform, reported.kernel
    device.agent, device.timezone, device.boot_id = reported.agent, reported.timezone, reported.boot_id
    device.memory_free_mib = reported.memory_free_mib
    device.integrity_violated, device.restart_pending = violated, reported.restart.pending
    barred = {bar.sha256 for bar in reported.bars}
    if kept := [sha256 for sha256 in device.lifted if sha256 in barred]:
        device.lifted = kept
    elif device.lifted:
        device.lifted = []
    device.state, device.state_digest, device.reported = document, digest, now


def patches(session: Session, device: Device, reported: State, content_ids: Mapping[str, str]) -> None:
    """The hotpatches that run, one row each."""
    device.hotpatched = bool(reported.patches)
    wanted = {(p.sha256, p.build_id): p for p in reported.patches}
    rows = session.scalars(select(DevicePatch).where(DevicePatch.device_id == device.id)).all()
    for row in rows:
        patch = wanted.pop((row.sha256, row.build_id), None)
        if patch is None:
            session.delete(row)
        else:
            row.processes, row.missing, row.stopped_us = patch.processes, patch.missing, patch.stopped_us
            row.content_id = content_ids.get(patch.sha256)
    for patch in wanted.values():
        session.add(
            DevicePatch(
                device_id=device.id,
                sha256=patch.sha256,
                build_id=patch.build_id,
                content_id=content_ids.get(patch.sha256),
                name=patch.name,
                sequence=patch.sequence,
                processes=patch.processes,
                missing=patch.missing,
                stopped_us=patch.stopped_us,
            )
        )


def inventory(
    session: Session, device: Device, images: Sequence[ImageReport], digest: str, ids: ImageIds, now: datetime
) -> None:
    """A new inventory: rows of images that are gone are deleted, new ones added, others left alone."""
    known = ids.of(session, images)
    wanted = {known[image.build_id, image.path, image.package, image.version]: image.processes for image in images}
    have = dict(
        session.execute(
            select(DeviceImage.image_id, DeviceImage.processes).where(DeviceImage.device_id == device.id)
        ).all()
    )
    gone = have.keys() - wanted.keys()
    if gone:
        session.execute(
            delete(DeviceImage).where(DeviceImage.device_id == device.id, DeviceImage.image_id.in_(sorted(gone)))
        )
    new = [{"device_id": device.id, "image_id": i, "processes": n} for i, n in wanted.items() if i not in have]
    if new:
        session.execute(DeviceImage.__table__.insert(), new)  # type: ignore[attr-defined]
    for image, processes in wanted.items():
        if image in have and have[image] != processes:
            session.execute(
                update(DeviceImage)
                .where(DeviceImage.device_id == device.id, DeviceImage.image_id == image)
                .values(processes=processes)
            )
    device.inventory_digest, device.reported = digest, now


@dataclass(frozen=True, slots=True)
class _Meaning:
    result: rules.Result
    event: str


_MEANINGS = {
    "downloading": _Meaning(rules.Result.DOWNLOADING, ""),
    "applied": _Meaning(rules.Result.APPLIED, "patch.applied"),
    "staged": _Meaning(rules.Result.STAGED, "baseline.staged"),
    "failed": _Meaning(rules.Result.FAILED, "patch.failed"),
    "reverted": _Meaning(rules.Result.REVERTED, "patch.reverted"),
    "revert_failed": _Meaning(rules.Result.REVERT_FAILED, "patch.revert_failed"),
    "refused": _Meaning(rules.Result.INELIGIBLE, "patch.refused"),
}
_REVERTED_BY_ITSELF = {
    "health_failed": _Meaning(rules.Result.HEALTH_FAILED, "patch.health_failed"),
    "crashed": _Meaning(rules.Result.CRASHED, "patch.health_failed"),
}


def outcomes(
    session: Session,
    device: Device,
    reports: Sequence[Report],
    contents: Mapping[str, str],
    content_ids: Mapping[str, str],
    now: datetime,
) -> None:
    """What came of actions. The same outcome again (an answer was lost) is nothing new and changes nothing.

    Args:
        contents: ids of content by deployment.
        content_ids: ids of content by the sha256 of the file.
    """
    for report in sorted(reports, key=lambda r: r.at):
        baseline = fallbacks.baseline_of(report.action)
        content = content_ids.get(baseline) if baseline else contents.get(report.deployment or "")
        values: dict[str, Any] = {
            "device_id": device.id,
            "action": report.action,
            "result": report.result,
            "deployment_id": report.deployment if content else None,
            "content_id": content,
            "reason": report.reason,
            "detail": report.detail,
            "processes": report.processes,
            "stopped_us": report.stopped_us,
            "at": to_micros(report.at),
            "received": to_micros(now),
        }
        if session.execute(_OUTCOME, values).first() is None:
            continue
        meaning = _REVERTED_BY_ITSELF.get(report.reason) or _MEANINGS.get(report.result)
        if meaning is None:
            continue
        if baseline is None:  # otherwise the hotpatch's deployment goes on saying why it is not that
            _follow(session, device, report, meaning.result, now)
        if meaning.event:
            data = {
                "hostname": device.hostname,
                "deployment": report.deployment,
                "content": content,
                "reason": report.reason,
                "detail": report.detail,
                "processes": report.processes,
                "stopped_us": report.stopped_us,
            }
            events.publish(session, meaning.event, data, subject=device.id, actor=f"device:{device.id}", at=now)


def _follow(session: Session, device: Device, report: Report, result: rules.Result, now: datetime) -> None:
    row = session.get(Membership, (report.deployment, device.id)) if report.deployment else None
    if row is None:
        return
    given = convert.reason_of(report.reason) if report.reason in Reason._value2member_map_ else None
    after = rules.report(convert.membership_of(row), result, now, given, report.detail)
    row.state, row.reason, row.detail = after.state.value, after.reason.value, after.detail
    row.since = after.since or now
