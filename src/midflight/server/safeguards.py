"""What outcomes say about combinations: the data that safeguards are suggested from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain.safeguards import Outcome as Tried
from midflight.server.store.catalogue import Content, ContentImage
from midflight.server.store.devices import Device, DeviceImage, Image, Outcome

_BAD = ("failed", "revert_failed")
_GOOD = ("applied",)


def outcomes_of(session: Session, content: str, since: datetime, limit: int = 200_000) -> Iterator[Tried]:
    """How a content fared on each device, with the device's facts as they are now."""
    rows = session.execute(
        select(Outcome.device_id, Outcome.result, Device.kernel, Device.platform, Device.agent)
        .join(Device, Device.id == Outcome.device_id)
        .where(Outcome.content_id == content, Outcome.received >= since, Outcome.result.in_((*_BAD, *_GOOD)))
        .limit(limit)
    )
    baselines = _baselines_of(session, content, since)
    worst: dict[str, Tried] = {}
    for device, result, kernel, platform, agent in rows:
        failed = result in _BAD
        if device not in worst or failed:
            facts = (("kernel", kernel), ("platform", platform), ("agent", agent), *baselines.get(device, ()))
            worst[device] = Tried(content, failed, facts)
    yield from worst.values()


def _baselines_of(session: Session, content: str, since: datetime) -> dict[str, tuple[tuple[str, str], ...]]:
    """What each of these devices runs of the content's package: the baselines that it can fail on."""
    package = select(Content.package).where(Content.id == content).scalar_subquery()
    its_own = select(ContentImage.build_id).where(ContentImage.content_id == content)
    tried = select(Outcome.device_id).where(Outcome.content_id == content, Outcome.received >= since)
    rows = session.execute(
        select(DeviceImage.device_id, Image.build_id)
        .join(Image, Image.id == DeviceImage.image_id)
        .where((Image.package == package) | Image.build_id.in_(its_own), DeviceImage.device_id.in_(tried))
        .order_by(DeviceImage.device_id, Image.build_id)
    )
    found: dict[str, dict[tuple[str, str], None]] = {}
    for device, build_id in rows:
        found.setdefault(device, {})["baseline", build_id] = None  # once, though two paths may have it
    return {device: tuple(facts) for device, facts in found.items()}
