"""A real server, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx

from midflight.server.access import accounts
from midflight.server.install import install
from midflight.server.store.database import Database

PASSWORD = "a long enough pass phrase"


class RunningServer:
    """A server on SQLite with TLS of its own, background work every second."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self._settings = install(folder, listen=f"127.0.0.1:{port}", public_url=self.url).settings
        self._process: subprocess.Popen[bytes] | None = None
        self.logins: dict[str, Any] = {}
        """What the browsers of those who have signed in keep, by their names."""

    def add_users(self, **roles: str) -> None:
        """Accounts with PASSWORD: a name and a role each."""
        database = Database(self._settings.database_url)
        with database.write() as session:
            for name, role in roles.items():
                accounts.create(session, name, [role], datetime.now(UTC), password=PASSWORD)
        database.close()

    def start(self) -> None:
        """Start, and wait until it answers."""
        environment = {**os.environ, "MIDFLIGHT_SERVER_WORKER_INTERVAL": "1"}
        command = [sys.executable, "-m", "midflight.cli.main", "server", "run", str(self.folder)]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        with self.client() as client:
            for _ in range(600):
                try:
                    if client.get("/healthz").status_code == 200:
                        return
                except httpx.TransportError:
                    assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server does not answer: " + (self.folder / "log").read_text())

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def client(self, **options: Any) -> httpx.Client:
        """A client that is nobody yet."""
        return httpx.Client(base_url=self.url, verify=False, timeout=20, **options)
