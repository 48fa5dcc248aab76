"""The servers that the servers under test ask: upstream DNS, authentication, the backend of a proxy."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable


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
