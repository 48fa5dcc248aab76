"""A server that is killed, and a database that is started again, in the middle of a rollout: nothing lost, nothing
done twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from midflight.server.enrollment import invite
from midflight.server.install import OFFLINE_KEYS, install
from midflight.server.settings import FILE_NAME, Settings
from midflight.server.store.database import Database
from midflight.server.store.devices import Outcome
from midflight.server.store.events import Event
from midflight.trust.content import Content, Description
from midflight.trust.keys import load_public_key
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.signers import open_signer
from midflight.trust.signing import sign
from tests.server.device import NGINX, Device
from tests.server.postgresql import PostgreSQL

RINGS = [
    {"name": "first", "kind": "first", "amount": 1, "gate": {"soak": "PT0S"}},
    {"name": "rest", "kind": "rest", "gate": {"soak": "PT0S"}},
]


pytestmark = pytest.mark.live  # it starts and kills processes, and takes its time


class Server:
    """``midflight server run`` (and, on PostgreSQL, ``worker``) as processes that can be killed."""

    def __init__(self, folder: Path, database: str | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        made = install(folder, database=database, listen=f"127.0.0.1:{self.port}")
        with (folder / FILE_NAME).open("a") as file:
            file.write("worker_interval = 1\n")
        self.settings = Settings.load(folder)
        self.processes: list[subprocess.Popen[bytes]] = []
        headers = {"Authorization": f"Bearer {made.bootstrap_token}"}
        self.admin = httpx2.Client(base_url=f"https://127.0.0.1:{self.port}", headers=headers, verify=False)
        self.open = httpx2.Client(base_url=f"https://127.0.0.1:{self.port}", verify=False)

    def start(self) -> None:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        log = (self.settings.folder / "log").open("ab")
        for word in ("run",) if self.settings.sqlite else ("run", "worker"):
            command = [sys.executable, "-m", "midflight", "server", word, str(self.settings.folder)]
            self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        self.wait(lambda: self.open.get("/readyz").status_code == 200)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        for process in self.processes:
            process.send_signal(how)
        for process in self.processes:
            process.wait(20)
        self.processes = []

    def wait(self, reached: Any, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if reached():
                    return
            except (httpx2.TransportError, KeyError):
                pass
            assert time.monotonic() < deadline, (self.settings.folder / "log").read_text()[-3000:]
            time.sleep(0.2)

    def post(self, path: str, **body: Any) -> Any:
        response = self.admin.post(f"/api/v1{path}", json=body)
        assert response.status_code in (200, 201), response.text
        return response.json()

    def publish(self) -> Content:
        """A hotpatch, with the offline keys that init made."""
        repository = Repository(self.settings.path(self.settings.repository))
        source = self.settings.folder / "content"
        source.write_bytes(b"hotpatch" * 20)
        about = Description("hotpatch", "nginx", 1, (NGINX.build_id,), (), "security", "high", None, "")
        content = repository.add(source, "nginx/1.hotpatch", about, datetime.now(UTC))
        sign(repository, open_signer(str(self.settings.folder / OFFLINE_KEYS / "targets.key")))
        publish(repository, datetime.now(UTC))
        return content


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    url = request.getfixturevalue("postgresql").create() if request.param == "postgresql" else None
    made = Server(tmp_path / "server", url)
    made.start()
    yield made
    made.kill()


def devices_of(server: Server, folder: Path, count: int) -> list[Device]:
    database = Database(server.settings.database_url)
    with database.write() as session:
        _, token = invite(session, "test", datetime.now(UTC), uses=count)
    database.close()
    key = load_public_key(server.settings.path(server.settings.instruction_key).with_suffix(".pub"))
    devices = [Device(server.open, folder / f"device-{n}", key, f"web-{n}") for n in range(count)]
    for device in devices:
        assert device.enroll(token).status_code == 200
        device.check_in()
    return devices


def test_a_rollout_survives_a_killed_server(server: Server, tmp_path: Path) -> None:
    devices = devices_of(server, tmp_path, 3)
    group = server.post("/groups", name="web", rule='hostname like "web-*"')["id"]
    policy = server.post("/policies", name="web", document={"audience": {"groups": [group]}, "rings": RINGS})["id"]
    content = server.publish()
    server.post("/catalogue/refresh")
    deployment = server.post("/deployments", content="hotpatch:nginx:1", policy=policy)["id"]
    server.post(f"/deployments/{deployment}/approve")
    server.kill()  # before it was populated, or in the middle of that, or after
    server.start()

    def offered() -> list[Device]:
        for device in devices:
            device.check_in()
        return [device for device in devices if device.orders]

    server.wait(offered)
    (first,) = offered()
    outcome = first.outcome("applied", processes=4)
    first.runs("nginx", 1, content.sha256)
    first.check_in([outcome])
    server.kill()
    server.start()
    first.check_in([outcome])  # its answer was lost, as far as the device knows
    server.wait(lambda: len(offered()) == 2)
    for device in offered():
        done = device.outcome("applied", processes=4)
        device.runs("nginx", 1, content.sha256)
        device.check_in([done])
    show = f"/api/v1/deployments/{deployment}"
    server.wait(lambda: server.admin.get(show).json()["effective"] == "done")
    database = Database(server.settings.database_url)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Outcome)) == 3
        kinds = list(session.scalars(select(Event.kind)))
    database.close()
    assert kinds.count("patch.applied") == 3
    assert kinds.count("patch.offered") == 3
    assert kinds.count("deployment.created") == 1


def test_devices_and_people_are_served_again_when_postgresql_was_started_again(tmp_path: Path) -> None:
    own = PostgreSQL(fsync=True)
    server = Server(tmp_path / "server", own.create())
    try:
        server.start()
        (device,) = devices_of(server, tmp_path, 1)
        group = server.post("/groups", name="kept")["id"]
        own.stop(signal.SIGQUIT)
        away = device.send("/device/v1/check-in", device.message())
        assert (away.status_code, away.json()["title"]) == (503, "unavailable")
        assert int(away.headers["retry-after"]) >= 5
        assert server.admin.get("/api/v1/groups").status_code == 503
        own.start()
        server.wait(lambda: server.admin.get("/api/v1/groups").status_code == 200)
        assert device.check_in().want == ()
        assert [item["id"] for item in server.admin.get("/api/v1/groups").json()["items"]] == [group]
        workers = [process for process in server.processes if process.poll() is None]
        assert len(workers) == 2, "the worker waits for the database as well"
    finally:
        server.kill()
        own.remove()
