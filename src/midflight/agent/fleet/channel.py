"""The conversation with the server: check-ins and renewals, signed, over the pinned connection.

The server's clock comes with every answer (the header Date, RFC 9110 6.6.1, over a connection that only the server can
have): see :mod:`midflight.agent.fleet.moments`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from midflight.agent.fleet.enrollment import Enrolled, problem
from midflight.errors import InputError
from midflight.process.faults import point
from midflight.trust.checkin import (
    CHECK_IN_PATH,
    RENEW_PATH,
    Answer,
    CheckIn,
    Renewal,
    decode_answer,
    decode_renewal,
    encode_check_in,
    encode_renewal,
)
from midflight.trust.devices import DeviceIdentity, begin_enrollment, finish_enrollment
from midflight.trust.errors import ServerRefused, TrustError
from midflight.trust.pinning import PinnedClient, Reply, Timeouts
from midflight.trust.requests import next_sequence, sign_request

MAX_ANSWER = 2 << 20
FINAL = frozenset({"revoked", "unknown", "expired"})
"""Refusals after which only a person helps: this is no device of that server any more."""


class Declined(TrustError):
    """The server answered, and not with what was asked for. ``reason`` is its word."""

    def __init__(self, message: str, reason: str, retry_after: str = "") -> None:
        super().__init__(message, reason)
        self.retry_after = retry_after


class Channel:
    """Speaks with one server; with its other addresses when one does not answer.

    Args:
        now: the time, as well as it is known.
        heard: is told the server's time.
    """

    def __init__(
        self,
        enrolled: Enrolled,
        identity: DeviceIdentity,
        now: Callable[[], datetime],
        heard: Callable[[datetime], None],
        proxy: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.enrolled, self.identity = enrolled, identity
        self._now, self._heard, self._proxy, self._timeouts = now, heard, proxy, timeouts
        self._sequence = 0
        self._address = 0
        self._client: PinnedClient | None = None

    def check_in(self, message: CheckIn) -> Answer:
        """Check in.

        Raises:
            Declined: the server refuses.
            TrustError: it is not our server, cannot be reached, or answers with what cannot be read.
        """
        reply = self._send(CHECK_IN_PATH, encode_check_in(message))
        point("fleet-checked-in")
        return decode_answer(reply.body)

    def renew(self) -> DeviceIdentity:
        """Get the next certificate, for a new key; from its return on that one signs.

        Raises:
            TrustError: as with :meth:`check_in`.
            InputError: it cannot be written.
        """
        request = begin_enrollment(self.enrolled.folder)
        point("fleet-renew-key")
        reply = self._send(RENEW_PATH, encode_renewal(Renewal(certificate_request=request)))
        point("fleet-renew-answer")
        answer = decode_renewal(reply.body)
        try:
            self.identity = finish_enrollment(self.enrolled.folder, answer.certificate, answer.authority, self._now())
        except OSError as error:
            raise InputError(f"{error.filename} cannot be written: {error.strerror}") from None
        return self.identity

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _send(self, path: str, body: bytes) -> Reply:
        before = self._sequence
        reply = self._request(path, body)
        if reply.status == 401 and problem(reply)[0] == "stale":
            self._sequence = before  # a number out of the future would have to be exceeded ever after
            reply = self._request(path, body)  # the clock was wrong; now it is known how much
        if reply.status == 200:
            return reply
        word, text = problem(reply)
        raise Declined(f"the server says no: {text}", word, reply.headers.get("retry-after", ""))

    def _request(self, path: str, body: bytes) -> Reply:
        urls = self.enrolled.urls
        if self._client is None:
            self._client = PinnedClient(
                urls[self._address % len(urls)], self.enrolled.pins, self._proxy, self._timeouts
            )
        now = self._now()
        self._sequence = next_sequence(self._sequence, now)
        url = self._client.base_url + path
        headers = sign_request(self.identity, "POST", url, body, self._sequence, now)
        try:
            reply = self._client.request(
                "POST", path, body, {**headers, "content-type": "application/json"}, MAX_ANSWER
            )
        except ServerRefused:
            self.close()
            self._address += 1
            raise
        self._note_time(reply)
        return reply

    def _note_time(self, reply: Reply) -> None:
        try:
            said = parsedate_to_datetime(reply.headers["date"])
        except (KeyError, ValueError, TypeError):
            return
        if said.tzinfo is not None:
            self._heard(said.astimezone(UTC))
