"""dnsmasq: one thread, and an upstream server of ours that says what it likes."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Refused, Subject
from tests.corpus.servers import dns_answer, dns_name, dns_question, serve_udp
from tests.corpus.targets import PATIENCE, Daemon, ProbeError, Verdict, free_port, until


class Dnsmasq(Daemon):
    """CVE-2026-4893: with add-subnet, a reply for another client's network is not dropped."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
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
        super().__init__([str(subject.image), *options], scratch, port)

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

    def request(self) -> None:
        """Ask for a name."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            self._query(client, b"good")
            reply = client.recv(2048)
        if (reply[3] & 15, reply[7]) != (0, 1):
            raise ProbeError(f"dnsmasq answered {reply!r}")

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


DNSMASQ = Package(
    "dnsmasq",
    "2.90-4~deb12u2",
    f"make -j2 CFLAGS='{FLAGS}' COPTS=-DHAVE_DNSSEC",
    "src/dnsmasq",
    ("CVE-2026-4893.patch", "CVE-2026-2291.patch", "CVE-2026-4890.patch"),
)

CASES = (
    Case(
        DNSMASQ,
        "CVE-2026-4893",
        ("CVE-2026-4893.patch",),
        Patched(Dnsmasq, frozenset({"process_reply"})),
        quick=True,
    ),
    Case(
        DNSMASQ,
        "CVE-2026-2291",
        ("CVE-2026-2291.patch",),
        # one small function differs, by a sizeof; only the types tell that smaller objects are about
        Refused(frozenset({"MF111"}), frozenset({"bigname"})),
        quick=True,
    ),
)
