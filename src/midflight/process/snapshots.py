"""Process events of Windows, by looking at the list of processes ten times a second or more.

Why by looking: what would tell us needs more than a plain service may have. A notification of the kernel
(PsSetCreateProcessNotifyRoutine) needs a driver; the events of WMI (Win32_ProcessStartTrace) and ETW
(Microsoft-Windows-Kernel-Process) need COM, or a tracing session that other products may have taken, come with
seconds or buffers of delay, and can be ended by anybody who may end sessions. One call of NtQuerySystemInformation
lists all processes with their times of creation in about a millisecond and has none of that. A process that begins
and ends between two looks is not seen; it has ended. Neither WMI's events nor ETW exist in Wine, where this is
tested.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from collections.abc import Sequence
from ctypes import c_uint32, c_void_p
from functools import cache
from typing import Any

from midflight.errors import ProcessError
from midflight.process.events import Event

INTERVAL = 0.1
"""Seconds between two looks, at most."""

_PROCESS_INFORMATION = 5  # SystemProcessInformation
_LENGTH_MISMATCH = 0xC0000004
# SYSTEM_PROCESS_INFORMATION of 64-bit Windows (winternl.h, ntexapi.h): next entry, threads, ..., creation time at 32
# (100 ns since 1601), ..., process id at 80
_NEXT = struct.Struct("<I")
_CREATED, _PID = struct.Struct("<Q"), struct.Struct("<Q")
_CREATED_AT, _PID_AT = 32, 80


@cache
def _query() -> Any:
    function = getattr(ctypes, "WinDLL")("ntdll").NtQuerySystemInformation  # noqa: B009 (unknown on other systems)
    function.restype, function.argtypes = c_uint32, [c_uint32, c_void_p, c_uint32, c_void_p]
    return function


class Snapshots:
    """See :class:`midflight.process.events.ProcessEvents`. How a process ended is known to whoever holds a handle of
    it."""

    source = f"looking at the list of processes every {INTERVAL * 1000:.0f} ms"
    tells_how_processes_end = False

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._room = ctypes.create_string_buffer(1 << 17)
        self._woken = threading.Event()
        self._next = 0.0
        self._seen = self.created()

    def wait(self, timeout: float) -> Sequence[Event]:
        """See the protocol."""
        now = time.monotonic()
        if self._woken.wait(max(0.0, min(max(self._next, now), now + timeout) - now)):
            self._woken.clear()
        now = time.monotonic()
        if now < self._next:
            return ()
        self._next = now + self._interval
        try:
            found = self.created()
        except ProcessError:
            return [Event("missed")]
        ended = [Event("ended", pid, now) for pid, created in self._seen.items() if found.get(pid) != created]
        began = [Event("started", pid, now) for pid, created in found.items() if self._seen.get(pid) != created]
        self._seen = found
        return [*ended, *began]

    def created(self) -> dict[int, int]:
        """Time of creation by pid.

        Raises:
            ProcessError: the system does not list them.
        """
        needed = c_uint32()
        while True:
            size = len(self._room)
            status = _query()(_PROCESS_INFORMATION, self._room, size, ctypes.byref(needed))
            if status != _LENGTH_MISMATCH:
                break
            self._room = ctypes.create_string_buffer(max(needed.value, size) + (1 << 16))
        if status:
            raise ProcessError(f"the processes of this machine cannot be listed (NTSTATUS {status:#x})")
        data, at = memoryview(self._room), 0
        found: dict[int, int] = {}
        while True:
            (pid,) = _PID.unpack_from(data, at + _PID_AT)
            if pid:
                (found[pid],) = _CREATED.unpack_from(data, at + _CREATED_AT)
            (following,) = _NEXT.unpack_from(data, at)
            if not following:
                return found
            at += following

    def wake(self) -> None:
        """See the protocol."""
        self._woken.set()

    def close(self) -> None:
        """See the protocol."""
