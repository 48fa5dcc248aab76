"""A check-in from the first byte to the answer.

Most check-ins bring nothing new, and cost one query: that row tells who speaks, what is known of it, and whether what
it was told last still holds. Only when something is new is the device locked, its news recorded, and its instructions
decided."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from midflight.patch.signature import Signer
from midflight.server.checkin import pace, record
from midflight.server.checkin.decide import Decided, decide
from midflight.server.checkin.lookup import Known, Lookup
from midflight.server.checkin.presence import Presence
from midflight.server.checkin.standing import load_device, place_of, settle
from midflight.server.settings import Settings
from midflight.server.store import invalidate
from midflight.server.store.base import from_micros, to_micros
from midflight.server.store.database import Database, lost_a_race
from midflight.server.store.devices import Answer as AnswerRow
from midflight.server.store.devices import Device
from midflight.server.store.fleet import Fleet, FleetCache
from midflight.trust.certificates import DeviceCertificate
from midflight.trust.checkin import Answer, CheckIn, Part, decode_check_in, encode_answer
from midflight.trust.instructions import sign_instructions
from midflight.trust.keys import PublicKey
from midflight.trust.requests import DeviceRequest, check_sequence, verify_request


@dataclass(frozen=True, slots=True)
class Sent:
    """A request of a device as it arrived."""

    headers: Mapping[str, str]
    """By lower-case name."""
    path: str
    query: str
    body: bytes
    method: str = "POST"


class CheckIns:
    """Answers check-ins; one for each process, used from several threads."""

    def __init__(
        self, database: Database, settings: Settings, signers: Sequence[Signer], seed: int | None = None
    ) -> None:
        self.database = database
        self.settings = settings
        self.fleet = FleetCache()
        self.presence = Presence(database)
        self._lookup = Lookup(database)
        self._images = record.ImageIds()
        self._signers = signers
        self._random = random.Random(seed)

    def identify(self, sent: Sent, now: datetime) -> tuple[DeviceRequest, Known]:
        """Who made a request.

        Raises:
            RequestRefused: nobody that is known, or not as the device signed it, or it came before.
        """
        rows: list[Known] = []

        def find(fingerprint: str) -> DeviceCertificate | None:
            row = self._lookup.find(fingerprint)
            if row is None:
                return None
            rows.append(row)
            return DeviceCertificate(
                row.device,
                fingerprint,
                PublicKey(bytes(row.public_key)),
                from_micros(row.not_before),
                from_micros(row.not_after),
                row.revoked_reason,
            )

        request = verify_request(sent.headers, sent.method, sent.path, sent.query, sent.body, find, now)
        check_sequence(request, max(rows[0].sequence, self.presence.last(request.device)[1]))
        return request, rows[0]

    def handle(self, sent: Sent, now: datetime) -> bytes:
        """Answer a check-in.

        Raises:
            RequestRefused: it is not of a device that is known here (401).
            TrustError: it cannot be read (400).
        """
        request, row = self.identify(sent, now)
        message = decode_check_in(sent.body)
        seen = from_micros(max(row.last_seen, self.presence.last(request.device)[0]))
        if self._nothing_new(message, row, now):
            answer = Answer(pace.interval(row.interval_s, seen, now, self._random))
        else:
            answer = self._retried(request, message, seen, now)
        self.presence.seen(request.device, request.sequence, now)
        return encode_answer(answer)

    def authenticated(self, session: Session, sent: Sent, now: datetime) -> DeviceRequest:
        """Who made a request that changes something: its sequence is used up in this transaction.

        Raises:
            RequestRefused: nobody that is known, or it came before.
        """
        request, _ = self.identify(sent, now)
        device = session.scalars(select(Device).where(Device.id == request.device).with_for_update()).one()
        check_sequence(request, device.sequence)
        device.sequence = request.sequence
        return request

    @staticmethod
    def _nothing_new(message: CheckIn, row: Known, now: datetime) -> bool:
        return (
            message.state_digest == row.state_digest
            and message.inventory_digest == row.inventory_digest
            and not message.outcomes
            and message.instructions == row.told
            and row.until > to_micros(now)
            and not row.regroup
        )

    def _retried(self, request: DeviceRequest, message: CheckIn, seen: datetime, now: datetime) -> Answer:
        for attempt in range(3):
            try:
                return self._news(request, message, seen, now)
            except DBAPIError as error:
                if attempt == 2 or not lost_a_race(error):
                    raise
        raise AssertionError("unreachable")

    def _news(self, request: DeviceRequest, message: CheckIn, seen: datetime, now: datetime) -> Answer:
        with self.database.write() as session:
            told = session.scalars(
                select(AnswerRow).where(AnswerRow.device_id == request.device).with_for_update()
            ).one()
            device = session.scalars(select(Device).where(Device.id == request.device).with_for_update()).one()
            check_sequence(request, device.sequence)
            device.sequence = request.sequence
            fleet = self.fleet.get(session)
            want = self._record(session, device, message, fleet, now)
            if want:
                return Answer(1, None, want)
            view = load_device(session, device, fleet, now)
            changed = message.state is not None or message.inventory is not None or told.regroup
            place = settle(session, device, view, fleet, now) if changed else place_of(session, device, view, fleet)
            told.regroup = False
            if changed or message.outcomes:
                invalidate.compliance_of(session, device.id)
            session.flush()
            decided = decide(session, place, fleet, now, device.lifted)
            return self._answer(told, message, decided, seen, now)

    def _record(
        self, session: Session, device: Device, message: CheckIn, fleet: Fleet, now: datetime
    ) -> tuple[Part, ...]:
        want: list[Part] = []
        if message.outcomes:
            contents = {live.deployment.id: live.content.id for live in fleet.live.values()}
            record.outcomes(session, device, message.outcomes, contents, fleet.content_ids, now)
        if message.state is not None and message.state_digest != device.state_digest:
            record.state(session, device, message.state, message.state_digest, now)
            record.patches(session, device, message.state, fleet.content_ids)
        elif message.state_digest != device.state_digest:
            want.append("state")
        if message.inventory is not None and message.inventory_digest != device.inventory_digest:
            record.inventory(session, device, message.inventory, message.inventory_digest, self._images, now)
        elif message.inventory_digest != device.inventory_digest:
            want.append("inventory")
        return tuple(want)

    def _answer(self, told: AnswerRow, message: CheckIn, decided: Decided, seen: datetime, now: datetime) -> Answer:
        envelope = None
        fresh = told.digest == decided.digest and told.expires > to_micros(decided.until) and told.sequence > 0
        governed = decided.instructions.policy.get("id") is not None
        quiet = decided.interval_s if governed else self.settings.checkin_interval
        mean = self.settings.checkin_active_interval if decided.active else quiet
        told.interval_s = mean
        told.until = to_micros(decided.until)
        if not fresh or message.instructions != told.sequence:
            told.sequence = max(told.sequence, message.instructions) + 1
            told.digest = decided.digest
            told.expires = to_micros(decided.instructions.expires)
            envelope = sign_instructions(replace(decided.instructions, sequence=told.sequence), self._signers)
        return Answer(pace.interval(mean, seen, now, self._random), envelope)
