"""A device: an agent in the foreground, with folders of its own, enrolled as a user enrolls one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.agent.fleet.control import ControlServer
from tests.commands import MIDFLIGHT, PATIENCE, Ran, midflight, until


class Device:
    """Folders below ``home``, which stay when the agent is started again."""

    def __init__(self, home: Path, settings: str = "", env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.env = {
            "MIDFLIGHT_STATE": str(home / "state"),
            "MIDFLIGHT_CONFIG": str(home / "config"),
            "MIDFLIGHT_RUN": str(home / "run"),
            **(env or {}),
        }
        (home / "config").mkdir(parents=True, exist_ok=True)
        (home / "config" / "agent.toml").write_text(settings)
        self.log = home / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        """The agent's folder of state."""
        return self.home / "state"

    def enroll(self, server: ControlServer, *options: str, status: int | None = 0, token: str = "") -> Ran:
        """``midflight agent enroll``."""
        words = ["--server", server.url, "--token", token or server.invite(), "--pin", str(server.pin), *options]
        return midflight("agent", "enroll", *words, status=status, env=self.env)

    def start(self, **env: str) -> None:
        """Start the agent; it is up when it has told its orders, or has ended."""
        said = self.said("orders: in force")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*MIDFLIGHT, "agent", "run"],
                env={**os.environ, **self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: self.said("orders: in force") > said or self.ended(), "started")

    def ended(self) -> bool:
        """Whether it is not there any more."""
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns its status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def said(self, text: str) -> int:
        """How often it has told that."""
        return self.log.read_text().count(text) if self.log.exists() else 0

    def says(self, text: str) -> None:
        """Wait until it has told that."""
        until(lambda: self.said(text), f"told {text!r}")

    def ask(self, *words: str, status: int | None = 0) -> Any:
        """``midflight agent …``; returns its JSON."""
        return midflight("agent", *words, "--json", status=status, env=self.env).json

    def __enter__(self) -> Device:
        self.start()
        assert not self.ended(), self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            self.stop()
        text = self.log.read_text()
        assert "internal error" not in text and "Traceback" not in text, text
