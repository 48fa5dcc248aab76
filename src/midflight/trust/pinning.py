"""The pinned connection to the server: HTTPS whose other side must have a key that we know (RFC 7469, section 2.4).

A pin is the sha256 of a public key (SubjectPublicKeyInfo). The server's leaf certificate must have one of the pinned
keys; who issued that certificate, for which name and until when, does not matter. So no authority can put somebody
between device and server, and certificates may be renewed freely while their key stays.
"""

from __future__ import annotations

import re
import ssl
import time as clock
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from midflight import __version__
from midflight.trust.encoding import from_base64, to_base64
from midflight.trust.errors import ServerRefused, TrustError

MAX_BODY = 4 << 20
USER_AGENT = f"midflight/{__version__}"

_PIN = re.compile(r"sha256/([A-Za-z0-9+/]{43}=)")


@dataclass(frozen=True, slots=True)
class Pin:
    """sha256 of a public key; written ``sha256/BASE64``."""

    digest: bytes

    def __str__(self) -> str:
        return f"sha256/{to_base64(self.digest)}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, between two pieces of an answer, and for the whole answer."""

    connect: float = 10.0
    read: float = 30.0
    total: float = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def parse_pin(text: str) -> Pin:
    """Read a pin (``sha256/BASE64``).

    Raises:
        TrustError: it is none.
    """
    found = _PIN.fullmatch(text)
    if found is not None:
        try:
            return Pin(from_base64(found[1]))
        except ValueError:
            pass
    raise TrustError(f"{text[:80]!r} is not a pin; one looks like sha256/ and 44 characters of base64", "malformed")


def pin_of(certificate: bytes) -> Pin:
    """The pin of a certificate's key; the certificate in DER or PEM.

    Raises:
        TrustError: it cannot be read.
    """
    try:
        if certificate.lstrip().startswith(b"-----"):
            read = x509.load_pem_x509_certificate(certificate)
        else:
            read = x509.load_der_x509_certificate(certificate)
        key = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        raise TrustError("the certificate cannot be read; give the server's certificate in PEM", "malformed") from None
    return Pin(sha256(key).digest())


class PinnedClient:
    """Speaks with the server at ``base_url`` and with nobody else. One connection is kept open between requests.

    Args:
        base_url: ``https://host[:port][/prefix]``.
        pins: keys that the server may have; one in use, and backups.
        proxy: ``http://[user:password@]host:port``; the connection goes through it with CONNECT, and is pinned all
            the same.
    """

    def __init__(
        self, base_url: str, pins: Iterable[Pin], proxy: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "https" or not parts.hostname:
            raise ServerRefused(f"{base_url} is not an https URL; only https can be pinned", "insecure")
        self.pins = frozenset(pins)
        if not self.pins:
            raise ServerRefused(f"no pin for {base_url} is given; ask whoever runs the server for its pins", "pin")
        self.base_url = base_url.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        context = pinned_context()
        settings: dict[str, Any] = {
            "num_pools": 1,
            "maxsize": 1,
            "ssl_context": context,
            "headers": {"user-agent": USER_AGENT},
        }
        self._manager: urllib3.PoolManager
        if proxy is None:
            self._manager = urllib3.PoolManager(**settings)
        else:
            where = urlsplit(proxy)
            if where.scheme != "http":  # within TLS to a proxy the server's key could not be seen
                raise ServerRefused(f"{proxy} is no proxy that can be used; give http://host:port", "insecure")
            credentials = f"{where.username}:{where.password or ''}" if where.username else None
            self._manager = urllib3.ProxyManager(
                proxy,
                proxy_headers=urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None,
                **settings,
            )
        self._manager.pool_classes_by_scheme = pinned_pools(self.pins)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_length: int = MAX_BODY,
    ) -> Reply:
        """Send one request and read the whole answer, whatever its status. Redirects are not followed, nothing is
        tried again.

        Args:
            path: from the base URL on, with the query; begins with a slash.

        Raises:
            ServerRefused: the server has none of the pinned keys, cannot be reached, is too slow, redirects, or
                answers with more than ``max_length`` bytes.
        """
        url = self.base_url + path
        end = clock.monotonic() + self.timeouts.total
        try:
            response = self._manager.request(
                method,
                url,
                body=body,
                headers={"user-agent": USER_AGENT, **(headers or {})},
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self.timeouts.connect, read=self.timeouts.read),
            )
        except urllib3.exceptions.HTTPError as error:
            raise _failure(self.base_url, error) from None
        try:
            content = self._body(response, max_length, end)
        except urllib3.exceptions.HTTPError as error:
            response.close()
            raise _failure(self.base_url, error) from None
        except BaseException:
            response.close()
            raise
        response.release_conn()
        if 300 <= response.status < 400 and response.status != 304:
            raise ServerRefused(
                f"{url} redirects to {response.headers.get('location', 'nowhere')[:200]}, which is not followed; "
                "correct the server's address",
                "redirect",
            )
        return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, content)

    def close(self) -> None:
        """Close the connection."""
        self._manager.clear()

    def __enter__(self) -> PinnedClient:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def _body(self, response: urllib3.BaseHTTPResponse, max_length: int, end: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := response.read1(64 << 10, decode_content=False):
            pieces.append(piece)
            size += len(piece)
            if size > max_length:
                raise ServerRefused(
                    f"{self.base_url} answers with more than {max_length} bytes; the rest was not read", "oversized"
                )
            if clock.monotonic() > end:
                raise ServerRefused(
                    f"{self.base_url} took more than {self.timeouts.total:g} s for an answer; try again later", "slow"
                )
        return b"".join(pieces)


class _PinError(urllib3.exceptions.HTTPError):
    """The other side has none of the pinned keys."""


def pinned_context() -> ssl.SSLContext:
    """What TLS itself checks of a pinned connection. Who issued the certificate is not asked: its key is compared
    before a byte is sent, by the pools of :func:`pinned_pools`, without which this context must not be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def pinned_pools(pins: frozenset[Pin]) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """For ``pool_classes_by_scheme`` of a manager: its https connections accept these keys alone."""
    return {"https": _pool_class(pins), "http": urllib3.HTTPConnectionPool}


def _pool_class(pins: frozenset[Pin]) -> type[HTTPSConnectionPool]:
    """A pool whose connections accept these keys alone."""

    class PinnedConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            certificate = self.sock.getpeercert(binary_form=True) if isinstance(self.sock, ssl.SSLSocket) else None
            if certificate is None or (found := pin_of(certificate)) not in pins:
                self.close()
                raise _PinError(
                    f"has {f'the key {found}' if certificate else 'no certificate'}, which is not pinned; somebody may "
                    "be between, or the server's key was changed without publishing it"
                )
            self.is_verified = True

    class PinnedPool(HTTPSConnectionPool):
        ConnectionCls = PinnedConnection

    return PinnedPool


def _failure(url: str, error: urllib3.exceptions.HTTPError) -> ServerRefused:
    if isinstance(error, _PinError):
        return ServerRefused(f"{url} {error}", "pin")
    late = isinstance(error, urllib3.exceptions.TimeoutError)
    if late and not isinstance(error, urllib3.exceptions.NewConnectionError):
        return ServerRefused(f"{url} did not answer in time; try again later", "slow")
    return ServerRefused(f"{url} cannot be reached: {plainly(error)}; check address, network and proxy", "unreachable")


def plainly(error: Exception) -> str:
    """What went wrong with a connection, without the name of the class that urllib3 begins with."""
    return re.sub(r"^\w+\(host=.*?\): ", "", str(error))
