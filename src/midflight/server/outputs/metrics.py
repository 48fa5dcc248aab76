"""Prometheus metrics: a few grouped counts of the database, kept for some seconds, in the text format.

All of them are gauges of the fleet as a whole, the same from every API process; scrape one of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from midflight import __version__
from midflight.server.outputs.tables import Webhook, WebhookDelivery
from midflight.server.store.database import Database
from midflight.server.store.devices import Device, DevicePatch, Outcome, Presence
from midflight.server.store.events import Event
from midflight.server.store.policies import Compliance, Deployment

KEPT_S = 10.0
_DAY = timedelta(days=1)


class Fleet(Collector):
    """Counts what the database knows, at most every ten seconds however often it is scraped."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._found: list[GaugeMetricFamily] = []
        self._at = float("-inf")

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: that the registry need not ask the database when it is made."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics."""
        with self._lock:
            if time.monotonic() - self._at > KEPT_S:
                with self._database.read() as session:
                    self._found = list(_count(session, datetime.now(UTC)))
                self._at = time.monotonic()
            return self._found


def exposition(database: Database) -> tuple[CollectorRegistry, Fleet]:
    """A registry with the fleet's metrics."""
    registry = CollectorRegistry()
    fleet = Fleet(database)
    registry.register(fleet)
    return registry, fleet


def text(registry: CollectorRegistry) -> bytes:
    """The metrics in the text format 0.0.4."""
    return generate_latest(registry)


def _count(session: Session, now: datetime) -> Iterable[GaugeMetricFamily]:
    yield _family("midflight_build_info", "Version of the server.", ["version"], [(__version__, 1)])
    enabled = select(func.count()).select_from(Device)
    yield _one(
        "midflight_devices",
        "Devices that are enrolled and not disabled.",
        session,
        enabled.where(Device.disabled.is_(None)),
    )
    silent = select(func.count()).select_from(Presence).where(Presence.last_seen < now - _DAY)
    yield _one("midflight_devices_silent_day", "Devices not seen for a day.", session, silent)
    violated = enabled.where(Device.integrity_violated)
    yield _one("midflight_devices_integrity_violated", "Devices whose code memory is not explained.", session, violated)
    waiting = enabled.where(Device.restart_pending)
    yield _one(
        "midflight_devices_restart_pending", "Devices that wait for a restart into a baseline.", session, waiting
    )
    yield _grouped("midflight_compliance_devices", "Devices by compliance.", session, ["state"], Compliance.state)
    yield _grouped(
        "midflight_deployments", "Deployments by effective state and reason.", session, ["state", "reason"],
        Deployment.effective, Deployment.reason,
    )  # fmt: skip
    yield _grouped(
        "midflight_outcomes", "Outcomes of actions on devices, by result.", session, ["result"], Outcome.result
    )
    stopped = select(func.coalesce(func.sum(DevicePatch.stopped_us), 0) / 1_000_000.0)
    yield _one(
        "midflight_stopped_seconds", "Time that processes stood still for the patches that run now.", session, stopped
    )
    patched = select(func.count(func.distinct(DevicePatch.device_id)))
    yield _one("midflight_devices_hotpatched", "Devices with a hotpatch in memory.", session, patched)
    outbox = select(func.count()).select_from(Event).where(Event.dispatched.is_(None))
    yield _one("midflight_events_waiting", "Events that nobody has taken yet.", session, outbox)
    due = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.due.is_not(None))
    yield _one("midflight_webhook_deliveries_waiting", "Deliveries that are due or will be tried again.", session, due)
    off = select(func.count()).select_from(Webhook).where(Webhook.enabled.is_(False))
    yield _one("midflight_webhooks_disabled", "Webhooks that are disabled.", session, off)


def _one(name: str, text: str, session: Session, statement: Any) -> GaugeMetricFamily:
    return _family(name, text, [], [(float(session.scalar(statement) or 0),)])


def _grouped(name: str, text: str, session: Session, labels: Sequence[str], *columns: Any) -> GaugeMetricFamily:
    rows = session.execute(select(*columns, func.count()).group_by(*columns).order_by(*columns)).all()
    return _family(name, text, labels, [tuple(row) for row in rows])


def _family(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for row in rows:
        family.add_metric([str(value) for value in row[:-1]], float(row[-1]))
    return family
