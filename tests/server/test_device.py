"""What a device sees of the server: enrollment, check-ins, renewal; and what nobody else gets away with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from midflight.server.checkin.receive import CheckIns
from midflight.server.enrollment import invite, revoke_certificates
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.devices import Device as Row
from midflight.server.store.devices import DeviceImage, Presence
from midflight.server.store.events import Event
from midflight.trust import checkin
from midflight.trust.checkin import CHECK_IN_PATH, RENEW_PATH
from midflight.trust.devices import begin_enrollment, finish_enrollment
from tests.server.conftest import on_sqlite
from tests.server.device import LIBC, Device

Make = Callable[..., Device]


def test_a_quiet_device_is_asked_once_for_what_it_has_and_then_left_alone(database: Database, new_device: Make) -> None:
    device = new_device()
    assert device.held == 1 and device.orders == []
    with database.read() as session:
        row = session.get_one(Row, device.id)
        assert (row.hostname, row.kernel, row.platform) == ("web-0", "6.1.0-28-amd64", "linux-x86_64")
        assert session.scalar(select(func.count()).select_from(DeviceImage)) == 2
        before = row.sequence
    for _ in range(3):
        answer = device.check_in()
        assert answer.instructions is None and answer.want == ()
        assert 250 <= answer.interval_s <= 350
    with database.read() as session:
        assert session.get_one(Row, device.id).sequence == before, "a quiet check-in writes nothing to the device"


def test_last_seen_is_written_in_batches(database: Database, new_device: Make, app: object) -> None:
    devices = [new_device() for _ in range(3)]
    checkins: CheckIns = app.state.checkins  # type: ignore[attr-defined]
    checkins.presence.flush()
    before = datetime.now(UTC)
    for device in devices:
        device.check_in()
    assert checkins.presence.flush() == 3
    assert checkins.presence.flush() == 0
    with database.read() as session:
        assert all(row.last_seen >= before for row in session.scalars(select(Presence)))


def test_a_changed_inventory_is_asked_for_and_replaces_the_old_one(database: Database, new_device: Make) -> None:
    device = new_device()
    device.inventory = (replace(LIBC, processes=61),)
    assert device.check_in().want == ()
    with database.read() as session:
        assert session.scalars(select(DeviceImage.processes)).all() == [61]


@on_sqlite
def test_an_altered_or_unsigned_request_is_refused(new_device: Make) -> None:
    device = new_device()
    body = device.message()
    good = device.send(CHECK_IN_PATH, body)
    assert good.status_code == 200
    for header in ("signature", "content-digest", "midflight-sequence", "signature-input"):
        altered = good.request.headers[header].replace("1", "2").replace("A", "B").replace("a", "b")
        for value in ("", "x", altered):
            response = device.send(CHECK_IN_PATH, body, **{header: value})
            assert response.status_code == 401, (header, value)
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["title"] in ("malformed", "unsigned", "altered", "unknown", "stale")


def test_a_request_that_is_played_again_is_refused(client: TestClient, new_device: Make) -> None:
    device = new_device()
    for outcomes in ((), (checkin.Outcome("x.apply.1", None, "waiting", datetime.now(UTC).replace(microsecond=0)),)):
        first = device.send(CHECK_IN_PATH, device.message(outcomes=outcomes))
        assert first.status_code == 200
        again = client.post(CHECK_IN_PATH, content=first.request.content, headers=dict(first.request.headers))
        assert (again.status_code, again.json()["title"]) == (401, "replayed")


def test_a_revoked_device_is_refused_from_then_on(database: Database, new_device: Make) -> None:
    device = new_device()
    with database.write() as session:
        revoke_certificates(session, device.id, "stolen", datetime.now(UTC))
    response = device.send(CHECK_IN_PATH, device.message())
    assert (response.status_code, response.json()["title"]) == (401, "revoked")


@on_sqlite
def test_nonsense_that_a_device_signed_is_refused(new_device: Make) -> None:
    device = new_device()
    for body in (b"", b"{}", b"[]", b"\xff", b'{"version":1}', b"{" * 1000):
        response = device.send(CHECK_IN_PATH, body)
        assert (response.status_code, response.json()["title"]) == (400, "malformed")


def test_a_token_enrolls_one_machine_which_may_ask_again_for_its_answer(
    database: Database, client: TestClient, new_device: Make, tmp_path: Path
) -> None:
    key = new_device()._key
    with database.write() as session:
        _, token = invite(session, "test", datetime.now(UTC), tags={"site": "berlin"})
    first = Device(client, tmp_path / "first", key)
    assert first.enroll(token).status_code == 200
    lost = Device(client, tmp_path / "lost", key)
    assert lost.enroll(token).json()["title"] == "replayed"
    with database.read() as session:
        assert session.get_one(Row, first.id).tags == {"site": "berlin"}
        kinds = session.scalars(select(Event.kind).where(Event.subject == first.id)).all()
        assert list(kinds).count("device.enrolled") == 1
    assert lost.enroll("mfe_" + "A" * 43).json()["title"] == "unknown"


@on_sqlite
def test_a_lost_answer_to_an_enrollment_is_given_again_to_the_same_machine_alone(
    database: Database, client: TestClient, new_device: Make, tmp_path: Path
) -> None:
    key = new_device()._key
    with database.write() as session:
        _, token = invite(session, "test", datetime.now(UTC))
    device = Device(client, tmp_path / "device", key)
    begin_enrollment(device.folder)
    pending = (device.folder / "pending.key").read_bytes()
    assert device.enroll(token).status_code == 200
    first = device.id
    (device.folder / "pending.key").write_bytes(pending)
    (device.folder / "pending.key").chmod(0o600)
    assert device.enroll(token).status_code == 200
    assert device.id == first
    device.check_in()
    thief = Device(client, tmp_path / "thief", key)
    assert thief.enroll(token, machine="").json()["title"] == "replayed"


@on_sqlite
def test_an_expired_token_enrolls_nobody(
    database: Database, client: TestClient, new_device: Make, tmp_path: Path
) -> None:
    key = new_device()._key
    with database.write() as session:
        _, token = invite(session, "test", datetime.now(UTC) - timedelta(days=2))
    response = Device(client, tmp_path / "late", key).enroll(token)
    assert (response.status_code, response.json()["title"]) == (401, "expired")


@on_sqlite
def test_a_certificate_is_renewed_with_the_current_one(new_device: Make) -> None:
    device = new_device()
    before = device.identity
    assert before is not None
    body = checkin.encode_renewal(checkin.Renewal(certificate_request=begin_enrollment(device.folder)))
    answer = checkin.decode_renewal(device.send(RENEW_PATH, body).content)
    device.identity = finish_enrollment(device.folder, answer.certificate, answer.authority, datetime.now(UTC))
    assert device.identity.device == before.device and device.identity.fingerprint != before.fingerprint
    device.check_in()


@on_sqlite
def test_who_comes_on_top_of_what_the_server_can_do_is_sent_away_for_a_while(
    settings: Settings, database: Database, new_device: Make
) -> None:
    from midflight.server.api.app import create_app

    device = new_device()
    full = create_app(replace(settings, checkin_limit=0), database)
    with TestClient(full) as client:
        device.client = client
        waits = set()
        for _ in range(20):
            response = device.send(CHECK_IN_PATH, device.message())
            assert (response.status_code, response.json()["title"]) == (503, "overloaded")
            waits.add(int(response.headers["retry-after"]))
    assert min(waits) >= 5 and max(waits) <= 300 and len(waits) > 10
