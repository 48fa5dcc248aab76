"""nginx: a server of workers, and its mail proxy."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Refused, Subject
from tests.corpus.servers import dns_answer, dns_name, dns_question, serve_tcp, serve_udp
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port, until


class Nginx(Daemon):
    """One master with two workers."""

    WORKERS = 2

    def __init__(self, subject: Subject, scratch: Path, port: int, blocks: str) -> None:
        (scratch / "logs").mkdir(exist_ok=True)
        configuration = scratch / "nginx.conf"
        user = "user root; " if os.geteuid() == 0 else ""  # the scratch folder is closed to others
        configuration.write_text(
            f"{user}daemon off; worker_processes {self.WORKERS}; error_log error.log; pid nginx.pid;\n"
            f"events {{ worker_connections 64; }}\n{blocks}\n"
        )
        super().__init__([str(subject.image), "-p", str(scratch), "-c", str(configuration)], scratch, port)
        self._workers: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers, which do the work, and the master, which would fork new ones."""
        return (*self._workers, self.process.pid)

    def wait_until_ready(self) -> None:
        """Return when the port is open and all workers are there."""
        super().wait_until_ready()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        until(lambda: len(children.read_text().split()) == self.WORKERS, "the workers of nginx")
        self._workers = tuple(map(int, children.read_text().split()))


class NginxRewrite(Nginx):
    """CVE-2026-42945: after a rewrite with arguments, a capture used in "set" is escaped, and cut to its own length."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {kind};" for kind in kinds)
        super().__init__(
            subject,
            scratch,
            port,
            f"http {{ {temporary} access_log off; server {{ listen 127.0.0.1:{port};"
            " location /t { rewrite ^(.*) /new?c=1; set $capture $1; return 200 $capture; } } }",
        )

    def request(self) -> None:
        """Ask for a page."""
        answer = self.ask(b"GET /t/a HTTP/1.0\r\n\r\n")
        if not answer.endswith(b"\r\n\r\n/t/a"):
            raise ProbeError(f"nginx answered {answer!r}")

    def probe(self) -> Verdict:
        """Ask often enough to meet both workers: they must agree."""
        seen = {self.ask(b"GET /t/a%25b HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2] for _ in range(20)}
        if seen == {b"/t/a%b"}:
            return Verdict.FIXED
        if seen == {b"/t/a%2"}:
            return Verdict.VULNERABLE
        raise ProbeError(f"nginx answered {seen}")


class NginxMail(Nginx):
    """CVE-2026-28753: the client's name goes from the reverse DNS into a header of the auth request, unchecked."""

    NAME = (b"bad host_x!", b"example")

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        self._requests: list[bytes] = []
        auth = serve_tcp(self._authenticate)
        resolver = serve_udp(self._resolve)
        super().__init__(
            subject,
            scratch,
            port,
            f"mail {{ server_name x; auth_http 127.0.0.1:{auth}/auth; resolver 127.0.0.1:{resolver} ipv6=off valid=1s;"
            f" server {{ listen 127.0.0.1:{port}; protocol smtp; smtp_auth none; }} }}",
        )

    def _authenticate(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        self._requests.append(request)
        connection.sendall(b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\nAuth-Wait: 1\r\n\r\n")

    def _resolve(self, query: bytes) -> bytes:
        question, _ = dns_question(query)
        kind = struct.unpack(">H", question[-4:-2])[0]
        data = {1: socket.inet_aton("127.0.0.1"), 12: dns_name(*self.NAME)}.get(kind)
        return dns_answer(query, kind, data)

    def request(self) -> None:
        """Say hello, and leave."""
        answer = self.ask(b"HELO x\r\nQUIT\r\n")
        if [line[:3] for line in answer.splitlines()] != [b"220", b"250", b"221"]:
            raise ProbeError(f"nginx answered {answer!r}")

    def probe(self) -> Verdict:
        """Begin a mail, and look at what the auth server was told."""
        self._requests.clear()
        with self.connect() as client:
            replies = client.makefile("rb")
            replies.readline()
            for line in (b"HELO x", b"MAIL FROM:<a@b>"):
                client.sendall(line + b"\r\n")
                replies.readline()
            client.sendall(b"RCPT TO:<c@d>\r\n")
            until(lambda: bool(self._requests), "the auth request of nginx")
        headers = [line for line in self._requests[0].split(b"\r\n") if line.startswith(b"Client-Host:")]
        if len(headers) == 1 and self.NAME[0] in headers[0]:
            return Verdict.VULNERABLE
        if headers == [b"Client-Host: [TEMPUNAVAIL]"]:
            return Verdict.FIXED
        raise ProbeError(f"nginx told the auth server {headers}")


class NginxDav(Nginx):
    """CVE-2026-27654: a destination shorter than the location's alias makes a length negative, and a copy endless.

    The worker dies of it at once, or says that there is no such page, and has another one's memory in its own.
    """

    lethal = True

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        folder = scratch / "a-folder-whose-name-is-long-enough-that-the-sum-of-lengths-stays-positive"
        folder.mkdir()
        (folder / "page").write_text("page")
        super().__init__(
            subject,
            scratch,
            port,
            f"http {{ access_log off; server {{ listen 127.0.0.1:{port};"
            f" location /documents/ {{ alias {folder}/; dav_methods COPY; }} }} }}",
        )

    def request(self) -> None:
        """Ask for a page."""
        answer = self.ask(b"GET /documents/page HTTP/1.0\r\n\r\n")
        if not answer.endswith(b"\r\n\r\npage"):
            raise ProbeError(f"nginx answered {answer!r}")

    def _copy(self, destination: bytes) -> bytes:
        return self.ask(b"COPY /documents/page HTTP/1.0\r\nHost: x\r\nDestination: http://x%s\r\n\r\n" % destination)

    def probe(self) -> Verdict:
        """Copy to a good place, and to one that is none."""
        good = self._copy(b"/documents/copy")
        if not good.startswith((b"HTTP/1.1 201 ", b"HTTP/1.1 204 ")):
            raise ProbeError(f"nginx answered {good!r}")
        answer = self._copy(b"/d")
        if answer.startswith(b"HTTP/1.1 400 "):
            return Verdict.FIXED
        if answer and not answer.startswith(b"HTTP/1.1 404 "):
            raise ProbeError(f"nginx answered {answer!r}")
        return Verdict.VULNERABLE


NGINX = Package(
    "nginx",
    "1.22.1-9+deb12u9",
    "[ -e objs/Makefile ] || ./configure --prefix=/usr/share/nginx --with-threads --with-mail --with-http_ssl_module"
    f" --with-http_dav_module --with-cc-opt='{FLAGS}'; make -j2",
    "objs/nginx",
    ("CVE-2026-42945.patch", "CVE-2026-28753.patch", "CVE-2026-40701.patch", "CVE-2026-27654.patch"),
)

CASES = (
    Case(
        NGINX,
        "CVE-2026-42945",
        ("CVE-2026-42945.patch",),
        # reached only through pointers in compiled scripts on the heap
        Patched(NginxRewrite, frozenset({"ngx_http_script_regex_end_code"})),
    ),
    Case(
        NGINX,
        "CVE-2026-28753",
        ("CVE-2026-28753.patch",),
        # uses file-local data of the running process, and a new static function
        Patched(NginxMail, frozenset({"ngx_mail_smtp_resolve_addr_handler"})),
    ),
    Case(
        NGINX,
        "CVE-2026-27654",
        ("CVE-2026-27654.patch",),
        # one big function of many jumps
        Patched(NginxDav, frozenset({"ngx_http_dav_copy_move_handler"})),
    ),
    Case(
        NGINX,
        "CVE-2026-40701",
        ("CVE-2026-40701.patch",),
        # a pointer in the middle of a struct whose objects live as long as an OCSP query
        Refused(frozenset({"MF111"}), frozenset({"ngx_ssl_ocsp_ctx_s"})),
    ),
)
