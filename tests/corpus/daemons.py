"""The servers of the corpus: how each is started, and how its hole is seen from outside.

A probe looks at what the server does, and never at a clock: where the hole is time, processor time is counted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from tests.corpus.targets import PATIENCE, Daemon, ProbeError, Verdict, free_port, until

# --- nginx -----------------------------------------------------------------------------------------------------------


class Nginx(Daemon):
    """One master with two workers."""

    WORKERS = 2

    def __init__(self, tree: Path, scratch: Path, port: int, blocks: str) -> None:
        (scratch / "logs").mkdir(exist_ok=True)
        configuration = scratch / "nginx.conf"
        configuration.write_text(
            f"daemon off; worker_processes {self.WORKERS}; error_log error.log; pid nginx.pid;\n"
            f"events {{ worker_connections 64; }}\n{blocks}\n"
        )
        super().__init__([str(tree / "objs/nginx"), "-p", str(scratch), "-c", str(configuration)], scratch, port)
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

    def __init__(self, tree: Path, scratch: Path) -> None:
        port = free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {kind};" for kind in kinds)
        super().__init__(
            tree,
            scratch,
            port,
            f"http {{ {temporary} access_log off; server {{ listen 127.0.0.1:{port};"
            " location /t { rewrite ^(.*) /new?c=1; set $capture $1; return 200 $capture; } } }",
        )

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

    def __init__(self, tree: Path, scratch: Path) -> None:
        port = free_port()
        self._requests: list[bytes] = []
        auth = serve_tcp(self._authenticate)
        resolver = serve_udp(self._resolve)
        super().__init__(
            tree,
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


# --- redis -----------------------------------------------------------------------------------------------------------


class Redis(Daemon):
    """A server that saves nothing."""

    def __init__(self, tree: Path, scratch: Path, *options: str) -> None:
        port = free_port()
        base = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        super().__init__([str(tree / "src/redis-server"), *base, *options], scratch, port)

    def command(self, connection: socket.socket, *words: bytes) -> bytes:
        """Send one command; returns the first line of the answer, or the string if that is the answer."""
        connection.sendall(redis_command(*words))
        with connection.makefile("rb") as replies:
            line = replies.readline()
            if line.startswith(b"$") and not line.startswith(b"$-"):
                return replies.read(int(line[1:]) + 2)[:-2]
            return line.rstrip(b"\r\n")


class RedisSelector(Redis):
    """CVE-2024-51741: an ACL key permission without a flag is accepted (and crashes the server when it is used)."""

    def probe(self) -> Verdict:
        """Give such a permission to a user that nobody is."""
        with self.connect() as connection:
            answer = self.command(connection, b"ACL", b"SETUSER", b"probe", b"%")
            self.command(connection, b"ACL", b"DELUSER", b"probe")
        if answer == b"+OK":
            return Verdict.VULNERABLE
        if b"Syntax error" in answer:
            return Verdict.FIXED
        raise ProbeError(f"redis answered {answer!r}")


class RedisBuffer(Redis):
    """CVE-2025-21605: a client that never logged in and reads nothing makes the server buffer without a limit."""

    ENOUGH = 100_000
    """Bytes; a hundred times what a client may have buffered before it has logged in."""

    def __init__(self, tree: Path, scratch: Path) -> None:
        super().__init__(tree, scratch, "--requirepass", "secret")

    def probe(self) -> Verdict:
        """Send commands, and see from another connection what becomes of their answers."""
        with self.connect() as stranger, self.connect() as admin:
            if self.command(admin, b"AUTH", b"secret") != b"+OK":
                raise ProbeError("redis does not let the administrator in")
            address = b"addr=%s:%d " % tuple(x if isinstance(x, int) else x.encode() for x in stranger.getsockname())
            stranger.setblocking(False)
            for _ in range(20_000):
                try:
                    stranger.send(b"GET x\r\n" * 1000)
                except BlockingIOError:
                    pass
                except (ConnectionResetError, BrokenPipeError):
                    return Verdict.FIXED
                lines = self.command(admin, b"CLIENT", b"LIST").splitlines()
                found = [line for line in lines if address in line]
                if not found:
                    return Verdict.FIXED
                if int(found[0].partition(b" omem=")[2].split()[0]) > self.ENOUGH:
                    return Verdict.VULNERABLE
        raise ProbeError("redis neither buffers answers nor ends the connection")


class RedisReplies(Redis):
    """CVE-2025-67733: a line break in what a client sent goes into error replies, and starts a reply of its own."""

    def probe(self) -> Verdict:
        """Two ways lead there, through three objects: they must agree."""
        ways = (
            (b"FUNCTION", b"LIST", b"x\r\n+INJECTED"),
            (b"EVAL", b"error({err=ARGV[1]})", b"0", b"no\r\n+INJECTED"),
        )
        escaped = set()
        for words in ways:
            with self.connect() as connection:
                line = self.command(connection, *words)
            if not line.startswith(b"-"):
                raise ProbeError(f"redis answered {line!r}")
            escaped.add(b"INJECTED" in line)
        if len(escaped) != 1:
            raise ProbeError("redis escapes line breaks in one place and not in the other")
        return Verdict.FIXED if escaped == {True} else Verdict.VULNERABLE


def redis_command(*words: bytes) -> bytes:
    """One command in the protocol of redis (RESP)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


# --- memcached -------------------------------------------------------------------------------------------------------


class Memcached(Daemon):
    """CVE-2026-47783: the check of a password stops at the user's line, so its time tells which users exist.

    Seen without a clock: the fixed check reads the file to its end, so a second line of the same user counts as well.
    """

    def __init__(self, tree: Path, scratch: Path) -> None:
        port = free_port()
        passwords = scratch / "passwords"
        passwords.write_text("other:x\nmike@here:first\nmike@here:second\n")
        (scratch / "memcached.conf").write_text("mech_list: plain\n")
        command = [str(tree / "memcached"), "-S", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "4"]
        if os.geteuid() == 0:
            command += ["-u", "root"]
        environment = {"MEMCACHED_SASL_PWDB": str(passwords), "SASL_CONF_PATH": str(scratch)}
        super().__init__(command, scratch, port, environment)

    def _login(self, password: bytes) -> bool:
        """SASL PLAIN in memcached's binary protocol; the status 0 is success."""
        header = ">BBHBBHIIQ"
        mechanism, secret = b"PLAIN", b"\0mike@here\0" + password
        length = len(mechanism) + len(secret)
        with self.connect() as connection:
            packed = struct.pack(header, 0x80, 0x21, len(mechanism), 0, 0, 0, length, 0, 0)
            connection.sendall(packed + mechanism + secret)
            answer = connection.recv(struct.calcsize(header), socket.MSG_WAITALL)
        if len(answer) != struct.calcsize(header):
            raise ProbeError("memcached closed the connection")
        return bool(struct.unpack(header, answer)[5] == 0)

    def probe(self) -> Verdict:
        """Log in with either password; each connection goes to the next thread."""
        if not self._login(b"first") or self._login(b"wrong"):
            raise ProbeError("memcached does not check passwords at all")
        seen = {self._login(b"second") for _ in range(8)}
        if len(seen) != 1:
            raise ProbeError("the threads of memcached do not agree")
        return Verdict.FIXED if seen == {True} else Verdict.VULNERABLE


# --- dnsmasq ---------------------------------------------------------------------------------------------------------


class Dnsmasq(Daemon):
    """CVE-2026-4893: with add-subnet, a reply for another client's network is not dropped."""

    def __init__(self, tree: Path, scratch: Path) -> None:
        port = free_port()
        self._answered = threading.Event()
        self._numbers = itertools.count(1)
        options = (
            "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --add-subnet=24"
            f" --listen-address=127.0.0.1 --port={port} --server=127.0.0.1#{serve_udp(self._answer)}"
            " --pid-file= --log-facility=/dev/null"
        ).split()
        if os.geteuid() == 0:
            options += ["--user=root", "--group=root"]
        super().__init__([str(tree / "src/dnsmasq"), *options], scratch, port)

    def _answer(self, query: bytes) -> bytes:
        """The upstream server: its reply has the client subnet of the query, but another one for names in "evil"."""
        question, rest = dns_question(query)
        record = bytearray(rest)  # the OPT record that dnsmasq added, see RFC 7871
        if b"\x04evil" in question:
            # after the fixed part of the record (11): code 8, length, family, two prefix lengths, then the address
            option = record.index(struct.pack(">H", 8), 11)
            record[option + 8] ^= 0x55
            self._answered.set()
        return dns_answer(query, 1, socket.inet_aton("192.0.2.7"), bytes(record))

    def _query(self, client: socket.socket, kind: bytes) -> None:
        number = next(self._numbers)
        header = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0)
        question = dns_name(kind, b"n%d" % number, b"test") + struct.pack(">HH", 1, 1)
        client.sendto(header + question, ("127.0.0.1", self.port))

    def probe(self) -> Verdict:
        """Ask for a name whose reply is for somebody else.

        dnsmasq has one thread and takes what came first no later than what came after it. So once a query is answered
        that was sent after the evil reply, the evil reply has been passed on, or it has been dropped.
        """
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as evil,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as good,
        ):
            self._answered.clear()
            self._query(evil, b"evil")
            until(self._answered.is_set, "a query from dnsmasq")
            good.settimeout(PATIENCE)
            for _ in range(2):
                self._query(good, b"good")
                reply = good.recv(2048)
                if (reply[3] & 15, reply[7]) != (0, 1):
                    raise ProbeError(f"dnsmasq answered a good query with {reply!r}")
            evil.setblocking(False)
            try:
                reply = evil.recv(2048)
            except BlockingIOError:
                return Verdict.FIXED
        if (reply[3] & 15, reply[7]) != (0, 1):
            raise ProbeError(f"dnsmasq answered the evil query with {reply!r}")
        return Verdict.VULNERABLE


# --- haproxy ---------------------------------------------------------------------------------------------------------


class Haproxy(Daemon):
    """CVE-2025-11230: a JSON number costs processor time in proportion to its exponent."""

    EXPONENT = 100_000_000
    """Its rounds take 0.1 to 0.5 s of processor time; after a second of it haproxy's watchdog would end the process."""
    MUCH = 0.05
    """Seconds of processor time; a fixed server needs less than a thousandth."""

    def __init__(self, tree: Path, scratch: Path) -> None:
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
        super().__init__([str(tree / "haproxy"), "-db", "-f", str(configuration)], scratch, port)

    def _respond(self, connection: socket.socket) -> None:
        self._requests.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

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


# --- servers that the servers ask ------------------------------------------------------------------------------------


def serve_udp(answer: Callable[[bytes], bytes]) -> int:
    """Answer every datagram, in a thread that ends with the test run; returns the port."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def run() -> None:
        while True:
            query, client = server.recvfrom(4096)
            server.sendto(answer(query), client)

    threading.Thread(target=run, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def serve_tcp(respond: Callable[[socket.socket], None]) -> int:
    """Serve connections one after the other, in a thread that ends with the test run; returns the port."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("127.0.0.1", 0))
    server.listen()

    def run() -> None:
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # a client may go away
                respond(connection)

    threading.Thread(target=run, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def dns_name(*labels: bytes) -> bytes:
    """A domain name as it stands in a DNS message (RFC 1035, 3.1)."""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def dns_question(query: bytes) -> tuple[bytes, bytes]:
    """The first question of a DNS message, and what follows it."""
    end = 12
    while query[end]:
        end += query[end] + 1
    return query[12 : end + 5], query[end + 5 :]


def dns_answer(query: bytes, kind: int, data: bytes | None, additional: bytes = b"") -> bytes:
    """The reply to a query: one record with ``data`` (None: no record), and one additional record if there is one."""
    question, _ = dns_question(query)
    counts = struct.pack(">HHHH", 1, data is not None, 0, bool(additional))
    record = b"" if data is None else b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(data)) + data
    return query[:2] + b"\x81\x80" + counts + question + record + additional
