"""A device and its server, on real processes: what they answer says what they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.fleet.conftest import Fixes, publish
from tests.agent.fleet.control import ControlServer, apply
from tests.agent.fleet.harness import Device
from tests.agent.fleet.waiting import until
from tests.live.harness import Target

pytestmark = pytest.mark.live


def becomes(target: Target, answer: str) -> None:
    until(lambda: target.ask() == answer, f"answering {answer}")


def test_what_the_server_orders_comes_into_every_process_and_out_again(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as early, device:
        id = server.device().id
        server.tell(id, apply(content))
        becomes(early, "2")
        outcome = server.outcome("applied")
        assert (outcome.action, outcome.deployment, outcome.processes) == ("act-1", "dpl-1", 1)
        assert outcome.stopped_us > 0
        with Target.start(fixes.program) as late:
            becomes(late, "2")
            server.tell(id)
            server.after_check_ins()
            assert early.ask() == "2", "no order to take it out is no reason to"
            state = server.device().state
            assert state is not None and state.patches[0].sha256 == content.sha256
            inventory = server.device().inventory or ()
            libc = next(image for image in inventory if "libc.so" in image.path)
            assert libc.package.startswith("libc6") and libc.version
            server.tell(id, apply(content, "act-2", "revert"))
            becomes(early, "1")
            becomes(late, "1")
            server.outcome("reverted", "act-2")
            server.tell(id, apply(content, "act-3"))
            becomes(late, "2")
            server.outcome("applied", "act-3")
