"""dnsmasq: one thread, and an upstream server of ours that says what it likes."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from abc import abstractmethod
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Refused, Subject
from tests.corpus.servers import dns_answer, dns_name, dns_question, serve_udp
from tests.corpus.targets import PATIENCE, Daemon, ProbeError, Verdict, free_port, processor_seconds, until


class Dnsmasq(Daemon):
    """A forwarder to our upstream server."""

    def __init__(self, subject: Subject, scratch: Path, *options: str) -> None:
        port = free_port()
        self.numbers = itertools.count(1)
        command = (
            "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --pid-file="
            f" --listen-address=127.0.0.1 --port={port} --server=127.0.0.1#{serve_udp(self.upstream)}"
            " --log-facility=/dev/null"
        ).split()
        if os.geteuid() == 0:
            command += ["--user=root", "--group=root"]
        super().__init__([str(subject.image), *command, *options], scratch, port)

    @abstractmethod
    def upstream(self, query: bytes) -> bytes:
        """The upstream server's reply."""

    def query(self, client: socket.socket, kind: bytes) -> None:
        """Ask for a new name."""
        number = next(self.numbers)
        header = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0)
        question = dns_name(kind, b"n%d" % number, b"test") + struct.pack(">HH", 1, 1)
        client.sendto(header + question, ("127.0.0.1", self.port))

    def request(self) -> None:
        """Ask for a name."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            self.query(client, b"good")
            reply = client.recv(2048)
        if (reply[3] & 15, reply[7]) != (0, 1):
            raise ProbeError(f"dnsmasq answered {reply!r}")


class DnsmasqSubnet(Dnsmasq):
    """CVE-2026-4893: with add-subnet, a reply for another client's network is not dropped."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self._answered = threading.Event()
        super().__init__(subject, scratch, "--add-subnet=24")

    def upstream(self, query: bytes) -> bytes:
        """A reply that has the client subnet of the query, but another one for names in "evil"."""
        question, rest = dns_question(query)
        record = bytearray(rest)  # the OPT record that dnsmasq added, see RFC 7871
        if b"\x04evil" in question:
            # after the fixed part of the record (11): code 8, length, family, two prefix lengths, then the address
            option = record.index(struct.pack(">H", 8), 11)
            record[option + 8] ^= 0x55
            self._answered.set()
        return dns_answer(query, 1, socket.inet_aton("192.0.2.7"), bytes(record))

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
            self.query(evil, b"evil")
            until(self._answered.is_set, "a query from dnsmasq")
            good.settimeout(PATIENCE)
            for _ in range(2):
                self.query(good, b"good")
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


class DnsmasqProof(Dnsmasq):
    """CVE-2026-4890: a bitmap window without bytes in a proof that a record does not exist is looked at for ever.

    Proofs are looked at in zones too that nobody vouches for: the trust anchor has an algorithm that nobody knows.
    """

    lethal = True
    MUCH = 1.0
    """Seconds of processor time, a hundred times what an answer takes."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        options = ("--dnssec", "--dnssec-no-timecheck", "--trust-anchor=.,1,250,250,00")
        super().__init__(subject, scratch, *options)

    def upstream(self, query: bytes) -> bytes:
        """For names in "evil" nothing, with a proof of it (NSEC and RRSIG, RFC 4034)."""
        question, _ = dns_question(query)
        if b"\x04evil" not in question:
            return dns_answer(query, 1, socket.inet_aton("192.0.2.7"))
        window = b"\x01\x00"
        data = (
            (47, dns_name() + window),
            (46, struct.pack(">HBBIIIH", 47, 8, 3, 60, 2**31 - 1, 0, 1) + dns_name(b"test") + bytes(64)),
        )
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(text)) + text for kind, text in data)
        return query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, 0, len(data), 0) + question + records

    def probe(self) -> Verdict:
        """Ask for such a name: an answer comes, or the server works on it without end."""
        before = processor_seconds(self.process.pid)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.1)
            self.query(client, b"evil")
            while processor_seconds(self.process.pid) - before < self.MUCH:
                try:
                    reply = client.recv(2048)
                except TimeoutError:
                    continue
                if (reply[3] & 15, reply[7]) != (0, 0):
                    raise ProbeError(f"dnsmasq answered {reply!r}")
                return Verdict.FIXED
        self.process.kill()  # it listens to nothing any more
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
        Patched(DnsmasqSubnet, frozenset({"process_reply"})),
        quick=True,
    ),
    Case(
        DNSMASQ,
        "CVE-2026-4890",
        ("CVE-2026-4890.patch",),
        # static functions, one of them inlined
        Patched(DnsmasqProof, frozenset({"check_nsec3_coverage", "prove_non_existence"})),
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
