"""Processes are seen to begin, fork and end, by what the kernel tells and by looking."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from midflight.process.events import Event, ProcessEvents, open_events
from midflight.process.live import hold, holding_tells, open_process
from midflight.process.netlink import Connector
from midflight.process.procpolling import ProcPolling
from tests.commands import PATIENCE

pytestmark = pytest.mark.live


@pytest.fixture
def told() -> Iterator[Connector]:
    """What the kernel tells."""
    events = Connector()
    yield events
    events.close()


def of(pid: int, kind: str) -> Callable[[Sequence[Event]], bool]:
    """Whether there is an event of a process."""
    return lambda found: any(event.pid == pid and event.kind == kind for event in found)


def collect(events: ProcessEvents, enough: Callable[[Sequence[Event]], bool]) -> list[Event]:
    """Events until there are enough."""
    found: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while not enough(found):
        assert time.monotonic() < deadline, found
        found += events.wait(0.2)
    return found


def test_the_kernel_is_the_first_choice() -> None:
    events = open_events()
    assert isinstance(events, Connector) and events.tells_how_processes_end
    events.close()


def test_exec_fork_and_how_it_ended(told: Connector) -> None:
    before = time.monotonic()
    child = subprocess.Popen(["sh", "-c", "exec sh -c 'kill -SEGV $$'"])
    child.wait()
    after = time.monotonic()
    mine = [e for e in collect(told, of(child.pid, "ended")) if e.pid == child.pid]
    assert [e.kind for e in mine] == ["forked", "started", "started", "ended"]
    assert mine[0].parent == os.getpid() and mine[-1].signal == signal.SIGSEGV
    assert all(before <= e.at <= after for e in mine), "in the time of time.monotonic"
    status = subprocess.Popen(["sh", "-c", "exit 7"])
    status.wait()
    (end,) = [e for e in collect(told, of(status.pid, "ended")) if e.pid == status.pid and e.kind == "ended"]
    assert (end.signal, end.status) == (0, 7)


def test_threads_wake_nobody(told: Connector) -> None:
    told.wait(0)
    for _ in range(200):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    child = subprocess.Popen(["true"])
    child.wait()
    found = collect(told, of(child.pid, "ended"))
    assert not [e for e in found if e.pid == os.getpid()], "our threads began and ended"


def test_what_does_not_fit_is_told_as_missed(told: Connector) -> None:
    told._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(60):
        subprocess.run(["true"], check=True)
    found = collect(told, lambda f: any(e.kind == "missed" for e in f))
    assert found
    child = subprocess.Popen(["true"])
    child.wait()
    collect(told, of(child.pid, "started"))


@pytest.mark.parametrize("make", [Connector, ProcPolling])
def test_a_wait_can_be_ended_from_elsewhere(make: Callable[[], ProcessEvents]) -> None:
    events = make()
    done = threading.Event()

    def wait() -> None:
        while not done.is_set():
            events.wait(PATIENCE)

    thread = threading.Thread(target=wait)
    thread.start()
    done.set()
    events.wake()
    thread.join(PATIENCE / 2)
    assert not thread.is_alive()
    events.close()


def test_who_was_held_can_be_asked_how_it_ended() -> None:
    """By its zombie on every kernel, afterwards since Linux 6.15."""
    for script, expected in (("kill -ABRT $$", (signal.SIGABRT, 0)), ("exit 7", (0, 7)), ("exit 0", (0, 0))):
        child = subprocess.Popen(["sh", "-c", f"read line; {script}"], stdin=subprocess.PIPE)
        with open_process(child.pid) as process:
            held = hold(process)
        assert held.ending() is None
        child.communicate(b"\n")
        assert held.ending() == (expected if holding_tells() else None)
        held.close()
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "read line; kill -SEGV $$"], os.environ)
    with open_process(pid) as process:
        held = hold(process)
    os.kill(pid, signal.SIGSEGV)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert held.ending() == (signal.SIGSEGV, 0)
    os.waitpid(pid, 0)
    held.close()


def test_more_processes_are_held_than_files_may_be_open_at_first() -> None:
    """In a process of its own, which changes its limits."""
    script = """
import resource
from midflight.process.live import hold, open_process
resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with open_process(1) as process:
    print(len([hold(process) for _ in range(50)]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "50\n"


def test_looking_sees_what_begins_becomes_another_and_ends() -> None:
    events = ProcPolling("a test", interval=0.02)
    child = subprocess.Popen(["sh", "-c", "read line; exec sleep 1000"], stdin=subprocess.PIPE)
    try:
        collect(events, of(child.pid, "started"))
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        collect(events, of(child.pid, "started"))
    finally:
        child.kill()
        child.wait()
    collect(events, of(child.pid, "ended"))
    assert not events.tells_how_processes_end and "a test" in events.source
    events.close()
