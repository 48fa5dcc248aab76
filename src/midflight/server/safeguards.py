"""What outcomes say about combinations: the data that safeguards are suggested from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.domain.safeguards import Outcome as Tried
from midflight.server.store.devices import Device, Outcome

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
    worst: dict[str, Tried] = {}
    for device, result, kernel, platform, agent in rows:
        failed = result in _BAD
        if device not in worst or failed:
            facts = (("kernel", kernel), ("platform", platform), ("agent", agent))
            worst[device] = Tried(content, failed, facts)
    yield from worst.values()
