"""Becoming a device: tokens, pins, killed half-way, again, renewed, revoked; and a device without a network."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from midflight.agent.fleet import FOLDER
from midflight.agent.fleet.enrollment import load
from midflight.trust.certificates import CertificateAuthority
from midflight.trust.instructions import Instructions, sign_instructions
from midflight.trust.mirror import mirror
from tests.agent.fleet.conftest import Fixes, publish
from tests.agent.fleet.control import ControlServer, apply, now
from tests.agent.fleet.harness import Device
from tests.commands import MIDFLIGHT, midflight, until
from tests.live.harness import Target
from tests.trust.tls import certificate


def test_a_device_is_enrolled_once_and_its_key_is_for_root_alone(server: ControlServer, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    wrong = certificate()[1]
    words = ["--server", server.url, "--token", server.invite(), "--pin", str(wrong)]
    failed = midflight("agent", "enroll", *words, status=None, env=device.env)
    assert failed.status != 0 and "is not pinned" in failed.err and not server.devices
    used = server.invite()
    device.enroll(server, "--label", "site=here", token=used)
    for path in (device.state / FOLDER).rglob("*"):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
        if path.name in ("identity.pem", "server.json"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = device.enroll(server, status=None)
    assert again.status == 2 and "enrolled already" in again.err
    other = Device(tmp_path / "other")
    refused = other.enroll(server, token=used, status=None)
    assert refused.status != 0 and "refuses" in refused.err
    before = server.device().certificate
    device.enroll(server, "--again")
    assert server.device().certificate.key != before.key


def test_an_enrollment_that_was_killed_is_finished_by_the_next(server: ControlServer, tmp_path: Path) -> None:
    token = server.invite()
    for step in ("key", "answer", "saved"):
        device = Device(tmp_path / "device")
        killed = subprocess.run(
            [*MIDFLIGHT, "agent", "enroll", "--server", server.url, "--token", token, "--pin", str(server.pin)],
            env={**os.environ, **device.env, "MIDFLIGHT_KILL_AT": f"fleet-enroll-{step}"},
            capture_output=True,
        )
        assert killed.returncode == -9, (step, killed)
        assert load(device.state) is None, f"not enrolled by half, after {step}"
        server.tokens[token] = 1
    device.enroll(server, token=token)
    assert load(device.state) is not None


@pytest.mark.live
def test_a_certificate_is_renewed_and_a_revoked_device_obeys_no_more(
    server: ControlServer, fixes: Fixes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    known = server.device()
    first = known.certificate
    # One that is due at once: a third of its time, which begins five minutes before it was made, is left.
    monkeypatch.setattr(CertificateAuthority.issue, "__defaults__", (timedelta(seconds=100),))
    device.enroll(server, "--again")
    monkeypatch.undo()
    short = known.certificate
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        until(lambda: known.certificate not in (first, short), "renewed")
        server.after_check_ins()
        server.tell(known.id, apply(content))
        until(lambda: target.ask() == "2", "patched")
        known.certificate = replace(known.certificate, revoked="stolen")
        known.earlier = []
        server.tell(known.id, apply(content, "act-2", "revert"))
        device.says("obeys no more")
        with Target.start(fixes.program) as late:
            until(lambda: late.ask() == "2", "what is in force stays in force")
        status = device.ask("status", status=1)
        assert status["server"]["revoked"] == "revoked"
        assert target.ask() == "2"


@pytest.mark.live
def test_a_device_without_a_network_follows_what_is_carried_to_it(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    content = publish(server, fixes)
    carried = tmp_path / "usb"
    mirror(server.publisher.repository.public, carried / "mirror", server.publisher.first_root)
    (tmp_path / "root.json").write_bytes(server.publisher.first_root)
    settings = f'[server]\nmirror = "{carried}/mirror"\ninstructions = "{carried}/instructions"\n'
    device = Device(tmp_path / "device", settings)
    words = ["--mirror", str(carried / "mirror"), "--device", "dev-far", "--root", str(tmp_path / "root.json")]
    midflight("agent", "enroll", *words, env=device.env)
    issued = now()
    orders = Instructions("dev-far", issued, issued + timedelta(days=30), 1, 60, (), (apply(content),))
    (carried / "instructions").write_bytes(sign_instructions(orders, [server.instruction_key]))
    with Target.start(fixes.program) as target, device:
        until(lambda: target.ask() == "2", "patched")
        until(lambda: device.ask("status")["server"]["unheard_outcomes"], "kept for later")
    assert not server.devices, "nobody was asked"
