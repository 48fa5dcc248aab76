"""The VEX document over the whole fleet, some devices at a time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.outputs import vex
from midflight.server.outputs.truth import DeviceTruth, of_device
from midflight.server.store.bulk import load_places
from midflight.server.store.devices import Device
from midflight.server.store.fleet import Fleet

_CHUNK = 500


def fleet_vex(session: Session, fleet: Fleet, publisher: str) -> bytes:
    """The document, as JSON; ``publisher``: the server's URL."""
    return dump(vex.document(_truths(session, fleet), "fleet", publisher, datetime.now(UTC)))


def dump(document: dict[str, Any]) -> bytes:
    """As it is sent."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def _truths(session: Session, fleet: Fleet) -> Iterator[DeviceTruth]:
    contents = list(fleet.catalogue.contents.values())
    last = ""
    while True:
        after = select(Device.id).where(Device.id > last, Device.disabled.is_(None)).order_by(Device.id).limit(_CHUNK)
        ids = list(session.scalars(after))
        if not ids:
            return
        for place in load_places(session, ids, fleet).values():
            yield of_device(place.device, contents)
        session.expunge_all()
        last = ids[-1]
