"""What a device believes: instructions, the server, the repository. A liar can withhold; it never gets code in."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from midflight.agent.fleet.enrollment import KEPT, Enrolled
from midflight.agent.fleet.following import Following
from midflight.agent.fleet.records import Records
from midflight.trust.errors import InstructionsRefused
from midflight.trust.instructions import Action, Instructions, sign_instructions
from midflight.trust.keys import PrivateKey, load_public_key
from tests.agent.fleet.conftest import Fixes, publish
from tests.agent.fleet.control import ControlServer, apply, now, refuse
from tests.agent.fleet.harness import Device
from tests.commands import until
from tests.live.harness import Target
from tests.trust.tls import Handler

HOUR = timedelta(hours=1)
KEY = PrivateKey.generate()


def envelope(sequence: int, signer: PrivateKey = KEY, device: str = "dev-1", ends: timedelta = HOUR) -> bytes:
    issued = now() - 2 * HOUR
    return sign_instructions(Instructions(device, issued, issued + 2 * HOUR + ends, sequence, 60), [signer])


def following(folder: Path) -> Following:
    folder.mkdir(exist_ok=True)
    return Following(Records(folder), Enrolled(folder, "dev-1", ("https://x",), (), (), (KEY.public,), 60))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: envelope(5, PrivateKey.generate()), "untrusted"),
        (lambda: envelope(5, device="dev-2"), "foreign"),
        (lambda: envelope(5, ends=-HOUR), "expired"),
        (lambda: envelope(3), "replayed"),
        (lambda: envelope(2), "older"),
        (lambda: envelope(5)[:-40] + b"A" * 38 + b'"}', "malformed"),
        (lambda: b"{}", "malformed"),
        (lambda: b"x" * (600 << 10), "oversized"),
    ],
)
def test_instructions_that_are_not_followed_leave_those_from_before(made, reason: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one = following(tmp_path)
    one.accept(envelope(3), now())
    with pytest.raises(InstructionsRefused) as refused:
        one.accept(made(), now())
    assert refused.value.reason == reason
    assert one.held == 3 and one.last == 3
    again = following(tmp_path)
    again.restore(now())
    assert again.held == 3, "kept on disk"


def test_neither_the_records_nor_the_kept_envelope_alone_let_older_ones_in(tmp_path: Path) -> None:
    one = following(tmp_path)
    old = envelope(3)
    one.accept(old, now())
    one.accept(envelope(4), now())
    (tmp_path / KEPT).write_bytes(old)  # put back by whoever could write there
    again = following(tmp_path)
    with pytest.raises(InstructionsRefused, match="sequence 3, and 4"):
        again.restore(now())
    assert again.held == 0 and again.last == 4


def test_instructions_end_and_what_was_carried_is_taken_once(tmp_path: Path) -> None:
    one = following(tmp_path / "device")
    path = tmp_path / "carried"
    assert not one.carried(path, now()), "not plugged in"
    path.write_bytes(envelope(7))
    assert one.carried(path, now()) and one.held == 7
    assert not one.carried(path, now())
    assert one.in_force(now()) is not None and one.in_force(now() + 2 * HOUR) is None


@pytest.mark.live
def test_a_lying_server_gets_no_code_in(server: ControlServer, fixes: Fixes, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        # Code that nobody signed offline, and another hash than was signed.
        server.tell(
            id,
            Action("made-up", "apply", "d", "evil/1.hotpatch", "ee" * 32, 1000),
            replace(apply(content, "altered"), sha256="ee" * 32),
            replace(apply(content, "longer"), length=7),
            replace(apply(content, "kind"), kind="baseline"),
        )
        assert server.outcome("refused", "made-up").reason == "unknown_content"
        for action in ("altered", "longer", "kind"):
            assert server.outcome("refused", action).reason == "content_mismatch"
        # The right orders, by somebody else's key; for somebody else.
        server.tell(id, apply(content, "stolen"), signer=PrivateKey.generate())
        device.says("nothing was done")
        server.tell(id, apply(content, "foreign"), device="dev-other")
        device.says("are for device dev-other")
        # The right file on its way to another one.
        file = next((server.publisher.repository.public / "targets").rglob("*.hotpatch"))
        good = file.read_bytes()
        file.unlink()
        file.write_bytes(good[:-200] + b"\x90" * 200)
        server.tell(id, apply(content, "act-1"))
        assert server.outcome("waiting", "act-1").reason == "content_unavailable"
        assert target.ask() == "1" and not list((device.state / "content").glob("*.hotpatch"))
        file.write_bytes(good)
        until(lambda: target.ask() == "2", "patched by what was signed")
        server.outcome("applied", "act-1")
        assert {o for _, result, o in server.outcomes() if result == "applied"} == {"applied"}


@pytest.mark.live
def test_where_the_repository_names_authors_one_must_have_signed(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    stranger, author = PrivateKey.generate().public, load_public_key(fixes.first.lab.trust)
    server.publish_record(stranger)
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.tell(id, apply(content))
        assert server.outcome("refused").reason == "content_mismatch"
        assert target.ask() == "1"
        server.publish_record(stranger, author)
        server.tell(id, apply(content, "act-2"))
        until(lambda: target.ask() == "2", "patched")


@pytest.mark.live
def test_an_absent_a_busy_and_an_endless_server_hold_nothing_up(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    with Target.start(fixes.program) as target, device:
        id = server.device().id
        server.tell(id, apply(content))
        server.outcome("applied")

        def busy(handler: Handler, path: str, body: bytes) -> bool:
            refuse(handler, 503, "overloaded", "come again", Retry_After="1")
            return True

        def endless(handler: Handler, path: str, body: bytes) -> bool:
            handler.answer(200, b"x" * (3 << 20))
            return True

        for answering in (busy, endless):
            server.answering = answering
            asked = len(server.asked)
            until(lambda: len(server.asked) >= asked + 2, "tried again")  # noqa: B023
        with Target.start(fixes.program) as late:
            until(lambda: late.ask() == "2", "patched meanwhile")
        device.says("answers with more than")
        assert target.ask() == "2"
        server.answering = lambda handler, path, body: False
        server.tell(id, apply(content, "act-2", "revert"))
        server.outcome("reverted", "act-2")
        assert target.ask() == "1"
