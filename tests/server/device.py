"""A device that speaks with the server by the real protocol: real keys, real signatures. What it reports is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from httpx2 import Client, Response

from midflight.trust import checkin, enrollment
from midflight.trust.checkin import ImageReport, Outcome, State
from midflight.trust.devices import DeviceIdentity, begin_enrollment, finish_enrollment
from midflight.trust.instructions import Instructions, verify_instructions
from midflight.trust.keys import PublicKey
from midflight.trust.requests import sign_request

NGINX = ImageReport("b1" * 20, "/usr/sbin/nginx", "nginx", "1.22.1-9", 4)
LIBC = ImageReport("c1" * 20, "/usr/lib/x86_64-linux-gnu/libc.so.6", "libc6", "2.36-9", 60)


class Device:
    """One device; ``client`` is the way to the server."""

    def __init__(self, client: Client, folder: Path, key: PublicKey, name: str = "web-1") -> None:
        self.client = client
        self.folder = folder
        self._key = key
        self.identity: DeviceIdentity | None = None
        self.sequence = 0
        self.held = 0
        self.instructions: Instructions | None = None
        self.state = State(
            hostname=name,
            platform="linux-x86_64",
            kernel="6.1.0-28-amd64",
            agent="0.1.0",
            timezone="Europe/Berlin",
            boot_id="boot-1",
            memory_free_mib=1024,
        )
        self.inventory: tuple[ImageReport, ...] = (NGINX, LIBC)

    @property
    def id(self) -> str:
        assert self.identity is not None
        return self.identity.device

    def enroll(self, token: str, machine: str = "") -> Response:
        """Ask to be taken in; the device is enrolled when the answer is 200."""
        request = enrollment.EnrollmentRequest(
            token=token,
            certificate_request=begin_enrollment(self.folder),
            hostname=self.state.hostname,
            machine_id=machine or enrollment.hash_token(str(self.folder)),
            os="debian",
            architecture="x86_64",
            agent_version="0.1.0",
        )
        response = self.client.post(checkin.ENROLL_PATH, content=enrollment.encode_request(request))
        if response.status_code == 200:
            answer = enrollment.decode_response(response.content)
            now = datetime.now(UTC)
            self.identity = finish_enrollment(self.folder, answer.certificate, answer.authority, now)
        return response

    def send(self, path: str, body: bytes, **changes: str) -> Response:
        """A signed request; ``changes`` are headers that somebody altered on the way."""
        assert self.identity is not None
        self.sequence = max(self.sequence + 1, int(datetime.now(UTC).timestamp() * 1e6))
        headers = sign_request(self.identity, "POST", path, body, self.sequence) | changes
        return self.client.post(path, content=body, headers=headers)

    def message(self, *, state: bool = False, inventory: bool = False, outcomes: Sequence[Outcome] = ()) -> bytes:
        """The body of a check-in."""
        return checkin.encode_check_in(
            checkin.CheckIn(
                at=datetime.now(UTC).replace(microsecond=0),
                instructions=self.held,
                state_digest=checkin.digest_of(checkin.state_document(self.state)),
                inventory_digest=checkin.digest_of(checkin.inventory_document(self.inventory)),
                state=self.state if state else None,
                inventory=self.inventory if inventory else None,
                outcomes=tuple(outcomes),
            )
        )

    def check_in(self, outcomes: Sequence[Outcome] = ()) -> checkin.Answer:
        """Check in the way the agent does: parts are sent when they are asked for."""
        answer = self._take(self.send(checkin.CHECK_IN_PATH, self.message(outcomes=outcomes)))
        if answer.want:
            body = self.message(state="state" in answer.want, inventory="inventory" in answer.want)
            answer = self._take(self.send(checkin.CHECK_IN_PATH, body))
        return answer

    def _take(self, response: Response) -> checkin.Answer:
        assert response.status_code == 200, response.text
        answer = checkin.decode_answer(response.content)
        if answer.instructions is not None:
            self.instructions = verify_instructions(
                answer.instructions, [self._key], self.id, datetime.now(UTC), self.held
            )
            self.held = self.instructions.sequence
        return answer

    @property
    def orders(self) -> list[tuple[str, str | None]]:
        """Kind and target of each action that it holds."""
        return [(action.kind, action.target) for action in self.instructions.actions] if self.instructions else []

    def outcome(self, result: checkin.Result = "applied", **values: Any) -> Outcome:
        """The outcome of the first action that it holds."""
        assert self.instructions is not None
        action = self.instructions.actions[0]
        return Outcome(action.id, action.deployment, result, datetime.now(UTC).replace(microsecond=0), **values)

    def runs(self, name: str, sequence: int, sha256: str, image: ImageReport = NGINX) -> None:
        """From now on the hotpatch is in its memory."""
        patch = checkin.PatchReport(name, sequence, sha256, image.build_id, image.processes, 0, 150)
        self.state = replace(self.state, patches=(*self.state.patches, patch))

    def runs_nothing(self) -> None:
        """Every hotpatch was taken out."""
        self.state = replace(self.state, patches=())
