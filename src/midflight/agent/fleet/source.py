"""Orders from the server, for the agent's loop: see :class:`midflight.agent.orders.OrderSource`.

All that takes time goes on in a thread of its own (:mod:`midflight.agent.fleet.sync`), so that nothing a server does,
or does not do, delays the patching of a process. The loop only takes what that thread has laid out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from midflight.agent.orders import Orders


class FleetOrders:
    """The handover: one thread lays out, the loop takes.

    Args:
        wake: lets the loop look at once.
    """

    def __init__(self, text: str, wake: Callable[[], None] = lambda: None) -> None:
        self._lock = threading.Lock()
        self._orders: Orders | None = None
        self._text = text
        self.wake = wake
        self.news: Callable[[], None] = lambda: None
        """Called by the loop when the thread has something to report."""

    def lay_out(self, orders: Orders) -> None:
        """From now on these are in force."""
        with self._lock:
            self._orders = orders
        self.wake()

    def look(self) -> Orders | None:
        """See the protocol."""
        with self._lock:
            orders, self._orders = self._orders, None
        return orders

    def barred(self) -> None:
        """See the protocol."""
        self.news()

    def describe(self) -> str:
        """See the protocol."""
        return self._text
