"""haproxy: a proxy of two threads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Subject
from tests.corpus.servers import serve_tcp
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port


class Haproxy(Daemon):
    """CVE-2025-11230: a JSON number costs processor time in proportion to its exponent."""

    EXPONENT = 100_000_000
    """Its rounds take 0.1 to 0.5 s of processor time; after a second of it haproxy's watchdog would end the process."""
    MUCH = 0.05
    """Seconds of processor time; a fixed server needs less than a thousandth."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        configuration = scratch / "haproxy.cfg"
        configuration.write_text(f"""\
global
  maxconn 50
  nbthread 2
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 30s
frontend front
  bind 127.0.0.1:{port}
  http-request set-header X-V %[req.hdr(x-j),json_query('$.a')]
  default_backend back
backend back
  server s 127.0.0.1:{serve_tcp(self._respond)}
""")
        self._requests: list[bytes] = []
        super().__init__([str(subject.image), "-db", "-f", str(configuration)], scratch, port)

    def _respond(self, connection: socket.socket) -> None:
        self._requests.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def request(self) -> None:
        """Ask for a page."""
        answer = self.ask(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\nok"):
            raise ProbeError(f"haproxy answered {answer!r}")

    def _used(self) -> float:
        """Processor seconds of the process so far, all threads, see proc(5)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _cost(self, exponent: int) -> float:
        before = self._used()
        answer = self.ask(
            b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-J: {"a": 1e%d}\r\n\r\n' % exponent,
        )
        if b" 200 " not in answer[:20]:
            raise ProbeError(f"haproxy answered {answer!r}")
        return self._used() - before

    def probe(self) -> Verdict:
        """Compare what a small and a large exponent cost."""
        self._requests.clear()
        self._cost(5)
        if b"x-v: 100000" not in self._requests[0]:
            raise ProbeError(f"haproxy does not read the number: {self._requests[0]!r}")
        return Verdict.VULNERABLE if self._cost(self.EXPONENT) > self.MUCH else Verdict.FIXED


HAPROXY = Package(
    "haproxy",
    "2.6.12-1+deb12u3",
    f"make -j2 haproxy TARGET=linux-glibc CPU_CFLAGS='{FLAGS}'",
    "haproxy",
)

CASES = (
    Case(
        HAPROXY,
        "CVE-2025-11230",
        ("0001-BUG-CRITICAL-mjson-fix-possible-DoS-when-parsing-num.patch",),
        # floating-point constants go along; mjson_print_dbl has the same ones under other labels, and stays
        Patched(Haproxy, frozenset({"mystrtod"})),
    ),
)
