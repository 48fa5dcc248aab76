"""Working inside a target: memory is mapped and C is called, and the target does not notice, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from midflight.errors import ProcessError
from midflight.process.linux import LinuxProcess, processes
from midflight.process.model import AddressTaken, Thread

from .conftest import Start

AT = 0x10000000


def mapped(process: LinuxProcess) -> list[tuple[int, int, str]]:
    return [
        (m.start, m.end, "r" * m.readable + "w" * m.writable + "x" * m.executable)
        for m in process.maps()
        if AT <= m.start < AT + (1 << 20)
    ]


def anywhere(_: Thread) -> bool:
    return True


def test_memory_has_the_protections_asked_for(start: Start) -> None:
    target = start("nanosleep")
    target.process.map_memory(AT, [(4096, "rx"), (8192, "r"), (4096, "rw")])
    assert mapped(target.process) == [
        (AT, AT + 4096, "rx"),
        (AT + 4096, AT + 12288, "r"),
        (AT + 12288, AT + 16384, "rw"),
    ]
    target.process.write(AT + 4090, b"over a border")
    assert target.process.read(AT + 4090, 13) == b"over a border"
    target.process.unmap_memory(AT, 16384)
    assert mapped(target.process) == []
    assert target.finish() == "eintr=0 exit=0"


def test_nothing_is_ever_replaced(start: Start) -> None:
    target = start("nanosleep")
    target.process.map_memory(AT + 4096, [(4096, "rw")])
    target.process.write(AT + 4096, b"precious")
    with pytest.raises(AddressTaken, match=f"{AT:#x}"):
        target.process.map_memory(AT, [(4096, "rx"), (4096, "r")])
    assert mapped(target.process) == [(AT + 4096, AT + 8192, "rw")]
    assert target.process.read(AT + 4096, 8) == b"precious"
    assert target.finish() == "eintr=0 exit=0"


def test_what_the_kernel_refuses_leaves_nothing(start: Start) -> None:
    target = start("nanosleep")
    with pytest.raises(ProcessError, match="failed"):
        target.process.map_memory(AT, [(4096, "rx"), (1 << 46, "rw")])
    assert mapped(target.process) == []
    assert target.finish() == "eintr=0 exit=0"


@pytest.mark.parametrize("mode", ["confined", "strict"])
def test_seccomp_that_kills_is_survived(start: Start, mode: str) -> None:
    target = start(mode)
    target.wait_for(lambda: target.went == 1)
    assert target.process.untouchable() is None
    for _ in range(5):
        target.process.map_memory(AT, [(4096, "rx"), (4096, "rw")])
        assert mapped(target.process) == [(AT, AT + 4096, "rx"), (AT + 4096, AT + 8192, "rw")]
        target.process.unmap_memory(AT, 8192)
        target.progress()
    assert target.finish() == "fine exit=0"


def test_memory_deny_write_execute(start: Start) -> None:
    target = start("mdwe")
    target.process.map_memory(AT, [(4096, "rx")])
    target.process.write(AT, b"\xc3")
    assert target.process.read(AT, 1) == b"\xc3"
    assert target.finish() == "fine exit=0"


def test_a_call_returns_its_result_and_keeps_every_register(start: Start) -> None:
    target = start("vectors")
    for number in range(20):
        result = target.process.call(target.address(), [1, 20, 300, 4000, 50000, number << 40], anywhere, 5)
        assert result == 54321 + (number << 40)
        target.progress()
    assert target.finish() == "bad=0 exit=0"


def test_a_call_waits_for_a_safe_place(start: Start) -> None:
    target = start("slowly")
    asked: list[int] = []

    def third_time(thread: Thread) -> bool:
        asked.append(thread.tid)
        return len(asked) == 3

    assert target.process.call(target.address(), [1], third_time, 5) == 7
    assert asked == [target.pid] * 3
    assert target.seen == 1
    with pytest.raises(ProcessError, match="safe place"):
        target.process.call(target.address(), [1], lambda _: False, 0.05)
    assert target.seen == 1
    assert target.finish() == "bad=0 exit=0"


def test_a_call_that_takes_too_long_ends_by_itself(start: Start) -> None:
    target = start("slowly")
    with pytest.raises(ProcessError, match="did not return within"):
        target.process.call(target.address(), [300], anywhere, 0.05)
    target.wait_for(lambda: target.seen == 1)
    target.progress()
    assert target.finish() == "bad=0 exit=0"


def test_processes_are_listed_without_us_and_the_kernel(start: Start) -> None:
    target = start("nanosleep")
    found = {process.pid for process in processes()}
    assert target.pid in found
    assert os.getpid() not in found
    assert 2 not in found or os.readlink("/proc/2/exe")


def test_the_file_behind_a_mapping_opens_even_when_deleted(start: Start, program: Path, tmp_path: Path) -> None:
    target = start("nanosleep")
    mapping = next(m for m in target.process.maps() if m.path == str(program))
    with open(target.process.module_path(mapping), "rb") as file:
        assert file.read(4) == b"\x7fELF"


SCRIPT = """
import sys
from midflight.process.linux import LinuxProcess
process = LinuxProcess(int(sys.argv[1]))
if sys.argv[2] == "map":
    process.map_memory(0x10000000, [(4096, "rx"), (4096, "rw")])
    process.unmap_memory(0x10000000, 8192)
elif sys.argv[2] == "call":
    print(process.call(int(sys.argv[3], 16), [1, 2, 3, 4, 5, 6], lambda thread: True, 5))
elif sys.argv[2] == "stop":
    with process.stop(5) as stopped:
        pass
else:
    inner, outer = int(sys.argv[3], 16), int(sys.argv[4], 16)
    while True:
        with process.stop(5) as stopped:
            (thread,) = stopped.threads
            stack = thread.stacks[0]
            words = [int.from_bytes(stack.data[at : at + 8], "little") for at in range(128, 256, 8)]
            found = [(at, word) for at, word in enumerate(words) if outer < word < outer + 64]
            if found and inner < thread.registers[16] < inner + 64:
                at, back = found[0]
                assert stopped.step_out({thread.tid: (back, stack.start + 128 + 8 * at)}, 5)
                break
"""


def tool(work: str, pid: int, addresses: list[str], **environment: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(pid), work, *addresses], env={**os.environ, **environment}, stdout=-3
    )
    return result.returncode


@pytest.mark.parametrize(
    ("work", "mode", "verdict"),
    [
        ("map", "vectors", "bad=0 exit=0"),
        ("map", "epoll_pwait", "eintr=0 exit=0"),
        ("map", "poll", "eintr=0 exit=0"),
        ("call", "vectors", "bad=0 exit=0"),
        ("stop", "threads", "fine exit=0"),
        ("step", "busy", "fine exit=0"),
    ],
)
def test_the_target_survives_our_death_at_every_step(
    start: Start, tmp_path: Path, work: str, mode: str, verdict: str
) -> None:
    target = start(mode, "8")
    log = tmp_path / "points"
    assert tool(work, target.pid, target.greeting[1:], MIDFLIGHT_KILL_LOG=str(log)) == 0
    points = log.read_text().split()
    assert len(points) > 2
    for number in range(1, len(points) + 1):
        assert tool(work, target.pid, target.greeting[1:], MIDFLIGHT_KILL_AT=str(number)) == -signal.SIGKILL
        target.progress()
        with LinuxProcess(target.pid) as process:
            assert process.untouchable() is None
            for low, high, _ in mapped(process):
                process.unmap_memory(low, high - low)
        target.progress()
    assert target.finish() == verdict
