"""Before content is deployed: what it would do to the fleet as it is now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from midflight.server.domain import model as m
from midflight.server.domain.calendar import Calendar, OffTrack, off_track
from midflight.server.domain.eligibility import ineligible
from midflight.server.domain.reasons import Reason
from midflight.server.store.bulk import Place, load_places
from midflight.server.store.fleet import Fleet

CHUNK = 500
_AFFECTED = text(
    "SELECT DISTINCT di.device_id FROM image i JOIN device_image di ON di.image_id = i.id"
    " WHERE (i.package = :package OR i.build_id IN (SELECT build_id FROM content_image WHERE content_id = :content))"
    " AND di.device_id > :after ORDER BY di.device_id LIMIT :limit"
)


@dataclass(frozen=True, slots=True)
class Preview:
    """What deploying content would do."""

    off_track: OffTrack
    affected: int
    """Devices that have what the content changes."""
    by_reason: Mapping[str, int]
    """Those that could not take it, by reason; ``eligible``: those that could."""


def preview(session: Session, fleet: Fleet, content: m.Content, calendar: Calendar, now: datetime) -> Preview:
    """Look at every device that has the content's package, as last reported."""
    reasons: Counter[str] = Counter()

    def affected() -> Iterator[tuple[m.Device, m.Policy | None]]:
        for place in _places(session, fleet, content):
            policy = place.governance.policy
            if policy is None:
                reasons[(place.governance.reason or Reason.UNASSIGNED).value] += 1
            else:
                finding = ineligible(place.device, content, policy, fleet.catalogue)
                reasons[finding.reason.value if finding else "eligible"] += 1
            yield place.device, policy

    found = off_track(content, affected(), calendar, fleet.catalogue, now.date())
    return Preview(found, sum(reasons.values()), reasons)


def _places(session: Session, fleet: Fleet, content: m.Content) -> Iterator[Place]:
    after = ""
    while True:
        where = {"package": content.package, "content": content.id, "after": after, "limit": CHUNK}
        ids = list(session.scalars(_AFFECTED, where))
        if not ids:
            return
        places = load_places(session, ids, fleet)
        session.expunge_all()
        yield from (places[id] for id in ids)
        after = ids[-1]
