"""A real server in a process of its own: made and started by the commands that an administrator uses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx

PASSWORD = "a long enough pass phrase"


class RunningServer:
    """A server on SQLite with TLS of its own, background work every second."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self._command("init", str(folder), "--listen", f"127.0.0.1:{port}", "--public-url", self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self, *arguments: str, text: str = "") -> str:
        command = [sys.executable, "-m", "midflight.cli.main", "server", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def add_user(self, name: str, *roles: str) -> None:
        """An account with PASSWORD."""
        given = [argument for role in roles for argument in ("--role", role)]
        self._command("user", "add", str(self.folder), name, *given, text=PASSWORD + "\n")

    def start(self) -> None:
        """Start, and wait until it answers."""
        environment = {**os.environ, "MIDFLIGHT_SERVER_WORKER_INTERVAL": "1"}
        command = [sys.executable, "-m", "midflight.cli.main", "server", "run", str(self.folder)]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        client = self.client()
        for _ in range(300):
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
