"""Becoming a device of a server, and who this device is then.

Everything is in one folder, for root alone: ``server.json`` (the server: addresses, pins, where content is),
``identity.pem`` (:mod:`midflight.trust.devices`), ``trust/`` (the repository's metadata, from the first root on), and
the instructions that were verified last.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from midflight import __version__
from midflight.agent.fleet import FOLDER
from midflight.agent.fleet.facts import facts, machine, machine_id
from midflight.errors import InputError
from midflight.process.faults import point
from midflight.trust.checkin import ENROLL_PATH
from midflight.trust.client import ContentClient
from midflight.trust.devices import IDENTITY, begin_enrollment, finish_enrollment
from midflight.trust.enrollment import (
    MAX_MESSAGE,
    EnrollmentRequest,
    EnrollmentResponse,
    decode_response,
    encode_request,
)
from midflight.trust.errors import ServerRefused, TrustError
from midflight.trust.files import replace_file
from midflight.trust.keys import PublicKey
from midflight.trust.pinning import Pin, PinnedClient, Reply, Timeouts, parse_pin, pin_of
from midflight.trust.serverrecord import ServerRecord

_PROBLEM = "urn:midflight:problem"
SERVER, TRUST, KEPT = "server.json", "trust", "instructions.dsse"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The server of this device, as it was enrolled and as the repository has said since."""

    folder: Path
    device: str
    urls: tuple[str, ...]
    """None for a device without a network."""
    pins: tuple[Pin, ...]
    repositories: tuple[str, ...]
    instruction_keys: tuple[PublicKey, ...]
    interval_s: int
    hotpatch_keys: tuple[PublicKey, ...] = ()
    """Authors of hotpatches, of whom one must have signed each; none: the repository's word is enough."""

    @property
    def trust(self) -> Path:
        """The folder of the repository's metadata."""
        return self.folder / TRUST

    @property
    def connected(self) -> bool:
        """Whether there is a server to speak with."""
        return bool(self.urls)

    def save(self) -> None:
        """Write it, as a whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        document = {
            "device": self.device,
            "urls": self.urls,
            "pins": [str(pin) for pin in self.pins],
            "repositories": self.repositories,
            "instruction_keys": [key.raw.hex() for key in self.instruction_keys],
            "interval_s": self.interval_s,
            "hotpatch_keys": [key.raw.hex() for key in self.hotpatch_keys],
        }
        replace_file(self.folder / SERVER, json.dumps(document, indent=1).encode() + b"\n", 0o600)

    def followed(self, record: ServerRecord) -> Enrolled:
        """As a newer record of the repository says; the address that was given at enrollment stays the first choice
        while the record has it."""
        urls = tuple(url for url in self.urls if url in record.urls) + record.urls if self.urls else ()
        return replace(
            self,
            urls=tuple(dict.fromkeys(urls)),
            pins=record.pins,
            instruction_keys=record.instruction_keys,
            hotpatch_keys=record.hotpatch_keys,
        )


def load(state: Path) -> Enrolled | None:
    """The enrollment that is kept; None: this device has no server.

    Raises:
        InputError: it cannot be read.
    """
    folder = state / FOLDER
    path = folder / SERVER
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        enrolled = Enrolled(
            folder,
            str(found["device"]),
            tuple(map(str, found["urls"])),
            tuple(parse_pin(pin) for pin in found["pins"]),
            tuple(map(str, found["repositories"])),
            tuple(PublicKey(bytes.fromhex(key)) for key in found["instruction_keys"]),
            int(found["interval_s"]),
            tuple(PublicKey(bytes.fromhex(key)) for key in found["hotpatch_keys"]),
        )
    except (OSError, ValueError, KeyError, TypeError, TrustError) as error:
        raise InputError(f"{path} cannot be read ({error}); enroll this device again") from None
    if enrolled.connected and not (folder / IDENTITY).exists():
        return None  # the enrollment was not finished
    return enrolled


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the person who enrolls a device was given. Without pins, the server's certificate must be one that the
    system trusts, and its key is pinned from then on."""

    url: str
    token: str
    pins: tuple[Pin, ...] = ()
    root: bytes | None = None
    """The repository's root metadata, from a package or by hand; None: the server says it."""
    root_sha256: str | None = None
    labels: Mapping[str, str] | None = None
    proxy: str | None = None


def enroll(
    state: Path, invitation: Invitation, now: datetime, timeouts: Timeouts | None = None, again: bool = False
) -> Enrolled:
    """Enroll this device. May be called again after it was killed at any point: the same key is used.

    Args:
        again: enroll a device that is enrolled already: it gets a new key and certificate. Its trust in the
            repository stays (see :func:`forget`).

    Raises:
        InputError: it is enrolled already, or its folder cannot be written.
        TrustError: server or repository are not believed, or refuse.
    """
    folder = state / FOLDER
    if not again and load(state) is not None:
        raise InputError("this device is enrolled already; enroll it again with --again, as a new device with --forget")
    pins = invitation.pins or (system_pin(invitation.url),)
    request = begin_enrollment(folder)
    point("fleet-enroll-key")
    answer = _ask(invitation, pins, request, timeouts)
    point("fleet-enroll-answer")
    trust = folder / TRUST
    if not (trust / "root.json").exists():
        ContentClient.bootstrap(trust, invitation.root or answer.root.encode(), invitation.root_sha256)
    enrolled = Enrolled(
        folder, answer.device, (invitation.url.rstrip("/"),), pins, answer.repository_urls, (), answer.interval_s
    )
    record = client_of(enrolled, answer.repository_urls, invitation.proxy, timeouts).server_record()
    if record is None:
        raise TrustError("the repository does not say which keys the server has; publish server.json there", "missing")
    enrolled = replace(enrolled.followed(record), urls=enrolled.urls)
    enrolled.save()
    point("fleet-enroll-saved")
    finish_enrollment(folder, answer.certificate, answer.authority, now)
    point("fleet-enroll-finished")
    return enrolled


def enroll_by_hand(state: Path, device: str, mirror: Path, root: bytes, again: bool = False) -> Enrolled:
    """Make this a device without a network: content comes from a mirror, instructions are carried to it.

    Raises:
        InputError: it is enrolled already.
        TrustError: the mirror is not believed, or does not say who signs instructions.
    """
    if not again and load(state) is not None:
        raise InputError("this device is enrolled already; enroll it again with --again, as a new device with --forget")
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / TRUST / "root.json").exists():
        ContentClient.bootstrap(folder / TRUST, root)
    record = ContentClient(folder / TRUST, mirror).server_record()
    if record is None:
        raise TrustError(f"{mirror} does not say who signs instructions; publish server.json there", "missing")
    enrolled = Enrolled(folder, device, (), (), (str(mirror.absolute()),), (), 60).followed(record)
    enrolled.save()
    return enrolled


def forget(state: Path) -> None:
    """Remove the enrollment and all trust that came with it. Hotpatches stay where they are.

    Raises:
        InputError: it cannot be removed.
    """
    folder = state / FOLDER
    try:
        for name in (SERVER, KEPT, IDENTITY):
            (folder / name).unlink(missing_ok=True)
        if (folder / TRUST).exists():
            shutil.rmtree(folder / TRUST)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be removed: {error.strerror}") from None


def client_of(
    enrolled: Enrolled, places: Sequence[str], proxy: str | None = None, timeouts: Timeouts | None = None
) -> ContentClient:
    """The client of the first of these repositories. Connections to the server itself are pinned."""
    place = places[0] if places else f"{enrolled.urls[0]}/repo"
    ours = {urlsplit(url).netloc for url in enrolled.urls}
    pins = enrolled.pins if urlsplit(place).netloc in ours else ()
    return ContentClient(enrolled.trust, place, proxy, timeouts, pins=pins)


def system_pin(url: str) -> Pin:
    """The key of a server whose certificate is one that this system trusts for that name.

    Raises:
        ServerRefused: it is not, or the server cannot be reached.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ServerRefused(f"{url} is not an https URL; only https can be pinned", "insecure")
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), 10.0) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as connection,
        ):
            certificate = connection.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise ServerRefused(
            f"this system does not trust the certificate of {url} ({error.verify_message}); give the server's pin with "
            "--pin, as midflight server enroll-token says it",
            "pin",
        ) from None
    except OSError as error:
        raise ServerRefused(
            f"{url} cannot be reached: {error}; check address, network and proxy", "unreachable"
        ) from None
    assert certificate is not None
    return pin_of(certificate)


def _ask(
    invitation: Invitation, pins: Sequence[Pin], request: str, timeouts: Timeouts | None
) -> EnrollmentResponse:  # fmt: skip
    known = facts()
    body = encode_request(
        EnrollmentRequest(
            invitation.token, request, known.hostname, machine_id(), known.platform.partition("-")[0], machine(),
            __version__, dict(invitation.labels or {}),
        )
    )  # fmt: skip
    with PinnedClient(invitation.url, pins, invitation.proxy, timeouts) as client:
        reply = client.request("POST", ENROLL_PATH, body, {"content-type": "application/json"}, MAX_MESSAGE)
    if reply.status != 200:
        raise TrustError(f"the server refuses to enroll this device: {problem(reply)[1]}", problem(reply)[0])
    return decode_response(reply.body)


def problem(reply: Reply) -> tuple[str, str]:
    """What a server says that is not willing (RFC 9457): a word for programs, a sentence for people."""
    found: Any
    try:
        found = json.loads(reply.body[: 64 << 10])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        found = {}
    kind, _, word = str(found.get("type", "")).rpartition(":")
    text = found.get("detail") or found.get("title") or f"status {reply.status}"
    return (word if kind == _PROBLEM else f"http_{reply.status}"), " ".join(str(text).split())[:500]
