"""Check-ins: what is told, what is heard, and when the next one is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from midflight.agent import clocks
from midflight.agent.fleet import pace
from midflight.agent.fleet.channel import FINAL, Channel, Declined
from midflight.agent.fleet.clock import DeviceClock
from midflight.agent.fleet.place import Place
from midflight.agent.fleet.records import Records
from midflight.agent.fleet.report import Told, tell_inventory, tell_state
from midflight.errors import MidflightError
from midflight.trust.checkin import Answer, CheckIn, ImageReport, State, digest_of, inventory_document, state_document
from midflight.trust.devices import load_identity
from midflight.trust.errors import CertificateRefused

AWAY = timedelta(days=1)
"""A device that was not heard for so long was away: the grace of a restart begins anew."""


class Conversation:
    """The check-ins of one device.

    Args:
        draw: gives a number from 0 to 1.
    """

    def __init__(self, place: Place, records: Records, clock: DeviceClock, draw: Callable[[], float]) -> None:
        self._place, self._records, self._clock, self._draw = place, records, clock, draw
        self._channel: Channel | None = None
        self._told = Told()
        self._failures = 0
        self._interval = float(place.enrolled.interval_s)
        self._next = self._not_before = 0.0
        self.trouble = ""
        """Why the certificate could not be renewed; empty: it could, or need not."""

    def begin(self) -> None:
        """Set the first check-in: after a power cut all devices start together."""
        self._next = time.monotonic() + self._draw() * min(5.0, self._place.enrolled.interval_s)

    @property
    def next_at(self) -> float:
        """When the next check-in is (time.monotonic)."""
        return max(self._next, self._not_before)

    def soon(self) -> None:
        """There are news: do not wait for the interval, but for what the server asked when it was busy."""
        self._next = min(self._next, time.monotonic())

    def moved(self, place: Place) -> None:
        """The server has other keys or addresses now."""
        self._place = place
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def check_in(self, held: int, state: State, inventory: tuple[ImageReport, ...]) -> Answer:
        """Tell the server what is new, and hear what it wants. The next check-in is set, also when it fails.

        Args:
            held: sequence of the instructions that are held.

        Raises:
            MidflightError: it did not work.
        """
        try:
            answer = self._exchange(held, state, inventory)
        except Declined as error:
            self._failures += 1
            wait = pace.after_refusal(error.retry_after, self._failures, self._interval, self._draw)
            if error.reason in FINAL:
                self._records.remember({"revoked": error.reason})
                wait = max(wait, 600.0 * (0.5 + self._draw()))
            self._next = self._not_before = time.monotonic() + wait
            raise
        except (MidflightError, OSError):
            self._failures += 1
            wait = pace.after_failure(self._failures, self._interval, self._draw)
            self._next = self._not_before = time.monotonic() + wait
            raise
        self._failures = 0
        self._not_before = 0.0
        self._interval = pace.after_answer(answer.interval_s)
        self._next = time.monotonic() + self._interval
        self._was_heard()
        return answer

    def settled(self, state: State, inventory: tuple[ImageReport, ...]) -> tuple[State, tuple[ImageReport, ...]]:
        """What to tell of a report: as last time, where nothing moved that matters. With outcomes comes what bears
        them out: the server would order the same again."""
        uptime, pressing = clocks.uptime(), bool(self._records.unheard())
        return tell_state(state, self._told, uptime), tell_inventory(inventory, self._told, uptime, pressing)

    def _exchange(self, held: int, state: State, inventory: tuple[ImageReport, ...]) -> Answer:
        channel = self._open()
        if channel.identity.renewal_due(self._clock.now()):
            self._renew(channel)
        told = self._told
        outcomes = self._records.unheard()
        message = CheckIn(
            self._clock.now().replace(microsecond=0),
            held,
            digest_of(state_document(state)),
            digest_of(inventory_document(inventory)),
            state if told.state is not None and told.state != state else None,
            inventory if told.inventory is not None and told.inventory != inventory else None,
            tuple(outcomes.values()),
        )
        answer = channel.check_in(message)
        self._records.heard(list(outcomes))
        if answer.want:
            message = replace(
                message,
                state=state if "state" in answer.want else None,
                inventory=inventory if "inventory" in answer.want else None,
                outcomes=(),
            )
            answer = channel.check_in(message)
        uptime = clocks.uptime()
        self._told = Told(
            state,
            inventory,
            told.state_at if told.state == state else uptime,
            told.inventory_at if told.inventory == inventory else uptime,
        )
        return answer

    def _renew(self, channel: Channel) -> None:
        try:
            channel.renew()
        except MidflightError as error:
            # The current certificate is good for a third of its time still.
            self.trouble = f"the certificate of this device could not be renewed: {error}"
        else:
            self.trouble = ""

    def _open(self) -> Channel:
        if self._channel is None:
            try:
                identity = load_identity(self._place.enrolled.folder, self._clock.now())
            except CertificateRefused as error:
                if error.reason in FINAL:
                    self._records.remember({"revoked": error.reason})
                raise
            self._channel = Channel(
                self._place.enrolled, identity, self._clock.now, self._clock.heard, self._place.server.proxy,
                self._place.timeouts,
            )  # fmt: skip
        return self._channel

    def _was_heard(self) -> None:
        now = self._clock.now()
        last = self._records.fact("last_heard")
        new: dict[str, object] = {"revoked": None}
        if last is None or now.timestamp() - last > 30:  # status shows it; no need to write every retry
            new["last_heard"] = int(now.timestamp())
        if last is not None and now.timestamp() - last > AWAY.total_seconds():
            new["back"] = int(now.timestamp())
        self._records.remember(new)
