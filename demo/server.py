"""nginx as the demo runs it: a master and two workers on a loopback port, and the question that shows the hole."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

WORKERS = 2
CONFIGURATION = """\
daemon off;
worker_processes {workers};
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        # the three lines that the advisory calls dangerous: a rewrite with arguments, then a capture that is used
        location / {{
            rewrite ^(.*) /new?c=1;
            set $path $1;
            add_header X-Worker $pid;
            return 200 $path;
        }}
    }}
}}
"""

QUESTION, RIGHT_ANSWER = "/t/a%25b", "/t/a%b"
"""nginx makes room for the right answer, 6 bytes. The vulnerable one then writes 8 bytes into it, "/t/a%25b", and
answers with the first 6 of them."""


class DemoError(Exception):
    """The demo cannot go on; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker answered to the question."""

    worker: int
    body: str

    @property
    def hole(self) -> bool:
        """Whether the answer proves that this worker is vulnerable."""
        if self.body == RIGHT_ANSWER:
            return False
        if self.body == QUESTION[: len(RIGHT_ANSWER)]:
            return True
        raise DemoError(f"nginx answered {self.body!r} to {QUESTION}, which neither the old nor the new code does")


class Server:
    """A running nginx; a context manager that ends it."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.folder = Path(tempfile.mkdtemp(prefix="midflight-demo-"))
        self.folder.chmod(0o755)  # the workers run as another user
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self.port: int = chosen.getsockname()[1]
        configuration = self.folder / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(workers=WORKERS, folder=self.folder, port=self.port))
        self._output = (self.folder / "output").open("w")
        command = [str(binary), "-p", str(self.folder), "-c", str(configuration)]
        self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT)
        self.master = self._process.pid

    def __enter__(self) -> Server:
        try:
            deadline = time.monotonic() + 20
            while len(self.workers()) < WORKERS or not self._listens():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"nginx did not start: {(self.folder / 'output').read_text().strip()}")
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End nginx, and remove its folder."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def workers(self) -> list[int]:
        """The process ids of the workers, now."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split()]
        return []

    def user_of(self, pid: int) -> str:
        """The name of the user that a process runs as."""
        import pwd

        return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name

    def ask(self) -> list[Answer]:
        """Ask every worker the question; returns one answer each, by worker.

        The kernel decides which worker gets a connection, so many are made at once: a busy worker leaves the next to
        the other.
        """
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + 20
        while set(self.workers()) - answers.keys():
            if time.monotonic() > deadline:
                raise DemoError("not every worker answered within 20 seconds")
            connections = [socket.create_connection(("127.0.0.1", self.port), 5) for _ in range(16)]
            for connection in connections:
                connection.sendall(f"GET {QUESTION} HTTP/1.0\r\n\r\n".encode())
            for connection in connections:
                answer = _read_answer(connection)
                if answer.worker in answers and answers[answer.worker].hole != answer.hole:
                    raise DemoError(f"worker {answer.worker} gave two different answers")
                answers[answer.worker] = answer
        return [answers[pid] for pid in sorted(answers)]

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def _read_answer(connection: socket.socket) -> Answer:
    with connection:
        raw = b""
        while part := connection.recv(65536):
            raw += part
    head, _, body = raw.partition(b"\r\n\r\n")
    for line in head.splitlines():
        if line.lower().startswith(b"x-worker: "):
            return Answer(int(line.split()[1]), body.decode(errors="replace"))
    raise DemoError(f"nginx gave no proper answer to {QUESTION}: {raw[:200]!r}")


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: the same number later means the same process (proc(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def mapped_file(pid: int) -> Path:
    """The program file that a process runs."""
    return Path(os.readlink(f"/proc/{pid}/exe"))
