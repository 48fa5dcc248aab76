"""Letting single threads run to a given return address while all others stand still.

A hardware breakpoint stops each thread exactly there, at full speed. It is made with perf_event_open(2), not ptrace:
debug registers set through ptrace, and single-stepping too, outlive the tracer, and would kill the target with SIGTRAP
if we died in between. A perf breakpoint is gone with its file descriptor, before the kernel lets our tracees go; and it
tells of itself by a signal that does nothing in this target (one that is ignored by default and has no handler).

Where there is no such breakpoint or no such signal, no thread is moved: the caller tries again later.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midflight.errors import ProcessError, ProcessGone
from midflight.process import ptrace as pt
from midflight.process.faults import point
from midflight.process.maps import read_file
from midflight.process.wait import pending_signal

if TYPE_CHECKING:
    from midflight.process.stop import Stop

# struct perf_event_attr, first published size plus config2 (linux/perf_event.h)
_ATTRIBUTES = struct.Struct("<IIQQQQQIIQQ")
_TYPE_BREAKPOINT = 5
_EXECUTE = 4
_DISABLED_NO_KERNEL_NO_HYPERVISOR = 0x01 | 0x20 | 0x40
_IOC_REFRESH = 0x2402
_F_SETSIG, _F_SETOWN_EX, _F_OWNER_TID = 10, 15, 0
_HARMLESS = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)
_SIGINFO_CODE, _SIGINFO_FD = 8, 24


@dataclass(slots=True)
class _Runner:
    """A thread on its way to ``address`` with a stack pointer above ``above``."""

    tid: int
    address: int
    above: int
    number: int
    fd: int = -1

    def arm(self) -> bool:
        """Set a breakpoint that fires once; False when there is none to be had."""
        self.disarm()
        attributes = _ATTRIBUTES.pack(
            *(_TYPE_BREAKPOINT, _ATTRIBUTES.size, 0, 1, 0, 0, _DISABLED_NO_KERNEL_NO_HYPERVISOR),
            *(1, _EXECUTE, self.address, 8),
        )
        self.fd = pt.perf_event_open(attributes, self.tid)
        if self.fd < 0:
            return False
        try:
            fcntl.fcntl(self.fd, _F_SETOWN_EX, struct.pack("<ii", _F_OWNER_TID, self.tid))
            fcntl.fcntl(self.fd, _F_SETSIG, self.number)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, _IOC_REFRESH, 1)
        except OSError:
            return False
        return True

    def disarm(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def arrived(self) -> bool:
        registers = pt.get_registers(self.tid)
        return registers[pt.RIP] == self.address and registers[pt.RSP] > self.above

    def made(self, number: int) -> bool:
        """Whether the signal that the thread stopped with comes from our breakpoint."""
        if number != self.number:
            return False
        info = ctypes.create_string_buffer(128)
        if pt.ptrace(pt.GETSIGINFO, self.tid, 0, ctypes.addressof(info)) < 0:
            return False
        code: int = struct.unpack_from("<i", info.raw, _SIGINFO_CODE)[0]
        fd: int = struct.unpack_from("<i", info.raw, _SIGINFO_FD)[0]
        return 0 < code <= 6 and fd == self.fd  # POLL_IN ... POLL_HUP


def out(stop: Stop, exits: dict[int, tuple[int, int]], timeout: float) -> tuple[bool, list[int]]:
    """Run the threads in ``exits`` until each is at its return address above its stack pointer.

    Returns whether all got there, and the threads that moved. All of them are stopped again, without breakpoints.
    """
    known = {thread.tid for thread in stop.threads}
    moved: list[int] = []
    running: dict[int, _Runner] = {}
    reached = 0
    deadline = time.monotonic() + timeout
    try:
        for tid, (address, above) in exits.items():
            number = _harmless_signal(stop.process.pid, tid) if tid in known else 0
            if not number:
                continue
            runner = _Runner(tid, address, above, number)
            if not runner.arm():
                runner.disarm()
                continue
            running[tid] = runner
            moved.append(tid)
            point("step.armed")
            _go_on(stop, tid)
        while running and time.monotonic() < deadline:
            progress = False
            for tid, runner in list(running.items()):
                came = _poll(stop, tid, running, moved)
                if came is None:
                    continue
                progress = True
                if _settle(stop, runner, came):
                    point("step.arrived")
                    reached += 1
                    running.pop(tid).disarm()
                elif came == 0 or runner.arm():
                    _go_on(stop, tid)
                else:
                    running.pop(tid).disarm()
            if not progress:
                time.sleep(0.0001)
    finally:
        _halt(stop, running, moved)
        point("step.halted")
    return reached == len(exits), moved


def _harmless_signal(pid: int, tid: int) -> int:
    """A signal that does nothing when it is delivered to this thread, and is not blocked; 0: there is none."""
    masks = {}
    with contextlib.suppress(ProcessError):
        for line in read_file(f"/proc/{pid}/task/{tid}/status").split(b"\n"):
            name, _, value = line.partition(b":")
            if name in (b"SigCgt", b"SigBlk"):
                masks[name] = int(value, 16)
    if len(masks) < 2:
        return 0
    taken = masks[b"SigCgt"] | masks[b"SigBlk"]
    return next((int(number) for number in _HARMLESS if not taken >> (number - 1) & 1), 0)


def _go_on(stop: Stop, tid: int) -> None:
    pt.ptrace(pt.CONT, tid, 0, stop.signals.pop(tid, 0))


def _poll(stop: Stop, tid: int, running: dict[int, _Runner], moved: list[int]) -> int | None:
    """The signal of a thread that stopped (0: another kind of stop), None while it runs; a dead one is dropped."""
    try:
        status = stop.waiter().wait(tid)
    except (ChildProcessError, ProcessGone):
        status = 0
    if status is None:
        return None
    if status & 0xFF == 0x7F and status >> 16 != pt.EVENT_EXEC:
        return pending_signal(status)
    running.pop(tid).disarm()
    moved.remove(tid)
    if status & 0xFF == 0x7F:
        raise ProcessGone(f"process {stop.process.pid} became another program; look at it again")
    stop.drop(tid)
    return None


def _settle(stop: Stop, runner: _Runner, number: int) -> bool:
    """Keep a signal that is the target's own for its way out; tell whether the thread is where it is to be."""
    if number and not runner.made(number):
        stop.signals[runner.tid] = number
    return runner.arrived()


def _halt(stop: Stop, running: dict[int, _Runner], moved: list[int]) -> None:
    """Stop again what still runs."""
    for tid in running:
        pt.ptrace(pt.INTERRUPT, tid, 0, 0)
    while running:
        for tid, runner in list(running.items()):
            number = _poll(stop, tid, running, moved)
            if number is None:
                continue
            _settle(stop, runner, number)
            running.pop(tid).disarm()
            registers = pt.get_registers(tid)
            changed = pt.restart_later(registers)
            if changed is not registers:
                pt.ptrace(pt.POKEUSER, tid, 8 * pt.RAX, changed[pt.RAX])
        if running:
            time.sleep(0.0001)
