"""Which addresses the server itself may connect to on somebody's behalf; pure but for :func:`resolve`.

A webhook's URL is given by a person with few rights on the network the server stands in, so it must not become a way
into that network (CWE-918). The name is resolved once, every address is judged, and the connection goes to the judged
address itself: a name that answers otherwise a moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from midflight.errors import InputError, MidflightError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_SHARED = ip_network("100.64.0.0/10")  # RFC 6598
_SITE_LOCAL = ip_network("fec0::/10")  # RFC 3879: deprecated, and routed inside some networks all the same
_MAX_URL = 2048


class DestinationRefused(MidflightError):
    """The server does not connect there."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL taken apart. ``host`` is ASCII; ``path`` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks that an administrator allows, such as ``10.1.2.0/24``.

    Raises:
        InputError: one is no network.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise InputError(f"webhooks.allow: {error}; give addresses or networks such as 10.1.2.0/24") from None
    return tuple(found)


def parse(url: str) -> Destination:
    """Take a webhook's URL apart.

    Raises:
        InputError: it is none, has a name or password in it, or is of another scheme than http and https.
    """
    if len(url) > _MAX_URL or any(ord(character) <= 0x20 or ord(character) >= 0x7F for character in url):
        raise InputError(
            "the URL is too long, or has spaces or characters that are not ASCII; write it percent-encoded"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url}: {error}; give a URL such as https://hooks.example.com/midflight") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InputError(f"{url}: no http or https URL; give one such as https://hooks.example.com/midflight")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise InputError("a URL must not hold a name, a password or a backslash; deliveries are signed instead")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path)


def judge(address: Address, allowed: Iterable[Network] = (), scheme: str = "https") -> None:
    """Whether the server may connect to the address.

    An address that an administrator allows may be reached by http too; any other must be public, and by https.

    Raises:
        DestinationRefused: says why not.
    """
    bare = _bare(address)
    if any(bare.version == network.version and bare in network for network in allowed):
        return
    # is_global alone calls multicast global; and what carries another address in itself is judged by that one
    inside = any(bare.version == network.version and bare in network for network in (_SITE_LOCAL, _SHARED))
    if not bare.is_global or bare.is_multicast or bare.is_reserved or inside:
        raise DestinationRefused(
            f"{bare} is not a public address; an administrator can allow it with webhooks.allow in server.toml"
        )
    if scheme != "https":
        raise DestinationRefused(
            f"{bare} would be reached without TLS; use https, or let an administrator allow it with webhooks.allow"
        )


def judge_literal(destination: Destination, allowed: Iterable[Network] = ()) -> None:
    """Judge a destination that is named by its address; one that has a name is judged when it is resolved.

    Raises:
        DestinationRefused: says why not.
    """
    try:
        address = ip_address(destination.host)
    except ValueError:
        return
    judge(address, allowed, destination.scheme)


def resolve(destination: Destination, allowed: Iterable[Network] = ()) -> Address:
    """The one address to connect to: every address of the name must be allowed.

    Raises:
        DestinationRefused: the name does not resolve, or one of its addresses is not allowed.
    """
    permitted = tuple(allowed)
    try:
        answers = socket.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DestinationRefused(f"{destination.host} does not resolve ({error}); mend the URL or the DNS") from None
    found = [ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]
    for address in found:
        judge(address, permitted, destination.scheme)
    return found[0]


def _bare(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address
