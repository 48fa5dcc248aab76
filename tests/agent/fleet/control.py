"""A control server of the tests' own: real HTTPS, the real verification of every request, a real repository signed by
offline keys; what it orders, and how it misbehaves, the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner

from midflight.errors import MidflightError
from midflight.trust.certificates import CertificateAuthority, DeviceCertificate
from midflight.trust.checkin import (
    CHECK_IN_PATH,
    ENROLL_PATH,
    RENEW_PATH,
    Answer,
    CheckIn,
    ImageReport,
    Outcome,
    Renewal,
    State,
    decode_check_in,
    decode_renewal,
    encode_answer,
    encode_renewal,
)
from midflight.trust.content import Content, Description, Package
from midflight.trust.enrollment import EnrollmentResponse, decode_request, encode_response, new_token
from midflight.trust.errors import TrustError
from midflight.trust.instructions import Action, Instructions, Window, sign_instructions
from midflight.trust.keys import PrivateKey, PublicKey
from midflight.trust.pinning import Pin
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.requests import check_sequence, verify_request
from midflight.trust.serverrecord import ServerRecord
from midflight.trust.signing import sign
from tests.commands import until
from tests.trust.tls import Handler, certificate, serve

POLICY: dict[str, object] = {"hotpatch": True, "restart": "never", "any_time": True, "lift_bars": []}


def now() -> datetime:
    """To the second."""
    return datetime.now(UTC).replace(microsecond=0)


class Publisher:
    """Who has the offline keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._signer = CryptoSigner.generate_ed25519()
        online = folder / "online.key"
        online.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
        online.chmod(0o600)
        public = [self._signer.public_key]
        self.repository = Repository.create(folder / "repository", public, 1, public, 1, str(online), now())

    def release(self) -> None:
        """Sign and publish what is staged."""
        sign(self.repository, self._signer)
        publish(self.repository, now())

    def add(
        self, source: Path, about: Description, path: str = ""
    ) -> Content:  # fmt: skip
        """Publish a piece of content."""
        content = self.repository.add(source, path or f"{about.name}/{about.sequence}.{about.kind}", about, now())
        self.release()
        return content

    def hotpatch(self, source: Path, name: str, sequence: int, images: tuple[str, ...]) -> Content:
        """Publish a hotpatch."""
        return self.add(source, Description("hotpatch", name, sequence, images, (), "security", "high", None, ""))

    def baseline(self, source: Path, name: str, sequence: int, images: tuple[str, ...], package: Package) -> Content:
        """Publish a baseline."""
        about = Description("baseline", name, sequence, images, (), "security", "high", None, "", (), package)
        return self.add(source, about)

    @property
    def first_root(self) -> bytes:
        """What devices trust from the beginning."""
        return (self.repository.public / "metadata/1.root.json").read_bytes()


@dataclass
class Known:
    """What the server knows of one device."""

    id: str
    certificate: DeviceCertificate
    earlier: list[DeviceCertificate] = field(default_factory=list)
    sequence: int = 0
    state: State | None = None
    state_digest: str = ""
    inventory: tuple[ImageReport, ...] | None = None
    inventory_digest: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    check_ins: list[CheckIn] = field(default_factory=list)
    told: bytes | None = None
    told_sequence: int = 0


class ControlServer:
    """See the module. ``answering`` may answer a request in a way of its own, and then returns True."""

    def __init__(self, folder: Path) -> None:
        self.publisher = Publisher(folder / "publisher")
        self.authority = CertificateAuthority.create(folder / "ca.key", folder / "ca.crt", "test", now())
        self.instruction_key = PrivateKey.generate()
        self.context, self.pin, _ = certificate()
        self.backup = certificate()[1]
        self.devices: dict[str, Known] = {}
        self.tokens: dict[str, int] = {}
        self.interval = 1
        self.answering: Callable[[Handler, str, bytes], bool] = lambda handler, path, body: False
        self.url = ""
        self.asked: list[str] = []
        self.lock = threading.RLock()

    # -- what tests do -----------------------------------------------------------------------------------------------

    def publish_record(self, *authors: PublicKey) -> None:
        """Let the repository say who the server is."""
        keys = (PublicKey(self.instruction_key.public.raw),)
        record = ServerRecord((self.url,), (self.pin, self.backup), keys, authors)
        self.publisher.repository.set_server_record(record, now())
        self.publisher.release()

    def invite(self) -> str:
        """A token."""
        token, _ = new_token()
        self.tokens[token] = 1
        return token

    def tell(
        self,
        to: str,
        *actions: Action,
        windows: tuple[Window, ...] = (),
        policy: Mapping[str, object] | None = None,
        lifetime: timedelta = timedelta(hours=1),
        signer: PrivateKey | None = None,
        **changes: Any,
    ) -> bytes:
        """Have new instructions for a device from now on; returns their envelope."""
        with self.lock:
            known = self.devices[to]
            known.told_sequence += 1
            issued = now()
            instructions = Instructions(
                to, issued, issued + lifetime, known.told_sequence, self.interval, windows, tuple(actions),
                {**POLICY, **(policy or {})},
            )  # fmt: skip
            known.told = sign_instructions(replace(instructions, **changes), [signer or self.instruction_key])
            return known.told

    def device(self) -> Known:
        """The only one."""
        (found,) = self.devices.values()
        return found

    def outcome(self, result: str, action: str = "") -> Outcome:
        """Wait until a device has told this outcome."""

        def told() -> Outcome | None:
            with self.lock:
                for known in self.devices.values():
                    for outcome in known.outcomes:
                        if outcome.result == result and action in ("", outcome.action):
                            return outcome
            return None

        found: Outcome = until(told, lambda: f"told {result} {action}: {self.outcomes()}")
        return found

    def outcomes(self) -> list[tuple[str, str, str]]:
        """All that was told."""
        return [(o.action, o.result, o.reason) for known in self.devices.values() for o in known.outcomes]

    def after_check_ins(self, count: int = 2) -> None:
        """Wait for so many further check-ins."""
        before = sum(len(known.check_ins) for known in self.devices.values())
        until(lambda: sum(len(k.check_ins) for k in self.devices.values()) >= before + count, "checked in")

    # -- the server --------------------------------------------------------------------------------------------------

    def handle(self, handler: Handler) -> None:
        """Answer one request."""
        path = handler.path.partition("?")[0]
        body = handler.rfile.read(int(handler.headers.get("content-length", "0")))
        self.asked.append(path)
        if self.answering(handler, path, body):
            return
        if path.startswith("/repo/"):
            self._file(handler, path.removeprefix("/repo/"))
            return
        try:
            with self.lock:
                answer = {ENROLL_PATH: self._enroll, RENEW_PATH: self._renew, CHECK_IN_PATH: self._check_in}[path](
                    handler, body
                )
        except TrustError as error:
            refuse(handler, 401, error.reason, str(error))
            return
        handler.answer(200, answer, Date=http_date(), Content_Type="application/json")

    def _file(self, handler: Handler, name: str) -> None:
        path = self.publisher.repository.public / name
        if not path.is_file():
            handler.answer(404, b"missing")
            return
        data = path.read_bytes()
        asked = handler.headers.get("range", "")
        if asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            handler.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
            return
        handler.answer(200, data)

    def _enroll(self, handler: Handler, body: bytes) -> bytes:
        request = decode_request(body)
        if self.tokens.get(request.token, 0) < 1:
            raise TrustError("the token is not known, or was used", "unknown")
        id = f"dev-{request.machine_id[:8]}"
        issued = self.authority.issue(request.certificate_request, id, now())
        before = self.devices.get(id)
        if before is None or before.certificate.key != issued.key:
            self.tokens[request.token] -= 0 if before and before.certificate.key == issued.key else 1
        known = self.devices.setdefault(id, Known(id, issued))
        known.certificate = issued
        return encode_response(
            EnrollmentResponse(
                id, issued.pem, self.authority.pem, self.publisher.first_root.decode(), (f"{self.url}/repo",), 1
            )
        )

    def _renew(self, handler: Handler, body: bytes) -> bytes:
        known = self._who(handler, RENEW_PATH, body)
        request = decode_renewal(body).certificate_request
        known.earlier.append(known.certificate)
        known.certificate = self.authority.renew(request, known.certificate, now())
        return encode_renewal(Renewal("", known.certificate.pem, self.authority.pem))

    def _check_in(self, handler: Handler, body: bytes) -> bytes:
        known = self._who(handler, CHECK_IN_PATH, body)
        message = decode_check_in(body)
        known.check_ins.append(message)
        if message.state is not None:
            known.state, known.state_digest = message.state, message.state_digest
        if message.inventory is not None:
            known.inventory, known.inventory_digest = message.inventory, message.inventory_digest
        have = {(o.action, o.result, o.reason) for o in known.outcomes}
        known.outcomes += [o for o in message.outcomes if (o.action, o.result, o.reason) not in have]
        want = [
            part
            for part, ours, theirs in (
                ("state", known.state_digest, message.state_digest),
                ("inventory", known.inventory_digest, message.inventory_digest),
            )
            if ours != theirs
        ]
        new = known.told is not None and message.instructions != known.told_sequence
        return encode_answer(Answer(self.interval, known.told if new else None, tuple(want)))  # type: ignore[arg-type]

    def _who(self, handler: Handler, path: str, body: bytes) -> Known:
        by_fingerprint = {c.fingerprint: k for k in self.devices.values() for c in (k.certificate, *k.earlier)}
        certificates = {c.fingerprint: c for k in self.devices.values() for c in (k.certificate, *k.earlier)}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = verify_request(
            headers, handler.command, path, "", body, certificates.get, datetime.now(UTC)
        )  # fmt: skip
        known = by_fingerprint[request.certificate.fingerprint]
        check_sequence(request, known.sequence)
        known.sequence = request.sequence
        return known


def refuse(handler: Handler, status: int, word: str, text: str, **headers: str) -> None:
    """Answer with a problem (RFC 9457)."""
    body = {"type": f"urn:midflight:problem:{word}", "title": word, "status": status, "detail": text}
    handler.answer(status, json.dumps(body).encode(), Date=http_date(), **headers)


def http_date() -> str:
    """As a web server writes it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())


@contextmanager
def running(folder: Path) -> Iterator[ControlServer]:
    """A server that serves, with its record published."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ControlServer(folder)

    class Answering(Handler):
        def do_GET(self) -> None:
            server.handle(self)

        def do_POST(self) -> None:
            server.handle(self)

    with serve(Answering, server.context) as url:
        server.url = url
        server.publish_record()
        yield server


def apply(content: Content, id: str = "act-1", kind: str = "apply", **values: Any) -> Action:
    """An action for a piece of content."""
    return Action(id, kind, "dpl-1", content.path, content.sha256, content.length, **values)  # type: ignore[arg-type]


__all__ = ["ControlServer", "MidflightError", "Pin", "Publisher", "apply", "now", "refuse", "running"]
