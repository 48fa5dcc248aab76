"""One HTTP POST to an address that was judged before: no redirects, no proxies, bounded in time and size."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

from midflight.errors import MidflightError
from midflight.server.outputs.destination import Address, Destination

CONNECT_S = 5.0
TOTAL_S = 15.0
MAX_ANSWER = 16 << 10


class DeliveryFailed(MidflightError):
    """The other side could not be reached, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    begin: bytes
    """Of the body, at most ``MAX_ANSWER``."""
    retry_after: str | None
    """The header, as it stands."""


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the name resolves to by now. TLS still checks the name."""

    def __init__(self, destination: Destination, address: Address, tls: ssl.SSLContext | None) -> None:
        super().__init__(destination.host, destination.port, timeout=CONNECT_S)
        self._address = address
        self._tls = tls

    def connect(self) -> None:
        sock = socket.create_connection((str(self._address), self.port), CONNECT_S)
        try:
            sock.settimeout(TOTAL_S)
            self.sock = self._tls.wrap_socket(sock, server_hostname=self.host) if self._tls else sock
        except BaseException:
            sock.close()
            raise


def post(
    destination: Destination,
    address: Address,
    body: bytes,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send the body. A redirect is an answer like any other: not followed.

    Args:
        tls: for https; the system's certificates when None.

    Raises:
        DeliveryFailed: no connection, no valid certificate, or no answer in time.
    """
    context = (tls or ssl.create_default_context()) if destination.scheme == "https" else None
    connection = _Pinned(destination, address, context)
    end = time.monotonic() + TOTAL_S
    try:
        connection.putrequest("POST", destination.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": destination.authority, "Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.putheader("Connection", "close")
        connection.endheaders(body)
        response = connection.getresponse()
        answer = b""
        while len(answer) < MAX_ANSWER and time.monotonic() < end:
            piece = response.read1(MAX_ANSWER - len(answer))
            if not piece:
                break
            answer += piece
        return Answer(response.status, answer, response.headers.get("Retry-After"))
    except (OSError, http.client.HTTPException) as error:
        text = str(error) or type(error).__name__
        raise DeliveryFailed(
            f"{destination.authority}: {text}; see whether it listens and its certificate is valid"
        ) from None
    finally:
        connection.close()
