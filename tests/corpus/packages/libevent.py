"""libevent: a web server that is made of it, and a struct that all of its users hold."""

from __future__ import annotations

from pathlib import Path

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, Refused, Subject, library
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port


class WebServer(Daemon):
    """CVE-2026-63382: a request with two lengths, by which it can be cut in two ways, is taken."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        environment = {"LD_LIBRARY_PATH": str(subject.image.parent)}
        super().__init__([str(subject.program), str(port)], scratch, port, environment)

    def _post(self, *headers: bytes, body: bytes) -> bytes:
        lines = (b"POST / HTTP/1.1", b"Host: x", b"Connection: close", *headers, b"", body)
        return self.ask(b"\r\n".join(lines))

    def request(self) -> None:
        """Send three bytes."""
        answer = self._post(b"Content-Length: 3", body=b"abc")
        if not answer.endswith(b"3 bytes"):
            raise ProbeError(f"the server answered {answer!r}")

    def probe(self) -> Verdict:
        """Send three bytes and both of their lengths."""
        answer = self._post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 400 "):
            return Verdict.FIXED
        if answer.startswith(b"HTTP/1.1 200 "):
            return Verdict.VULNERABLE
        raise ProbeError(f"the server answered {answer!r}")


LIBEVENT = Package(
    "libevent",
    "2.1.12-stable-8+deb12u1",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-openssl --disable-samples"
    f" --disable-libevent-regress --disable-static CFLAGS='{FLAGS}'; }}; make -j2 libevent.la",
    ".libs/libevent-2.1.so.7.0.1",
    # those without a case stand between the others
    tuple(f"CVE-2026-633{number}.patch" for number in (79, 81, 82, 83, 84, 85, 87, 88)),
)
_LINKED = (".libs/libevent.so",)
_INCLUDE = ("include",)

CASES = (
    Case(
        LIBEVENT,
        "CVE-2026-63382",
        ("CVE-2026-63382.patch",),
        # two new functions that are global, and others that are not
        Patched(
            WebServer,
            frozenset({"evhttp_get_body", "evhttp_read_header"}),
            HostProgram("libevent_http.c", _LINKED, _INCLUDE),
        ),
    ),
    Case(
        LIBEVENT,
        "CVE-2026-63385",
        ("CVE-2026-63385.patch",),
        # static, and inlined
        Patched(library, frozenset({"evhttp_add_header"}), HostProgram("libevent_header.c", _LINKED, _INCLUDE)),
    ),
    Case(
        LIBEVENT,
        "CVE-2026-63388",
        ("CVE-2026-63388.patch",),
        # every bufferevent of a process has the old size
        Refused(frozenset({"MF111"}), frozenset({"bufferevent_private"})),
    ),
)
