"""Prometheus metrics: counts that are kept (midflight.server.store.tallies), in the text format.

All of them are gauges of the fleet as a whole, the same from every API process; scrape one of them.
"""

from __future__ import annotations

from collections import Counter
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
from midflight.server.store import tallies
from midflight.server.store.database import Database
from midflight.server.store.devices import Presence
from midflight.server.store.events import Event
from midflight.server.store.policies import Deployment

_DAY = timedelta(days=1)


class Fleet(Collector):
    """What the database knows."""

    def __init__(self, database: Database, silent: int) -> None:
        self._database = database
        self._silent = silent

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: that the registry need not ask the database when it is made."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics."""
        with self._database.read() as session:
            return list(_count(session, self._silent))


def exposition(database: Database, silent: int) -> CollectorRegistry:
    """A registry with the fleet's metrics; ``silent``: see :func:`count_silent`."""
    registry = CollectorRegistry()
    registry.register(Fleet(database, silent))
    return registry


def text(registry: CollectorRegistry) -> bytes:
    """The metrics in the text format 0.0.4."""
    return generate_latest(registry)


def _count(session: Session, silent: int) -> Iterable[GaugeMetricFamily]:
    yield _family("midflight_build_info", "Version of the server.", ["version"], [(__version__, 1)])
    devices = tallies.devices(session)
    enabled = Counter({words: count for words, count in devices.items() if "disabled" not in words})

    def those(word: str, among: Counter[frozenset[str]] = enabled) -> int:
        return sum(count for words, count in among.items() if word in words)

    yield _number("midflight_devices", "Devices that are enrolled and not disabled.", enabled.total())
    yield _number("midflight_devices_silent_day", "Devices not seen for a day.", silent)
    yield _number(
        "midflight_devices_integrity_violated", "Devices whose code memory is not explained.", those("violated")
    )
    yield _number(
        "midflight_devices_restart_pending", "Devices that wait for a restart into a baseline.", those("restart")
    )
    compliance: Counter[str] = Counter()
    for (state, _hotpatched), count in tallies.compliance(session).items():
        compliance[state] += count
    yield _family("midflight_compliance_devices", "Devices by compliance.", ["state"], sorted(compliance.items()))
    yield _grouped(
        "midflight_deployments", "Deployments by effective state and reason.", session, ["state", "reason"],
        Deployment.effective, Deployment.reason,
    )  # fmt: skip
    outcomes = sorted(tallies.outcomes(session).items())
    yield _family("midflight_outcomes", "Outcomes of actions on devices, by result.", ["result"], outcomes)
    stopped = tallies.stopped_us(session) / 1e6
    yield _number("midflight_stopped_seconds", "Time that processes stood still for the patches that run now.", stopped)
    yield _number("midflight_devices_hotpatched", "Devices with a hotpatch in memory.", those("hotpatched", devices))
    outbox = select(func.count()).select_from(Event).where(Event.dispatched.is_(None))
    yield _one("midflight_events_waiting", "Events that nobody has taken yet.", session, outbox)
    due = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.due.is_not(None))
    yield _one("midflight_webhook_deliveries_waiting", "Deliveries that are due or will be tried again.", session, due)
    off = select(func.count()).select_from(Webhook).where(Webhook.enabled.is_(False))
    yield _one("midflight_webhooks_disabled", "Webhooks that are disabled.", session, off)


def count_silent(session: Session) -> int:
    """Devices that were not seen for a day: of all that is shown, this alone looks at every device."""
    silent = select(func.count()).select_from(Presence).where(Presence.last_seen < datetime.now(UTC) - _DAY)
    return session.scalar(silent) or 0


def _one(name: str, text: str, session: Session, statement: Any) -> GaugeMetricFamily:
    return _number(name, text, session.scalar(statement) or 0)


def _number(name: str, text: str, value: float) -> GaugeMetricFamily:
    return _family(name, text, [], [(value,)])


def _grouped(name: str, text: str, session: Session, labels: Sequence[str], *columns: Any) -> GaugeMetricFamily:
    rows = session.execute(select(*columns, func.count()).group_by(*columns).order_by(*columns)).all()
    return _family(name, text, labels, [tuple(row) for row in rows])


def _family(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for row in rows:
        family.add_metric([str(value) for value in row[:-1]], float(row[-1]))
    return family
