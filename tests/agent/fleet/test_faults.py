"""Agents that are killed at a step, and disks that are full: nothing lost, nothing done twice."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.fleet.conftest import Fixes, publish
from tests.agent.fleet.control import ControlServer, apply
from tests.agent.fleet.harness import Device
from tests.agent.harness import fill
from tests.commands import PATIENCE, midflight, until
from tests.live.harness import Target

pytestmark = pytest.mark.live
INTO = ("fleet-kept-instructions", "fleet-fetched", "fleet-ordered-in_force", "fleet-posted-applied")
OUT = ("fleet-ordered-out", "fleet-posted-reverted")


def test_an_agent_that_is_killed_at_each_step_goes_on_where_it_was(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    id = server.device().id
    with Target.start(fixes.program) as target:
        server.tell(id, apply(content))
        for kind, steps, answer in (("apply", INTO, "2"), ("revert", OUT, "1")):
            if kind == "revert":
                server.tell(id, apply(content, "act-2", "revert"))
            for step in steps:
                device.start(MIDFLIGHT_KILL_AT=step)
                assert device.process is not None
                assert device.process.wait(PATIENCE) == -signal.SIGKILL, step
                midflight("check", "--pid", str(target.pid))
                assert target.ask() in ("1", "2"), step
            with device:
                until(lambda: target.ask() == answer, f"{kind}: {answer}")  # noqa: B023
                server.outcome("applied" if kind == "apply" else "reverted")
    told = [result for _, result, _ in server.outcomes()]
    assert told == ["applied", "reverted"], "each once, whoever was killed"
    assert not [name for name in server.asked if "hotpatch" in name][1:], "fetched once"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "device" / "state"
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m,mode=0700", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_reported_and_loses_nothing(
    server: ControlServer, fixes: Fixes, tmp_path: Path, small: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.after_check_ins()
        (small / "most").write_bytes(b"\0" * (10 << 20))
        server.tell(id, apply(content))
        refused = server.outcome("refused")
        assert refused.reason == "disk_low" and "needs 64" in refused.detail
        fill(small / "all")
        server.tell(id, apply(content, "act-2"))
        device.says("free some space")
        assert target.ask() == "1"
        (small / "all").unlink()
        (small / "most").unlink()
        until(lambda: target.ask() == "2", "patched")
        server.outcome("applied", "act-2")
