"""What somebody sends who means harm: over real sockets, and with values that nothing can be reckoned with."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from midflight.server import wire
from midflight.server.api.paging import cursor
from midflight.server.settings import Settings
from midflight.server.store import meta
from midflight.server.store.database import Database
from midflight.server.work.tasks import Context
from midflight.trust.checkin import CHECK_IN_PATH
from tests.server.conftest import on_sqlite
from tests.server.device import Device
from tests.server.publisher import Publisher
from tests.server.test_rollout import RINGS, Fleet

Make = Callable[..., Device]
FAR = "9999-12-31T23:59:59-23:59"
LONG_AGO = "0001-01-01T00:00:00+23:59"


# -- over sockets


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    """The server as it is run, on a loopback port."""
    http = "midflight.server.wire:BoundedHttp"
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, http=http, log_level="critical", server_header=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = server.force_exit = True
    thread.join()


def begun(port: int, head: str) -> socket.socket:
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.sendall(head.encode("latin-1"))
    return connection


def answers(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    connection.close()
    return found


@on_sqlite
def test_who_never_ends_a_check_in_keeps_nobody_else_away(settings: Settings, port: int, new_device: Make) -> None:
    device = new_device()
    head = f"POST {CHECK_IN_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + "x" * 1000
    held = [begun(port, head) for _ in range(settings.checkin_limit + 5)]
    large = [begun(port, head.replace("100000", "3000000") + "x" * 200_000) for _ in range(3)]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        device.client = client
        device.check_in()
        assert client.get("/healthz").status_code == 200
    for connection in (*held, *large):
        connection.close()


@on_sqlite
@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 4\r\nContent-Length: 44\r\n\r\n{}{}",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: +4\r\n\r\n{}{}",
        "Content-Length: 4, 4\r\n\r\n{}{}",
        "X: a\r\n Content-Length: 4\r\n\r\n",
        "X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n{}\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("path", [CHECK_IN_PATH, "/api/v1/login", "/auth/check"])
def test_a_request_that_two_readers_would_read_differently_brings_no_second_one_in(
    path: str, head: str, port: int
) -> None:
    second = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    connection = begun(port, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}{second}")
    connection.shutdown(socket.SHUT_WR)
    found = answers(connection)
    first = found[9:12]
    refused = first == b"400" or not found
    # what is read at all is read by the one length that RFC 9112 section 6.3 gives it, and then the connection ends or
    # goes on where everybody would
    assert refused or first in (b"401", b"404", b"405", b"422"), found
    if b"\r\n\r\n" in found and found.count(b"HTTP/1.1 ") > 1:
        assert "chunked\r\n\r\n0\r\n\r\n" in head or "Content-Length: 2\r\n" in head, found


@on_sqlite
def test_who_connects_and_says_nothing_whole_is_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.2)
    for head in ("", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: x\r\n"):
        assert answers(begun(port, head)) == b""


@on_sqlite
def test_headers_without_end_are_refused(port: int) -> None:
    for line in (b"X: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        connection = begun(port, "GET /healthz HTTP/1.1\r\nHost: x\r\nY: ")
        sent = 0
        try:
            while sent < 100 << 20:  # it would take them all
                connection.sendall(line)
                sent += len(line)
        except OSError:
            pass
        assert sent < 20 << 20, "what fits into the buffers between the two, and no more"
        assert b" 400 " in answers(connection) or sent
    with httpx2.Client() as client:
        assert client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


# -- values


@pytest.mark.parametrize("values", [[2**64 - 1, "a"], [2**63, "x"], ["abc", "x"], [True, "x"], ["\0", "\0"], [1], []])
def test_a_place_in_a_list_that_nobody_was_given_is_refused(values: list[Any], admin: TestClient) -> None:
    for path in ("deployments", "devices", "safeguards", "policies", "events", "compliance/devices", "content"):
        answer = admin.get(f"/api/v1/{path}", params={"after": cursor(values)})
        assert answer.status_code in (200, 422), answer.text
        assert (
            answer.status_code == 422
            or all(type(value) is str and "\0" not in value for value in values)
            or (path == "events" and values == [1])
        )


@pytest.mark.parametrize("text", ["[" * 400_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
@on_sqlite
def test_what_is_nested_without_end_is_refused(text: str, admin: TestClient, new_device: Make) -> None:
    for path in ("/api/v1/policies", "/api/v1/login", "/api/v1/groups"):
        answer = admin.post(path, content=text, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
    device = new_device()
    assert device.send(CHECK_IN_PATH, text.encode()).status_code in (400, 413)


ENDLESS = "P999999999D"
OUT_OF_BOUNDS: tuple[dict[str, Any], ...] = (
    {"deadline": ENDLESS},
    {"grace": ENDLESS},
    {"deadline": "-P1D"},
    {"rings": [{"name": "a", "kind": "rest", "gate": {"soak": ENDLESS}}]},
    {"rings": [{"name": "a", "kind": "rest", "gate": {"soak": "-P9D"}}]},
    {"rings": [{"name": "a", "kind": "rest", "gate": {"silence_after": ENDLESS}}]},
    {"rings": [{"name": "a", "kind": "rest", "gate": {"min_sample": 10**30}}]},
    {"rings": [{"name": "a", "kind": "count", "amount": 10**30}, {"name": "b", "kind": "rest"}]},
    {"windows": [{"rrule": "FREQ=DAILY", "start": "9999-12-31T23:59:59", "duration": "PT1H"}]},
    {"windows": [{"rrule": "FREQ=DAILY;COUNT=9999999", "start": "2026-01-01T00:00:00", "duration": "PT1H"}]},
    {"windows": [{"rrule": "FREQ=SECONDLY", "start": "2026-01-01T00:00:00", "duration": "PT1H"}]},
    {"windows": [{"rrule": "FREQ=DAILY", "start": "2026-01-01T00:00:00", "duration": "PT1H", "timezone": "../../x"}]},
    {"windows": [{"rrule": "FREQ=DAILY", "start": "2026-01-01T00:00:00", "duration": "PT1H", "timezone": "x" * 5000}]},
    {"windows": [{"rrule": "FREQ=DAILY", "start": "2026-01-01T00:00:00", "duration": "PT1H", "timezone": "Mars/X"}]},
    {"windows": [{"rrule": "FREQ=DAILY", "start": "2026-01-01T00:00:00", "duration": "PT1H"}] * 1000},
    {"windows": [{"rrule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", "start": "2026-01-01T00:00:00", "duration": "PT1H"}]},
)


@on_sqlite
@pytest.mark.parametrize("change", OUT_OF_BOUNDS, ids=lambda change: json.dumps(change)[:60])
def test_a_policy_that_nobody_could_reckon_with_is_refused(change: dict[str, Any], admin: TestClient) -> None:
    group = admin.post("/api/v1/groups", json={"name": "all", "rule": 'hostname like "*"'}).json()["id"]
    document = {"audience": {"groups": [group]}, "rings": RINGS} | change
    answer = admin.post("/api/v1/policies", json={"name": "p", "document": document})
    assert answer.status_code == 422, answer.text
    assert admin.get("/api/v1/policies").json()["items"] == []


@pytest.mark.parametrize("moment", [FAR, LONG_AGO])
def test_a_time_out_of_reach_is_refused_and_the_server_goes_on(
    moment: str, admin: TestClient, database: Database, settings: Settings, publisher: Publisher, new_device: Make
) -> None:
    fleet = Fleet(admin, Context(database, settings), publisher)
    policy = fleet.policy()
    device = new_device()
    deployment, _content = fleet.deploy(policy)
    content = "/api/v1/content/hotpatch:nginx:1"
    etag = {"if-match": admin.get(content).headers["etag"]}
    for answer in (
        admin.post("/api/v1/safeguards", json={"reason": "x", "package": "p", "expires": moment}),
        admin.put(content, json={"deployable_until": moment}, headers=etag),
        admin.post(f"/api/v1/policies/{policy}/pause", json={"until": moment}),
        admin.post(f"/api/v1/deployments/{deployment}/pause", json={"until": moment}),
        admin.put(content, json={"memory_mib": 2**63}, headers=etag),
    ):
        assert answer.status_code in (409, 412, 422), answer.text
    fleet.work()
    device.check_in()
    assert [kind for kind, _target in device.orders] == ["apply"]
    for path in ("/api/v1/safeguards", content, f"/api/v1/policies/{policy}", "/api/v1/reports/fleet", "/metrics"):
        assert admin.get(path).status_code == 200


@on_sqlite
def test_a_deployment_that_cannot_be_reckoned_with_holds_up_no_other(
    admin: TestClient, database: Database, settings: Settings, publisher: Publisher, new_device: Make
) -> None:
    """Such a one can no longer be made; an older server may have left it."""
    fleet = Fleet(admin, Context(database, settings), publisher)
    policy = fleet.policy()
    device = new_device()
    bad, _content = fleet.deploy(policy)
    endless = json.dumps([{"name": "a", "kind": "rest", "gate": {"soak": "P999999999D"}}])
    with database.write() as session:
        session.execute(
            text("UPDATE deployment SET rings = :rings, ring = 0, effective = 'offering'"), {"rings": endless}
        )
        session.execute(text("UPDATE membership SET ring = 0, state = 'applied'"))
        meta.bump(session, "deployments")
    good, _content = fleet.deploy(policy, 2)
    assert fleet.get(f"/deployments/{bad}")["effective"] == "offering"
    device.check_in()
    assert [action.deployment for action in device.instructions.actions if device.instructions] == [good]  # type: ignore[union-attr]
