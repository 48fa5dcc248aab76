"""Letting single threads run to a given return address while all others stand still.

A debug register per thread (Intel SDM volume 3, 17.2) stops it exactly there at full speed; where there are no debug
registers, the thread is single-stepped. Both end in a SIGTRAP that is ours and never reaches the target.
"""

from __future__ import annotations

import ctypes
import struct
import time
from typing import TYPE_CHECKING

from midflight.errors import ProcessGone
from midflight.process import ptrace as pt
from midflight.process.faults import point

if TYPE_CHECKING:
    from midflight.process.stop import Stop

_SIGTRAP = 5
_DR7 = pt.DEBUG_REGISTER + 8 * 7
_ENABLE_0 = 1
_TRAP_CODES = frozenset((1, 2, 4))  # TRAP_BRKPT, TRAP_TRACE, TRAP_HWBKPT of SIGTRAP (sigaction(2))


def out(stop: Stop, exits: dict[int, tuple[int, int]], timeout: float) -> tuple[bool, list[int]]:
    """Run the threads in ``exits`` until each is at its return address above its stack pointer.

    Returns whether all got there, and the threads that moved. All of them are stopped again, without debug registers.
    """
    known = {thread.tid for thread in stop.threads}
    running: dict[int, bool] = {}
    reached: set[int] = set()
    moved = [tid for tid in exits if tid in known]
    deadline = time.monotonic() + timeout
    try:
        for tid in moved:
            running[tid] = _arm(tid, exits[tid][0])
            point("step.armed")
            _go_on(stop, tid, running[tid])
        while running and time.monotonic() < deadline:
            progress = False
            for tid in list(running):
                status = _poll(stop, tid, running, moved)
                if status is None:
                    continue
                progress = True
                if _arrived(stop, tid, status, exits[tid]):
                    reached.add(tid)
                    del running[tid]
                else:
                    _go_on(stop, tid, running[tid])
            if not progress:
                time.sleep(0.0001)
    finally:
        _halt(stop, running, moved)
        for tid in moved:
            pt.ptrace(pt.POKEUSER, tid, _DR7, 0)
        point("step.disarmed")
    return len(reached) == len(moved) == len(exits), moved


def _arm(tid: int, address: int) -> bool:
    """Set the thread's first debug register; False when there are none."""
    if pt.ptrace(pt.POKEUSER, tid, pt.DEBUG_REGISTER, address) < 0:
        return False
    return bool(pt.ptrace(pt.POKEUSER, tid, _DR7, _ENABLE_0) >= 0)


def _go_on(stop: Stop, tid: int, armed: bool) -> None:
    pt.ptrace(pt.CONT if armed else pt.SINGLESTEP, tid, 0, stop.signals.pop(tid, 0))


def _poll(stop: Stop, tid: int, running: dict[int, bool], moved: list[int]) -> int | None:
    """The status of a thread that stopped; a dead one is taken out of the game."""
    try:
        status = stop.waiter().wait(tid)
    except (ChildProcessError, ProcessGone):
        status = 0
    if status is None:
        return None
    if status & 0xFF == 0x7F and status >> 16 != pt.EVENT_EXEC:
        return status
    del running[tid]
    moved.remove(tid)
    if status & 0xFF == 0x7F:
        raise ProcessGone(f"process {stop.process.pid} became another program; look at it again")
    stop.drop(tid)
    return None


def _arrived(stop: Stop, tid: int, status: int, goal: tuple[int, int]) -> bool:
    """Whether this stop is the arrival; remembers signals that belong to the target."""
    if status >> 16:
        return False  # group stop or a left-over of our interrupt: it goes on
    number = (status >> 8) & 0xFF
    if number != _SIGTRAP or not _is_ours(tid):
        stop.signals[tid] = number
        return False
    registers = pt.get_registers(tid)
    return registers[pt.RIP] == goal[0] and registers[pt.RSP] > goal[1]


def _is_ours(tid: int) -> bool:
    info = ctypes.create_string_buffer(128)
    if pt.ptrace(pt.GETSIGINFO, tid, 0, ctypes.addressof(info)) < 0:
        return False
    code: int = struct.unpack_from("<i", info.raw, 8)[0]
    return code in _TRAP_CODES


def _halt(stop: Stop, running: dict[int, bool], moved: list[int]) -> None:
    """Stop again what still runs; a signal that it stops with is kept for its way out."""
    for tid in running:
        pt.ptrace(pt.INTERRUPT, tid, 0, 0)
    while running:
        for tid in list(running):
            status = _poll(stop, tid, running, moved)
            if status is None:
                continue
            del running[tid]
            if status >> 16 == 0:
                number = (status >> 8) & 0xFF
                if number != _SIGTRAP or not _is_ours(tid):
                    stop.signals[tid] = number
            else:
                _restart_quietly(tid)
        if running:
            time.sleep(0.0001)


def _restart_quietly(tid: int) -> None:
    registers = pt.get_registers(tid)
    changed = pt.restart_later(registers)
    if changed is not registers:
        pt.ptrace(pt.POKEUSER, tid, 8 * pt.RAX, changed[pt.RAX])
