"""What stands around the console in its tests: devices that speak the real protocol, content signed with real keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import httpx2 as httpx

from midflight.server.install import OFFLINE_KEYS
from midflight.trust.content import Content, Description, Package
from midflight.trust.keys import load_public_key
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.signers import open_signer
from midflight.trust.signing import sign
from tests.fleet.console.server import RunningServer
from tests.server.device import NGINX, Device


class Fleet:
    """Devices and content of a server under test."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._key = load_public_key(server.folder / "instructions.pub")
        self._numbers: Iterator[int] = count()
        self._client: httpx.Client = server.client()
        self.devices: list[Device] = []

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def publish(
        self, sequence: int, *, severity: str = "high", description: str = "", kind: str = "hotpatch"
    ) -> Content:
        """A hotpatch (or baseline) for nginx, as an administrator's offline keys sign it."""
        repository = Repository(self._server.folder / "repository")
        source = self._server.folder / f"content-{kind}-{sequence}"
        source.write_bytes(f"{kind} {sequence}".encode() * 100)
        about = Description(
            kind="hotpatch" if kind == "hotpatch" else "baseline",
            name="nginx",
            sequence=sequence,
            images=(NGINX.build_id,) if kind == "hotpatch" else (f"{sequence:02x}" * 20,),
            cves=(f"CVE-2026-{10000 + sequence}",),
            classification="security",
            severity=severity,  # type: ignore[arg-type]
            cvss={"critical": "9.8", "high": "7.5"}.get(severity, "5.3"),
            description=description,
            package=None if kind == "hotpatch" else Package("deb", "nginx", f"1.22.1-9+deb12u{sequence}", "amd64"),
        )
        content = repository.add(source, f"nginx/{kind}-{sequence}.{kind}", about, datetime.now(UTC))
        sign(repository, open_signer(str(self._server.folder / OFFLINE_KEYS / "targets.key")))
        publish(repository, datetime.now(UTC))
        return content

    def device(self, token: str, name: str) -> Device:
        """A device that enrolls with a token and reports."""
        folder: Path = self._server.folder / f"device-{next(self._numbers)}"
        device = Device(self._client, folder, self._key, name)
        answer = device.enroll(token)
        assert answer.status_code == 200, answer.text
        device.check_in()
        self.devices.append(device)
        return device

    def obey(self, content: Content, *, result: str = "applied") -> list[Device]:
        """Every device checks in; those that are told to apply (or revert) do so. Returns those that acted."""
        acted = []
        for device in self.devices:
            device.check_in()
            if not device.orders:
                continue
            kind = device.orders[0][0]
            if result == "failed":
                outcome = device.outcome("failed", reason="crashed", detail="SIGSEGV in nginx (17)")
            elif kind == "revert":
                outcome = device.outcome("reverted", processes=4, stopped_us=170)
                device.runs_nothing()
            else:
                outcome = device.outcome("applied", processes=4, stopped_us=150)
                if all(patch.sha256 != content.sha256 for patch in device.state.patches):
                    device.runs("nginx", content.about.sequence, content.sha256)
            device.check_in([outcome])
            acted.append(device)
        return acted

    def report(self, device: Device, **changes: object) -> None:
        """A device whose state has changed says so."""
        device.state = replace(device.state, **changes)  # type: ignore[arg-type]
        device.check_in()
