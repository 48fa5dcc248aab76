"""The frame of the live processes that the corpus patches: start, ask for a verdict as often as wanted, stop."""

from __future__ import annotations

import enum
import os
import select
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 30.0
"""Seconds after which something that must happen is given up. Never a measure: only a broken run comes near it."""


class Verdict(enum.Enum):
    """What a probe saw of the hole."""

    VULNERABLE = "VULNERABLE"
    FIXED = "FIXED"


class ProbeError(Exception):
    """A probe saw neither the hole nor its absence: the process or the probe is broken."""


class Target(ABC):
    """One live service under test: its processes, and a probe that may be repeated while they run."""

    talks = False
    """Whether what it prints is read; otherwise that goes to its log."""
    serves = False
    """Whether it is a server, which must answer each :meth:`request` while it is patched."""
    lethal = False
    """Whether a probe that finds the hole open ends (or hangs) the process: then such a probe is its last."""

    def __init__(self, command: Sequence[str], scratch: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = scratch / "target.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                # should the test run be killed, then its targets go with it
                [_tool("setpriv"), "--pdeathsig", "TERM", *command],
                cwd=scratch,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self.talks else log,
                stderr=log,
                bufsize=0,
            )

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes to patch."""
        return (self.process.pid,)

    @abstractmethod
    def probe(self) -> Verdict:
        """Look for the hole from outside.

        Raises:
            ProbeError: what was seen is neither the one nor the other.
        """

    def request(self) -> None:
        """Ask for something ordinary, as clients do; of servers alone.

        Raises:
            ProbeError, OSError: the answer is not what it always is.
        """
        raise NotImplementedError(f"{type(self).__name__} is no server")

    def alive(self) -> bool:
        """Whether every process still runs (and none has been replaced by another one)."""
        return self.process.poll() is None and all(Path(f"/proc/{pid}/maps").exists() for pid in self.pids)

    def said(self) -> str:
        """The end of what the target wrote, for the message of a failed test."""
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End the service; returns when it is gone."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def wait_until_ready(self) -> None:
        """Return when the service answers.

        Raises:
            ProbeError: it ended, or does not answer.
        """


class Daemon(Target):
    """A server with a TCP port on the loopback interface."""

    serves = True

    def __init__(
        self, command: Sequence[str], scratch: Path, port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(command, scratch, environment)
        self.port = port

    def connect(self) -> socket.socket:
        """A new connection to the server, whose operations give up after PATIENCE."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def ask(self, request: bytes) -> bytes:
        """Send one request on a connection of its own; returns what came until the server closed."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = bytearray()
            while piece := connection.recv(65536):
                answer += piece
        return bytes(answer)

    def wait_until_ready(self) -> None:
        """Return when the port takes connections.

        Raises:
            ProbeError: the server ended, or opened no port.
        """

        def open_port() -> bool:
            if self.process.poll() is not None:
                raise ProbeError(f"the server ended at once: {self.said()}")
            try:
                self.connect().close()
            except ConnectionRefusedError:
                return False
            return True

        until(open_port, f"a server on port {self.port}")


class Host(Target):
    """A host program of ``hosts/`` with the library under test: one line in, one verdict out."""

    talks = True

    def __init__(
        self,
        program: Path,
        library_folder: Path,
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        loader: Path | None = None,
    ) -> None:
        """Start it; ``loader`` is the dynamic loader of a C library in ``library_folder``."""
        command = [str(program)]
        variables = {"LD_LIBRARY_PATH": str(library_folder)}
        if loader is not None:
            command, variables = [str(loader), "--library-path", str(library_folder), *command], {}
        super().__init__(command, scratch, {**variables, **(environment or {})})

    def wait_until_ready(self) -> None:
        """Return when the program has its library and reads."""
        self.probe()

    def probe(self) -> Verdict:
        """Ask the program, which asks the library."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(b"?\n")
        except BrokenPipeError:
            raise ProbeError(f"the host program ended: {self.said()}") from None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        answer = self.process.stdout.readline().decode().strip() if ready else "no answer"
        if answer not in Verdict.__members__:
            raise ProbeError(f"the host program says {answer!r}: {self.said()}")
        return Verdict[answer]


def free_port() -> int:
    """A port of the loopback interface that nobody uses for TCP or UDP just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                return free_port()
    return port


def processor_seconds(pid: int) -> float:
    """What a process has used so far, all threads, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Raises:
        ProbeError: it did not come true within PATIENCE.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise ProbeError(f"waited for {what} in vain")
        time.sleep(0.01)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ProbeError(f"{name} is missing; install util-linux")
    return path
