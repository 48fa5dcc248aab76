"""A real PostgreSQL for tests: made in a folder, listening on a Unix socket there and on a loopback port, and stopped
at the end.

PostgreSQL refuses to run as root; its programs run as the user ``postgres`` then.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from sqlalchemy import create_engine, text


def binaries() -> Path:
    """The folder of the newest installed PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4]))
    if not found:
        raise RuntimeError(
            "no PostgreSQL below /usr/lib/postgresql; apt-get install postgresql (scripts/bootstrap test)"
        )
    return found[-1].parent


class PostgreSQL:
    """One server with its own data folder."""

    def __init__(self, settings: dict[str, str] | None = None, fsync: bool = False) -> None:
        self._bin = binaries()
        self._user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="midflight-pg-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self.folder.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "on" if fsync else "off",
            "max_connections": "60",
            **(settings or {}),
        }
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "-D",
            str(self.folder / "data"),
            "-U",
            "midflight",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "-N",
        )
        self.start()

    def _as_user(self) -> dict[str, str]:
        return {"user": self._user, "group": self._user} if self._user else {}

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            extra_groups=[] if self._user else None,
            **self._as_user(),  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                extra_groups=[] if self._user else None,
                **self._as_user(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 30
        while subprocess.run(
            [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], stdin=subprocess.DEVNULL
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the first of its processes."""
        assert self._process is not None
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT at once but orderly, SIGQUIT as if the power failed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def url(self, name: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql+psycopg://midflight@127.0.0.1:{self.port}/{name}"

    def create(self, template: str = "template0") -> str:
        """A new database; returns its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self.url(name)

    def remove(self) -> None:
        """Stop it and remove all it had."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
