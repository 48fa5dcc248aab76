"""c-ares: a resolver, and a DNS server of ours that sends an empty datagram before each answer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, Subject, library
from tests.corpus.servers import dns_answer
from tests.corpus.targets import Host


class Resolver(Host):
    """A host program that asks our DNS server."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        assert subject.program is not None
        environment = {"DNS_PORT": str(_serve_with_empty_datagrams())}
        super().__init__(subject.program, subject.image.parent, scratch, environment)


def _serve_with_empty_datagrams() -> int:
    """A DNS server in a thread that ends with the test run; returns the port."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def run() -> None:
        while True:
            query, client = server.recvfrom(4096)
            server.sendto(b"", client)
            server.sendto(dns_answer(query, 1, socket.inet_aton("192.0.2.7")), client)

    threading.Thread(target=run, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


C_ARES = Package(
    "c-ares",
    "1.18.1-3",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-tests --disable-static"
    f" CFLAGS='{FLAGS}'; }}; make -C src/lib -j2",
    "src/lib/.libs/libcares.so.2.5.1",
    ("CVE-2022-4904.diff", "CVE-2023-31130.diff", "CVE-2023-32067.diff"),
)
_LINKED = ("src/lib/.libs/libcares.so",)
_INCLUDE = ("include",)

CASES = (
    Case(
        C_ARES,
        "CVE-2023-32067",
        ("CVE-2023-32067.diff",),
        Patched(Resolver, frozenset({"read_udp_packets"}), HostProgram("cares_empty.c", _LINKED, _INCLUDE)),
    ),
    Case(
        C_ARES,
        "CVE-2023-31130",
        ("CVE-2023-31130.diff",),
        # static functions come, go and are renamed
        Patched(
            library,
            frozenset({"ares_inet_net_pton", "ares_inet_pton"}),
            HostProgram("cares_address.c", _LINKED, _INCLUDE),
        ),
    ),
    Case(
        C_ARES,
        "CVE-2022-4904",
        ("CVE-2022-4904.diff",),
        Patched(library, frozenset({"config_sortlist"}), HostProgram("cares_sortlist.c", _LINKED, _INCLUDE)),
    ),
)
