"""What of the outputs is done in the background: webhooks are delivered, what is over is forgotten."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta

from midflight.errors import MidflightError
from midflight.server.access import accounts
from midflight.server.outputs import keys, webhooks
from midflight.server.outputs.webhooks import WebhookSettings
from midflight.server.work.tasks import Context, Task

_log = logging.getLogger(__name__)
_KEEP_DELIVERIES = timedelta(days=30)


class Courier:
    """Delivers in a thread of its own, one round at a time: a slow receiver must not hold up rollouts."""

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def start(self, context: Context, now: datetime) -> threading.Thread | None:
        """Begin a round, if none is going on."""
        if not self._busy.acquire(blocking=False):
            return None
        thread = threading.Thread(target=self._round, args=(context, now), name="webhooks", daemon=True)
        thread.start()
        return thread

    def _round(self, context: Context, now: datetime) -> None:
        try:
            deliver(context, now)
        except Exception as error:  # the next round tries again; a thread that dies tells nobody
            _log.warning("webhooks are delivered later: %s", error)
        finally:
            self._busy.release()


def deliver(context: Context, now: datetime) -> webhooks.Delivered | None:
    """One round of deliveries; None when the settings or keys are wrong (said in the log)."""
    try:
        settings, signers = WebhookSettings.of(context.settings), keys.load(context.settings)
    except (MidflightError, OSError) as error:
        _log.error("webhooks cannot be delivered: %s", error)
        return None
    issuer = context.settings.public_url.rstrip("/")
    return webhooks.deliver(context.database, settings, issuer, signers, now)


def forget(context: Context, now: datetime) -> None:
    """Remove logins that are over, and deliveries of long ago."""
    with context.database.write() as session:
        accounts.forget(session, now)
        webhooks.prune(session, now - _KEEP_DELIVERIES)


_courier = Courier()

TASKS: tuple[Task, ...] = (
    Task("webhooks", timedelta(seconds=2), _courier.start),
    Task("forget", timedelta(hours=1), forget),
)
