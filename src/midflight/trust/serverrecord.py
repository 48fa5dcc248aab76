"""The server's record: by which keys devices know the server. It is a TUF target (``server.json``), signed offline.

Pins name the TLS keys of the server (or of the proxy before it), instruction keys sign instructions. Both rotate by
publishing a new record; a stolen server cannot name keys of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from midflight.patch.fields import FieldError, hex_bytes, integer, many, pattern, record
from midflight.trust.encoding import canonical, decode_canonical
from midflight.trust.errors import TrustError
from midflight.trust.keys import PublicKey
from midflight.trust.pinning import Pin, parse_pin

TARGET = "server.json"
"""Its path among the TUF targets."""
VERSION = 1
MAX_RECORD = 64 << 10


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """What devices believe of their server."""

    urls: tuple[str, ...]
    pins: tuple[Pin, ...]
    """At least two: the key in use, and a backup that is kept offline."""
    instruction_keys: tuple[PublicKey, ...]
    """Sign instructions; kept by the server."""
    hotpatch_keys: tuple[PublicKey, ...] = ()
    """Sign hotpatch files; kept by their authors. Agents trust them beside their own trusted keys."""


def encode_record(server: ServerRecord) -> bytes:
    """The record as canonical JSON.

    Raises:
        TrustError: no device would take it.
    """
    data = canonical(
        {
            "version": VERSION,
            "urls": list(server.urls),
            "pins": [str(pin) for pin in server.pins],
            "instruction_keys": [key.raw.hex() for key in server.instruction_keys],
            "hotpatch_keys": [key.raw.hex() for key in server.hotpatch_keys],
        }
    )
    decode_record(data)
    return data


def decode_record(data: bytes) -> ServerRecord:
    """Read a record, whose bytes TUF has verified.

    Raises:
        TrustError: reason ``malformed``.
    """
    try:
        if len(data) > MAX_RECORD:
            raise FieldError(f"has more than {MAX_RECORD} bytes")
        return decode_canonical(data, _record)
    except FieldError as error:
        raise TrustError(f"the server's record ({TARGET}): {error}; publish a correct one", "malformed") from None


def _pin(value: object) -> Pin:
    try:
        return parse_pin(str(value))
    except TrustError as error:
        raise FieldError(str(error)) from None


def _keys(value: object) -> tuple[PublicKey, ...]:
    return tuple(PublicKey(raw) for raw in _raw_keys(value))


def _make(
    hotpatch_keys: tuple[PublicKey, ...],
    instruction_keys: tuple[PublicKey, ...],
    pins: tuple[Pin, ...],
    urls: tuple[str, ...],
    version: int,
) -> ServerRecord:
    if not instruction_keys:
        raise FieldError("must have at least one key", ".instruction_keys")
    if len(set(pins)) != len(pins):
        raise FieldError("must differ: a backup that equals the first is none", ".pins")
    return ServerRecord(urls, pins, instruction_keys, hotpatch_keys)


_raw_keys = many(hex_bytes(32), 0, 32)
_record = record(
    _make,
    hotpatch_keys=_keys,
    instruction_keys=_keys,
    pins=many(_pin, 2, 16),
    urls=many(pattern(r"https://[!-~]{1,500}", "an https URL"), 1, 16),
    version=integer(VERSION, VERSION),
)
