"""A real HTTPS server on loopback, and a real CONNECT proxy before it."""

from __future__ import annotations

import http.client
import ipaddress
import select
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from midflight.trust.pinning import Pin, pin_of


class Handler(BaseHTTPRequestHandler):
    """Without a log on standard error, and with connections that stay open."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Ends with its test, whatever its clients do."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error of ours."""


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """The base URL of a running server."""
    server = Server(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(key: ec.EllipticCurvePrivateKey | None = None) -> tuple[ssl.SSLContext, Pin, bytes]:
    """A server's context with a self-signed certificate, the pin of its key, and the certificate in PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "midflight test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "server.pem")
        file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context.load_cert_chain(file)
    return context, pin_of(pem), pem


@contextmanager
def connect_proxy() -> Iterator[tuple[str, list[str]]]:
    """A CONNECT proxy (RFC 9110 section 9.3.6): its URL, and the list of where it was asked to connect to."""
    asked: list[str] = []

    class Proxy(Handler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as beyond:
                self.send_response(200)
                self.end_headers()
                _relay(self.connection, beyond)
            self.close_connection = True

        def do_GET(self) -> None:
            asked.append(self.path)
            where = urlsplit(self.path)
            connection = http.client.HTTPConnection(where.netloc)
            connection.request("GET", where.path)
            found = connection.getresponse()
            self.answer(found.status, found.read())
            connection.close()

    with serve(Proxy) as url:
        yield url, asked


def _relay(one: socket.socket, two: socket.socket) -> None:
    ends = {one: two, two: one}
    while True:
        for ready in select.select([one, two], [], [], 10)[0]:
            data = ready.recv(65536)
            if not data:
                return
            ends[ready].sendall(data)


def handler(get: Callable[[Handler], None]) -> type[Handler]:
    """A handler that answers GET and POST with a function."""

    class Answering(Handler):
        def do_GET(self) -> None:
            get(self)

        def do_POST(self) -> None:
            get(self)

    return Answering
