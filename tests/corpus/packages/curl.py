"""curl: one option in a function that is one large switch, and two proxies of ours."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, Refused, Subject
from tests.corpus.servers import serve_tcp
from tests.corpus.targets import Host


class Proxies(Host):
    """A host program between two proxies: the first asks for a login, the second says whether it was given one."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        assert subject.program is not None
        environment = {"FIRST_PROXY": str(serve_tcp(self._first)), "SECOND_PROXY": str(serve_tcp(self._second))}
        super().__init__(subject.program, subject.image.parent, scratch, environment)

    @staticmethod
    def _first(connection: socket.socket) -> None:
        if b"\r\nProxy-Authorization: Digest " in _read_head(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nLOGGED IN")
            return
        challenge = b'Proxy-Authenticate: Digest realm="here", nonce="once", algorithm=MD5'
        connection.sendall(
            b"HTTP/1.1 407 Login\r\n" + challenge + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )

    @staticmethod
    def _second(connection: socket.socket) -> None:
        body = b"VULNERABLE" if b'nonce="once"' in _read_head(connection) else b"FIXED"
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
        head += piece
    return head


CURL = Package(
    "curl",
    "7.88.1-10+deb12u15",
    # the last two patches only rename the library, for its flavours with other TLS libraries
    "[ -e config.status ] || { for flavour in 99_nss 90_gnutls; do"
    " patch -s -R -p1 < debian/patches/$flavour.patch; done;"
    " autoreconf -fi && ./configure --disable-static --without-ssl --disable-ldap --without-libpsl --without-zlib"
    " --without-brotli --without-zstd --without-nghttp2 --without-libidn2 --without-librtmp --disable-manual"
    f" --disable-docs CFLAGS='{FLAGS}'; }}; make -C lib -j2 libcurl.la",
    "lib/.libs/libcurl.so.4.8.0",
    ("CVE-2023-38546.patch", "CVE-2026-7168.patch"),
)

CASES = (
    Case(
        CURL,
        "CVE-2026-7168",
        ("CVE-2026-7168.patch",),
        Patched(
            Proxies,
            frozenset({"Curl_vsetopt"}),
            HostProgram("curl.c", ("lib/.libs/libcurl.so",), ("include",)),
        ),
    ),
    Case(
        CURL,
        "CVE-2023-38546",
        ("CVE-2023-38546.patch",),
        # live cookie jars have another layout, and another number of buckets
        Refused(frozenset({"MF111"}), frozenset({"Cookie", "CookieInfo"})),
    ),
)
