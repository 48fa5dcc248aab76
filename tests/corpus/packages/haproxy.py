"""haproxy: a proxy of two threads."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Subject
from tests.corpus.servers import serve_tcp
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port, processor_seconds


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

    def _cost(self, exponent: int) -> float:
        before = processor_seconds(self.process.pid)
        answer = self.ask(
            b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-J: {"a": 1e%d}\r\n\r\n' % exponent,
        )
        if b" 200 " not in answer[:20]:
            raise ProbeError(f"haproxy answered {answer!r}")
        return processor_seconds(self.process.pid) - before

    def probe(self) -> Verdict:
        """Compare what a small and a large exponent cost."""
        self._requests.clear()
        self._cost(5)
        if b"x-v: 100000" not in self._requests[0]:
            raise ProbeError(f"haproxy does not read the number: {self._requests[0]!r}")
        return Verdict.VULNERABLE if self._cost(self.EXPONENT) > self.MUCH else Verdict.FIXED


class HaproxyFragment(Haproxy):
    """CVE-2023-45539: a request for a path with a # in it is passed on, and means another page to the next server."""

    def probe(self) -> Verdict:
        """Ask for such a path."""
        answer = self.ask(b"GET /a.png#/../secret HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 400 "):
            return Verdict.FIXED
        if answer.startswith(b"HTTP/1.1 200 "):
            return Verdict.VULNERABLE
        raise ProbeError(f"haproxy answered {answer!r}")


_NUMBER = "0001-BUG-CRITICAL-mjson-fix-possible-DoS-when-parsing-num.patch"
_FRAGMENT = (
    "MINOR-ist-add-new-function-ist_find_range-to-find-a-.patch",
    "MINOR-http-add-new-function-http_path_has_forbidden_.patch",
    "MINOR-h2-pass-accept-invalid-http-request-down-the-r.patch",
    "BUG-MINOR-h1-do-not-accept-as-part-of-the-URI-compon.patch",
    "BUG-MINOR-h2-reject-more-chars-from-the-path-pseudo-.patch",
    "BUG-MINOR-h3-reject-more-chars-from-the-path-pseudo-.patch",
)

HAPROXY = Package(
    "haproxy",
    "2.6.12-1+deb12u3",
    f"make -j2 haproxy TARGET=linux-glibc CPU_CFLAGS='{FLAGS}'",
    "haproxy",
    (_NUMBER, *_FRAGMENT),
)

CASES = (
    Case(
        HAPROXY,
        "CVE-2025-11230",
        (_NUMBER,),
        # floating-point constants go along; mjson_print_dbl has the same ones under other labels, and stays
        Patched(Haproxy, frozenset({"mystrtod"})),
    ),
    Case(
        HAPROXY,
        "CVE-2023-45539",
        _FRAGMENT,
        # a signature changes together with its only caller; other functions differ by a line number in a message
        Patched(
            HaproxyFragment,
            frozenset(
                {
                    "h1_headers_to_hdr_list",
                    "h2_make_htx_request",
                    "h2_rcv_buf",
                    "h2_snd_buf",
                    "h2_subscribe",
                    "h2_unsubscribe",
                    "h2c_decode_headers",
                    "h2c_handle_data",
                    "h2s_bck_make_req_headers",
                    "h2s_frt_make_resp_headers",
                }
            ),
        ),
        reviewed={
            "MF112:h2_make_htx_request": "h2c_decode_headers alone calls it, and is replaced in the same stop; "
            "no module is loaded that could find it by its exported name"
        },
    ),
)
