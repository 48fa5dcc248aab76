"""Stopping a whole process: everything stands still, is seen, and goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from midflight.errors import ProcessError, ProcessGone
from midflight.process.linux import LinuxProcess
from midflight.process.model import RIP, RSP

from .conftest import Start


def states(pid: int) -> set[str]:
    result = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{tid}/stat") as file:
            result.add(file.read().rpartition(")")[2].split()[0])
    return result


def tracer(pid: int) -> str:
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith("TracerPid"))


@pytest.mark.parametrize("threads", [1, 16, 64])
def test_all_threads_stand_still_and_go_on(start: Start, threads: int) -> None:
    target = start("threads", str(threads))
    for _ in range(5):
        with target.process.stop(5) as stopped:
            assert {thread.tid for thread in stopped.threads} == set(target.process.threads())
            assert len(stopped.threads) == threads
            assert all(thread.complete for thread in stopped.threads)
            for thread in stopped.threads:
                assert thread.stacks[0].start == thread.registers[RSP] - 128
                assert thread.registers[RIP] > 0
            before = target.count
            time.sleep(0.005)
            assert target.count == before
            assert 0 < stopped.resume() < 5
        assert tracer(target.pid) == "0"
        target.progress()
    assert target.finish() == "fine exit=0"


def test_783_threads(start: Start) -> None:
    target = start("threads", "783")
    with target.process.stop(30) as stopped:
        assert len(stopped.threads) == 783
        assert states(target.pid) == {"t"}
    target.progress()
    assert target.finish() == "fine exit=0"


def test_stack_snapshot_is_what_memory_holds(start: Start) -> None:
    target = start("threads", "4")
    with target.process.stop(5) as stopped:
        for thread in stopped.threads:
            stack = thread.stacks[0]
            assert target.process.read(stack.start, len(stack.data)) == stack.data
            end = stack.start + len(stack.data)
            assert any(m.end == end and m.start <= stack.start for m in target.process.maps())


@pytest.mark.parametrize(
    "call",
    [
        *("nanosleep", "poll", "ppoll", "select", "epoll_wait", "epoll_pwait"),
        *("futex", "semtimedop", "sigtimedwait", "accept", "recv"),
    ],
)
def test_system_calls_do_not_notice(start: Start, call: str) -> None:
    target = start(call)
    for round_ in range(30):
        with target.process.stop(5):
            pass
        if round_ % 3 == 0:
            target.process.map_memory(0x10000000, [(4096, "rx")])
            target.process.unmap_memory(0x10000000, 4096)
        time.sleep(0.002)
    target.progress()  # stopped over and over, yet each call ends in its time
    target.progress()
    assert target.finish() == "eintr=0 exit=0"


def test_a_read_that_blocks_for_good_does_not_notice(start: Start) -> None:
    target = start("read")
    for _ in range(10):
        with target.process.stop(5):
            pass
        target.process.map_memory(0x10000000, [(4096, "rx")])
        target.process.unmap_memory(0x10000000, 4096)
    assert target.count == 0
    assert target.finish() == "eintr=0 exit=0"


def test_a_signal_still_interrupts_a_call(start: Start) -> None:
    target = start("pausing")

    def pausing() -> bool:
        return Path(f"/proc/{target.pid}/syscall").read_text().startswith("34 ")

    for round_ in range(50):
        target.wait_for(pausing)  # a signal before that would be missed without us, too
        with target.process.stop(5):
            os.kill(target.pid, signal.SIGUSR1)
        target.wait_for(lambda: target.count == 2 * round_ + 1)  # noqa: B023
        target.wait_for(pausing)
        target.process.map_memory(0x10000000, [(4096, "rx")])
        os.kill(target.pid, signal.SIGUSR1)
        target.process.unmap_memory(0x10000000, 4096)
        target.wait_for(lambda: target.count == 2 * round_ + 2)  # noqa: B023
    target.wait_for(pausing)
    target.stop()
    os.kill(target.pid, signal.SIGUSR1)
    assert target.finish() == "fine exit=0"


def test_no_queued_signal_is_lost(start: Start) -> None:
    target = start("storm")
    while target.seen < 3000:
        with target.process.stop(5):
            pass
        target.process.map_memory(0x10000000, [(4096, "rx")])
        target.process.unmap_memory(0x10000000, 4096)
    assert target.finish() == "lost=0 bad=0 many=1 exit=0"


def test_vector_registers_and_red_zone_are_kept(start: Start) -> None:
    target = start("vectors")
    for _ in range(30):
        with target.process.stop(5):
            pass
        target.process.map_memory(0x10000000, [(4096, "rx")])
        target.process.unmap_memory(0x10000000, 4096)
        target.progress()
    assert target.finish() == "bad=0 exit=0"


def test_a_job_that_is_stopped_stays_stopped(start: Start) -> None:
    target = start("threads", "3")
    os.kill(target.pid, signal.SIGSTOP)
    target.wait_for(lambda: states(target.pid) == {"T"})
    with target.process.stop(5) as stopped:
        assert len(stopped.threads) == 3
    target.process.map_memory(0x10000000, [(4096, "rx")])
    target.wait_for(lambda: states(target.pid) == {"T"})
    before = target.count
    time.sleep(0.01)
    assert target.count == before
    assert target.process.read(0x10000000, 4) == bytes(4)
    os.kill(target.pid, signal.SIGCONT)
    target.progress()
    assert target.finish() == "fine exit=0"


def test_a_stop_signal_during_the_stop_takes_effect_afterwards(start: Start) -> None:
    target = start("threads", "3")
    with target.process.stop(5):
        os.kill(target.pid, signal.SIGSTOP)
    target.wait_for(lambda: states(target.pid) == {"T"})
    os.kill(target.pid, signal.SIGCONT)
    target.progress()
    assert target.finish() == "fine exit=0"


def test_threads_that_are_born_and_die_do_not_escape(start: Start) -> None:
    target = start("birth")
    for _ in range(100):
        with target.process.stop(10) as stopped:
            assert states(target.pid) == {"t"}
            assert {thread.tid for thread in stopped.threads} == set(target.process.threads())
            assert all(thread.complete for thread in stopped.threads)
            before = target.count
            time.sleep(0.0005)
            assert target.count == before
    target.progress()
    assert target.finish() == "bad=0 exit=0"


def test_a_process_whose_main_thread_left(start: Start) -> None:
    target = start("orphaned")
    target.wait_for(lambda: "Z" in states(target.pid))
    for _ in range(10):
        with target.process.stop(5) as stopped:
            assert target.pid not in {thread.tid for thread in stopped.threads}
            assert stopped.threads
            before = target.count
            time.sleep(0.001)
            assert target.count == before
    target.progress()
    target.stop()
    assert target.popen.wait() == 0


def test_forked_children_are_left_alone(start: Start) -> None:
    target = start("forks")
    for _ in range(100):
        with target.process.stop(5):
            pass
    for _ in range(20):
        target.process.map_memory(0x10000000, [(4096, "rx")])
        target.process.unmap_memory(0x10000000, 4096)
    target.progress()
    assert target.finish() == "bad=0 exit=0"


def test_a_process_that_becomes_another_program(start: Start) -> None:
    target = start("exec")
    became = 0
    target.wait_for(lambda: target.count > 0)
    while became < 3:
        with LinuxProcess(target.pid) as process:
            try:
                with process.stop(5):
                    pass
            except ProcessError:  # ProcessGone, or memory that vanished under our eyes
                became += 1
            assert tracer(target.pid) == "0"
    target.progress()
    assert target.finish() == "fine exit=0"


def test_waiting_for_a_vfork_child_is_refused_and_harmless(start: Start) -> None:
    target = start("vfork")
    assert target.process.untouchable() is None
    target.go()
    target.wait_for(lambda: "D" in states(target.pid))
    reason = target.process.untouchable()
    assert reason is not None and "shares its memory" in reason
    with pytest.raises(ProcessError, match=r"did not stop within 0.05 s: it waits for a vfork child"):
        target.process.stop(0.05).__enter__()
    with pytest.raises(ProcessError, match="shares its memory"):
        target.process.map_memory(0x10000000, [(4096, "rx")])
    assert tracer(target.pid) == "0"
    assert target.finish() == "fine exit=0"


def test_the_interrupted_stack_is_seen_from_an_alternate_stack(start: Start) -> None:
    target = start("altstack")
    target.wait_for(lambda: target.went == 1)
    for _ in range(3):
        with target.process.stop(5) as stopped:
            (thread,) = stopped.threads
            assert len(thread.stacks) == 2
            assert b"marker-in-handler" in thread.stacks[0].data
            assert b"marker-interrupted" in thread.stacks[1].data
    assert target.finish() == "bad=0 exit=0"


def test_threads_step_out_of_a_function(start: Start) -> None:
    target = start("busy")
    inner, outer = target.address(0), target.address(1)
    caught = 0
    while caught < 10:
        with target.process.stop(5) as stopped:
            (thread,) = stopped.threads
            rip, rsp = thread.registers[RIP], thread.registers[RSP]
            back = int.from_bytes(target.process.read(rsp, 8), "little")
            if not (inner < rip < inner + 64 and outer < back < outer + 64):
                # the frame is the compiler's business: take the return address into outer off the stack
                data = thread.stacks[0].data
                found = [
                    (at, int.from_bytes(data[at : at + 8], "little"))
                    for at in range(128, 256, 8)
                    if outer < int.from_bytes(data[at : at + 8], "little") < outer + 64
                ]
                if not found:
                    continue
                rsp, back = thread.stacks[0].start + found[0][0], found[0][1]
            assert stopped.step_out({thread.tid: (back, rsp)}, 5)
            (thread,) = stopped.threads
            assert thread.registers[RIP] == back
            assert thread.registers[RSP] > rsp
            before = target.count
            time.sleep(0.001)
            assert target.count == before
            caught += 1
        target.progress()
    assert target.finish() == "fine exit=0"


def test_stepping_out_ends_in_time(start: Start) -> None:
    target = start("busy")
    with target.process.stop(5) as stopped:
        (thread,) = stopped.threads
        assert not stopped.step_out({thread.tid: (0x1000, thread.registers[RSP])}, 0.02)
        assert states(target.pid) == {"t"}
    target.progress()
    assert target.finish() == "fine exit=0"


def test_a_process_under_a_debugger_is_named(start: Start, tmp_path: Path) -> None:
    target = start("threads", "2")
    attached = tmp_path / "attached"
    gdb = subprocess.Popen(
        ["gdb", "-nx", "-batch", "-p", str(target.pid), "-ex", f"shell touch {attached}; sleep 60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        target.wait_for(attached.exists)
        reason = target.process.untouchable()
        assert reason is not None and f"traced by process {tracer(target.pid)} (gdb)" in reason
        with pytest.raises(ProcessError, match="gdb"):
            target.process.stop(1).__enter__()
    finally:
        os.killpg(gdb.pid, signal.SIGKILL)
        gdb.wait()
    target.progress()
    assert target.finish() == "fine exit=0"


def test_the_exit_of_our_own_child_is_left_to_its_maker(start: Start) -> None:
    target = start("threads", "2")
    process = target.process.stop(5)
    with process:
        target.popen.kill()
    assert target.popen.wait() == -signal.SIGKILL
    with pytest.raises(ProcessGone):
        target.process.stop(1).__enter__()
    assert target.process.untouchable() == "it ended"
