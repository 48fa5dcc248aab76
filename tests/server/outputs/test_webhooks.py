"""Webhooks, delivered over real sockets to a real receiver that verifies them as the standard's own library does."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from fastapi.testclient import TestClient
from sqlalchemy import select
from standardwebhooks import Webhook as Verifier

from midflight.server.outputs import keys, webhooks
from midflight.server.outputs.backoff import GIVE_UP_AFTER, LONGEST_ASKED, asked_wait, next_attempt
from midflight.server.outputs.destination import DestinationRefused, judge, networks, parse, resolve
from midflight.server.outputs.keys import OutputKeys
from midflight.server.outputs.tables import Webhook, WebhookDelivery
from midflight.server.outputs.webhooks import Delivered, WebhookSettings
from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.events import publish

sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
LOCAL = networks(["127.0.0.1/32"])
ISSUER = "https://midflight.example.com"


@dataclass
class Receiver:
    """Takes deliveries; answers what it is told to."""

    url: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a loopback port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook?x=1")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def output_keys(settings: Settings) -> OutputKeys:
    """The server's keys."""
    return keys.load(settings)


@pytest.fixture
def allowing(settings: Settings) -> None:
    """The administrator allows this machine's own address."""
    settings.extra["webhooks"] = {"allow": ["127.0.0.1/32"]}  # type: ignore[index]


def make(admin: TestClient, url: str, **more: Any) -> dict[str, Any]:
    answer = admin.post("/api/v1/webhooks", json={"name": "siem", "url": url, **more})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def happen(database: Database, kind: str = "patch.applied", **data: Any) -> str:
    with database.write() as session:
        return publish(session, kind, data, subject="dev-1", at=datetime.now(UTC)).uid


def round_(database: Database, output_keys: OutputKeys, ahead: timedelta = timedelta()) -> Delivered:
    return webhooks.deliver(database, WebhookSettings(LOCAL), ISSUER, output_keys, datetime.now(UTC) + ahead)


@pytest.mark.usefixtures("allowing")
def test_an_event_arrives_signed_and_in_its_envelope(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    hook = make(admin, receiver.url, kinds=["patch.*"])
    uid = happen(database, stopped_us=180, hostname="web1")
    happen(database, "deployment.created")
    assert round_(database, output_keys) == Delivered(dispatched=2, delivered=1)
    ((headers, body),) = receiver.got
    document = Verifier(hook["secret"]).verify(body, headers)
    assert document["id"] == uid == headers["webhook-id"]
    event = from_http(HTTPMessage(headers, body), JSONFormat(), CloudEvent)
    assert (event.get_type(), event.get_source(), event.get_subject()) == (
        "io.midflight.patch.applied",
        ISSUER,
        "dev-1",
    )
    assert event.get_data() == {"stopped_us": 180, "hostname": "web1"}
    assert round_(database, output_keys) == Delivered(), "nothing is sent twice"
    assert hook["secret"] not in admin.get("/api/v1/webhooks").text


@pytest.mark.usefixtures("allowing")
def test_what_fails_is_tried_again_under_the_same_id_and_then_arrives(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    hook = make(admin, receiver.url)
    uid = happen(database)
    receiver.status = 503
    assert round_(database, output_keys).failed == 1
    assert round_(database, output_keys) == Delivered(), "not before its time"
    receiver.status = 200
    assert round_(database, output_keys, timedelta(minutes=1)).delivered == 1
    assert [headers["webhook-id"] for headers, _body in receiver.got] == [uid, uid]
    (item,) = admin.get(f"/api/v1/webhooks/{hook['id']}/deliveries").json()["items"]
    assert (item["attempts"], item["status"], item["error"], item["next"]) == (2, 200, "", None)
    assert item["delivered"] is not None


@pytest.mark.usefixtures("allowing")
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_receiver_that_asks_for_a_pause_gets_it_for_all_that_waits_and_comes(
    form: str, admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    make(admin, receiver.url)
    happen(database)
    at = datetime.now(UTC) + timedelta(minutes=30)
    receiver.status = 429
    receiver.headers["Retry-After"] = "1800" if form == "seconds" else format_datetime(at, usegmt=True)
    assert round_(database, output_keys).failed == 1
    receiver.status = 200
    happen(database)
    assert round_(database, output_keys, timedelta(minutes=29)) == Delivered(dispatched=1), "nor what is new"
    assert round_(database, output_keys, timedelta(minutes=31)).delivered == 2


@sqlite
@pytest.mark.usefixtures("allowing")
@pytest.mark.parametrize("header", ["99999999999999999999", "Sun, 01 Jan 2120 00:00:00 GMT"])
def test_a_receiver_cannot_ask_for_ever(
    header: str, admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    make(admin, receiver.url)
    happen(database)
    receiver.status, receiver.headers["Retry-After"] = 503, header
    round_(database, output_keys)
    receiver.status = 200
    assert round_(database, output_keys, LONGEST_ASKED - timedelta(minutes=1)).delivered == 0
    assert round_(database, output_keys, LONGEST_ASKED + timedelta(minutes=1)).delivered == 1


@pytest.mark.parametrize(
    "header", ["", "-5", "soon", "1e9", "0", "\u0663", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 2026 00:00 GMT"]
)
def test_a_pause_that_is_none_changes_nothing(header: str) -> None:
    assert asked_wait(header, datetime.now(UTC)) is None


@sqlite
@pytest.mark.usefixtures("allowing")
def test_a_receiver_that_fails_for_days_or_is_gone_is_disabled_until_a_person_enables_it(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    hook = make(admin, receiver.url)
    happen(database)
    receiver.status = 500
    round_(database, output_keys)
    with database.write() as session:
        row = session.scalars(select(Webhook)).one()
        row.failing_since = datetime.now(UTC) - timedelta(days=6)
    assert round_(database, output_keys, timedelta(minutes=1)).disabled == [hook["id"]]
    shown = admin.get(f"/api/v1/webhooks/{hook['id']}").json()
    assert (shown["enabled"], "failing since" in shown["disabled_reason"]) == (False, True)
    happen(database)
    assert round_(database, output_keys, timedelta(hours=1)).delivered == 0
    assert admin.patch(f"/api/v1/webhooks/{hook['id']}", json={"enabled": True}).json()["disabled_reason"] == ""
    receiver.status = 410
    happen(database)
    assert round_(database, output_keys).disabled == [hook["id"]]


@sqlite
@pytest.mark.usefixtures("allowing")
def test_after_a_rotation_both_secrets_verify_for_a_day(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    old = make(admin, receiver.url)
    new = admin.post(f"/api/v1/webhooks/{old['id']}/rotate").json()
    assert old["secret"] != new["secret"]
    assert admin.post(f"/api/v1/webhooks/{old['id']}/test").status_code == 202
    round_(database, output_keys)
    ((headers, body),) = receiver.got
    assert Verifier(old["secret"]).verify(body, headers)["type"] == "io.midflight.webhook.test"
    assert Verifier(new["secret"]).verify(body, headers)


def test_a_delivery_claimed_by_a_process_that_died_is_taken_up_later(
    admin: TestClient, settings: Settings, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    settings.extra["webhooks"] = {"allow": ["127.0.0.1/32"]}  # type: ignore[index]
    make(admin, receiver.url)
    happen(database)
    now = datetime.now(UTC)
    with database.write() as session:
        webhooks.dispatch(session, now)
    with database.write() as session:
        assert len(webhooks.claim(session, now)) == 1
    assert round_(database, output_keys) == Delivered(), "it is the other's for now"
    assert round_(database, output_keys, timedelta(minutes=5)).delivered == 1


@sqlite
@pytest.mark.usefixtures("allowing")
def test_redirects_are_answers_and_are_not_followed(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver
) -> None:
    make(admin, receiver.url)
    happen(database)
    receiver.status, receiver.headers = 307, {"Location": receiver.url}
    assert round_(database, output_keys).failed == 1
    assert len(receiver.got) == 1


INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1", "198.18.0.1", "192.0.2.1",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not_public_are_refused_however_they_are_written(address: str) -> None:
    with pytest.raises(DestinationRefused, match="not a public address"):
        judge(ip_address(address))


def test_public_addresses_need_tls_and_what_an_administrator_allows_does_not() -> None:
    judge(ip_address("93.184.215.14"))
    judge(ip_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c"))
    with pytest.raises(DestinationRefused, match="without TLS"):
        judge(ip_address("93.184.215.14"), scheme="http")
    judge(ip_address("10.1.2.3"), networks(["10.1.2.0/24"]), "http")
    judge(ip_address("::ffff:10.1.2.3"), networks(["10.1.2.0/24"]), "http")
    with pytest.raises(DestinationRefused):
        judge(ip_address("10.1.3.3"), networks(["10.1.2.0/24"]))


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "017700000001", "[::ffff:7f00:1]"])
def test_names_and_odd_spellings_of_this_machine_are_refused(host: str) -> None:
    with pytest.raises(DestinationRefused):
        resolve(parse(f"https://{host}/"))


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with two addresses must not be tried until the private one comes up."""

    def answers(*_args: object, **_more: object) -> list[Any]:
        return [(0, 0, 0, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    with pytest.raises(DestinationRefused):
        resolve(parse("https://two.example/"))


@sqlite
@pytest.mark.usefixtures("allowing")
def test_a_name_that_changes_its_address_between_check_and_connection_changes_nothing(
    admin: TestClient, database: Database, output_keys: OutputKeys, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name is resolved once, and the connection goes to what was judged."""
    port = parse(receiver.url).port
    real, asked = socket.getaddrinfo, []

    def rebinding(host: str, *args: Any, **more: Any) -> Any:
        if host != "rebind.example":
            return real(host, *args, **more)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.9", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    make(admin, f"http://rebind.example:{port}/hook")
    happen(database)
    assert round_(database, output_keys).delivered == 1
    assert (asked, receiver.got[0][0]["host"]) == (["rebind.example"], f"rebind.example:{port}")


NO_URLS = [
    "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "https://", "https://user:pw@example.com/",
    "https://example.com:99999/", "https://exa mple.com/", "https://example.com\\@10.0.0.1/", "https://[::1",
    "https://example.com/\r\nHost: evil", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/",
]  # fmt: skip


@sqlite
def test_urls_that_lead_nowhere_good_are_refused_when_they_are_given(admin: TestClient) -> None:
    for url in NO_URLS:
        answer = admin.post("/api/v1/webhooks", json={"name": "x", "url": url})
        assert answer.status_code == 422, (url, answer.text)


def test_waits_grow_and_end() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    dues = [next_attempt(n, now, now, None, 0) for n in range(1, 10)]
    assert [(due - now).total_seconds() for due in dues if due] == [5, 30, 120, 600, 1800, 3600, 7200, 14400, 14400]
    assert next_attempt(1, now - GIVE_UP_AFTER, now, None, 0) is None
    later = next_attempt(1, now, now, timedelta(hours=2), 0)
    assert later == now + timedelta(hours=2)


def test_deliveries_of_nobody_are_not_kept(database: Database) -> None:
    happen(database)
    with database.write() as session:
        assert webhooks.dispatch(session, datetime.now(UTC)) == 1
        assert session.scalars(select(WebhookDelivery)).all() == []
