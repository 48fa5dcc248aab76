"""A device and its server, on real processes: what they answer says what they run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from midflight.trust.instructions import Window
from tests.agent.fleet.conftest import Fixes, publish
from tests.agent.fleet.control import ControlServer, apply, now
from tests.agent.fleet.harness import Device
from tests.commands import until
from tests.live.harness import Target

pytestmark = pytest.mark.live
MINUTE = timedelta(minutes=1)


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
            # there may be others here: in containers, in trees of another system
            mapped = Path(f"/proc/{early.pid}/maps").read_text().splitlines()
            ours = next(line.split()[-1] for line in mapped if "libc.so" in line)
            libc = next(image for image in inventory if image.path == ours)
            assert libc.package.startswith("libc6") and libc.version
            quiet = server.device().check_ins[-1]
            assert quiet.inventory is None and not quiet.outcomes
            server.tell(id, apply(content, "act-2", "revert"))
            becomes(early, "1")
            becomes(late, "1")
            server.outcome("reverted", "act-2")
            server.tell(id, apply(content, "act-3"))
            becomes(late, "2")
            server.outcome("applied", "act-3")


def test_it_waits_for_its_window_and_then_patches_at_any_time(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        later = (Window(now() + 60 * MINUTE, now() + 120 * MINUTE),)
        closed: dict[str, object] = {"any_time": False}
        server.tell(id, apply(content), windows=later, policy=closed)
        assert server.outcome("waiting").reason == "awaiting_window"
        assert target.ask() == "1"
        assert list((device.state / "content").glob("*.hotpatch")), "fetched before the window opens"
        soon = (Window(now() + timedelta(seconds=3), now() + timedelta(seconds=20)),)
        opens = soon[0].start
        server.interval = 3600  # it finds out by itself
        server.tell(id, apply(content), windows=soon, policy=closed)
        becomes(target, "2")
        assert now() >= opens
        server.interval = 1
    with device:
        # After a restart, outside of any window, a new process of what is in force gets it.
        server.tell(id, windows=later, policy=closed)
        with Target.start(fixes.program) as late:
            becomes(late, "2")


def test_a_crash_takes_it_out_and_the_server_hears_of_it_and_lifts_the_bar(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as other, device:
        id = server.device().id
        server.tell(id, apply(content))
        with Target.start(fixes.program) as target:
            becomes(other, "2")
            becomes(target, "2")
            assert target.process.stdin is not None
            target.process.stdin.write(b"crash\n")
            target.process.stdin.flush()
            becomes(other, "1")
            outcome = server.outcome("reverted")
            assert outcome.reason == "crashed" and "SIGSEGV" in outcome.detail
            server.after_check_ins()
            state = server.device().state
            assert state is not None and [(bar.sha256, bar.reason) for bar in state.bars] == [
                (content.sha256, "crashed")
            ]
            assert [probe.healthy for probe in state.health] == [False]
            server.tell(id, apply(content, "act-2"))
            assert server.outcome("refused", "act-2").reason == "barred"
            server.tell(id, apply(content, "act-3"), policy={"lift_bars": [content.sha256]})
            becomes(other, "2")
            server.outcome("applied", "act-3")


def test_what_was_revoked_goes_out_where_that_was_said(server: ControlServer, fixes: Fixes, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.tell(id, apply(content))
        becomes(target, "2")
        server.outcome("applied")
        server.publisher.repository.revoke(content.path, "it loses requests", True, now())
        server.publisher.release()
        server.tell(id, apply(content, "act-2"))
        becomes(target, "1")
        assert server.outcome("reverted").reason == "faulted_revoked"
        assert server.outcome("refused", "act-2").reason == "faulted_revoked"


def test_a_later_sequence_replaces_and_an_earlier_one_is_refused(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    first, second = publish(server, fixes), publish(server, fixes, 2)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.tell(id, apply(second, "act-2"))
        becomes(target, "3")
        server.tell(id, apply(first, "act-1"))
        assert server.outcome("refused", "act-1").reason == "superseded"
        assert target.ask() == "3"


def test_code_that_nobody_explains_is_reported(server: ControlServer, fixes: Fixes, tmp_path: Path) -> None:
    device = Device(tmp_path / "device", "[server]\nintegrity = 1\n")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.tell(id, apply(content))
        server.outcome("applied")
        lines = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        line = next(line for line in lines if "r-xp" in line and line.endswith(str(fixes.program)))
        with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(int(line.split("-")[0], 16) + 8)
            memory.write(b"\xcc")

        def reported() -> bool:
            state = server.device().state
            return state is not None and any("breakpoint" in v.detail for v in state.violations)

        server.interval = 1
        until(lambda: (server.tell(id), reported())[1], "reported")
