"""tinyproxy: a thread for each connection."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Subject
from tests.corpus.servers import serve_tcp
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port


class Tinyproxy(Daemon):
    """CVE-2023-49606: a Connection header that names itself is freed, and read on: what else it names is passed on,
    under a name that is other memory of the process by then. Sooner or later the process dies of it.
    """

    lethal = True

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        self._backend = serve_tcp(self._respond)
        configuration = scratch / "tinyproxy.conf"
        configuration.write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 30\nMaxClients 20\nLogLevel Critical\n")
        super().__init__([str(subject.image), "-d", "-c", str(configuration)], scratch, port)

    @staticmethod
    def _respond(connection: socket.socket) -> None:
        """Send the request back."""
        head = b""
        while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
            head += piece
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)

    def _get(self, *headers: bytes) -> bytes:
        address = b"127.0.0.1:%d" % self._backend
        lines = (b"GET http://%s/ HTTP/1.0" % address, b"Host: " + address, *headers, b"", b"")
        answer = self.ask(b"\r\n".join(lines))
        if b" 200 OK" not in answer[:20]:
            raise ProbeError(f"tinyproxy answered {answer!r}")
        return answer

    def request(self) -> None:
        """Ask for a page through the proxy."""
        self._get()

    def probe(self) -> Verdict:
        """Name a header as one of this connection alone: it must not be passed on, under whatever name."""
        if b": 42" in self._get(b"Connection: x-private", b"X-Private: 42"):
            raise ProbeError("tinyproxy removes no headers at all")
        try:
            passed = b": 42" in self._get(b"Connection: connection x-private", b"X-Private: 42")
        except ConnectionError:
            passed = True  # the process died of it
        return Verdict.VULNERABLE if passed else Verdict.FIXED


TINYPROXY = Package(
    "tinyproxy",
    "1.11.1-2.1+deb12u1",
    f"[ -e Makefile ] || {{ autoreconf -fi && ./configure --disable-manpage_support CFLAGS='{FLAGS}'; }};"
    " make -C src -j2",
    "src/tinyproxy",
)

CASES = (
    Case(
        TINYPROXY,
        "CVE-2023-49606",
        ("0002-CVE-2023-49606.patch",),
        # static; a static table of strings stays where it is
        Patched(Tinyproxy, frozenset({"remove_connection_headers"})),
        quick=True,
    ),
)
