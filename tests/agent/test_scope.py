"""An agent that looks after some processes of a machine touches no other: with real namespaces and control groups."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.agent.harness import PROGRAM, RunningAgent
from tests.commands import until
from tests.live.harness import Fix, Lab, Target

pytestmark = pytest.mark.live

Words = tuple[str, ...]
"""Words before a command that start it somewhere."""
HERE: Words = ()


@pytest.fixture(scope="module")
def fix(tmp_path_factory: pytest.TempPathFactory) -> Fix:
    """Built once."""
    lab = Lab.create(tmp_path_factory.mktemp("scope"))
    return lab.fix("scoped", {"target.c": PROGRAM}, {"target.c": PROGRAM.replace("+ 1;", "+ 2;")})


@contextmanager
def namespace(kind: str, file: str) -> Iterator[Words]:
    """A namespace that stays; the words enter it."""
    with subprocess.Popen(
        ["unshare", f"--{kind}", "sh", "-c", "echo; exec sleep inf"], stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        try:
            yield "nsenter", f"--{kind}=/proc/{keeper.pid}/ns/{file}"
        finally:
            keeper.kill()


@contextmanager
def control_groups(folder: Path) -> Iterator[tuple[str, Words, Words]]:
    """The name of a control group; the words start a command in a group of it, and in another with a similar name."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True)
    name = f"midflight-test-{os.getpid()}"
    groups = [folder / name, folder / name / "part", folder / f"{name}-other"]
    try:
        for group in groups:
            group.mkdir()
        inside, outside = (("sh", "-c", f'echo $$ > {g}/cgroup.procs; exec "$0" "$@"') for g in groups[1:])
        yield name, inside, outside
    finally:
        for group in reversed(groups):
            until(partial(is_empty, group), "empty")
            group.rmdir()
        subprocess.run(["umount", folder], check=True)


def is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text()


def started(fix: Fix, words: Words) -> Target:
    first, *others = (*words, str(fix.image))
    return Target.start(Path(first), *others)


def of(target: Target) -> int:
    """The process that answers: what was started, or its child."""
    children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    return int(children[0]) if children else target.pid


def becomes(target: Target, answer: str) -> None:
    until(lambda: target.ask() == answer, f"answering {answer}")


def crash(target: Target) -> None:
    assert target.process.stdin is not None
    target.process.stdin.write(b"crash\n")
    target.process.stdin.flush()
    target.process.wait(30)


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def leaves_alone(fix: Fix, home: Path, which: str, agent: Words, inside: Words, outside: Words) -> None:
    """An agent patches, observes and reverts what is inside, and nothing that is outside."""
    running = RunningAgent(home, fix.lab.trust, f'processes = "{which}"', agent)
    with ExitStack() as stack:
        # The agent looks at the oldest first, and hears of what begins in that order.
        plain, patched, ours = (stack.enter_context(started(fix, words)) for words in (outside, outside, inside))
        fix.apply(of(patched))
        before = [maps(of(plain)), maps(of(patched))]
        stack.enter_context(running)
        running.order(fix.hotpatch)
        becomes(ours, "2")
        for by_hand in (False, True):
            stranger = stack.enter_context(started(fix, outside))
            if by_hand:
                fix.apply(of(stranger))
            late = stack.enter_context(started(fix, inside))
            becomes(late, "2")
            assert stranger.ask() == ("2" if by_hand else "1"), "of those that began later, only ours"
            crash(stranger)
        running.stop(signal.SIGKILL)
        running.start()
        doomed = stack.enter_context(started(fix, inside))
        becomes(doomed, "2")
        number = of(doomed)
        crash(doomed)
        becomes(ours, "1")
        (bar,) = running.ask("bars")["bars"]
        assert f"process {number} " in bar["reason"], "what crashed outside is not ours"
        assert (plain.ask(), patched.ask()) == ("1", "2"), "not patched, not reverted"
        assert [maps(of(plain)), maps(of(patched))] == before


@pytest.mark.parametrize(("which", "kind", "file"), [("network", "net", "net"), ("mount", "mount", "mnt")])
def test_in_a_namespace_it_leaves_the_machine_alone(fix: Fix, tmp_path: Path, which: str, kind: str, file: str) -> None:
    with namespace(kind, file) as there:
        leaves_alone(fix, tmp_path, which, there, there, HERE)


@pytest.mark.parametrize(("which", "kind"), [("network", "--net"), ("mount", "--mount"), ("pid", "--pid")])
def test_outside_it_leaves_namespaces_alone(fix: Fix, tmp_path: Path, which: str, kind: str) -> None:
    leaves_alone(fix, tmp_path, which, HERE, HERE, ("unshare", kind, "--fork", "--kill-child"))


def test_with_a_control_group_it_leaves_the_others_alone(fix: Fix, tmp_path: Path) -> None:
    with control_groups(tmp_path / "cgroup") as (name, inside, outside):
        leaves_alone(fix, tmp_path / "agent", f"cgroup:/{name}", HERE, inside, outside)
