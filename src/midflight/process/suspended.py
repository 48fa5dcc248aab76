"""Which threads of Windows processes we hold still, on record, so that somebody lets them go when we are killed.

Windows does not undo SuspendThread when its caller dies. So before a thread is suspended, its number and its count of
suspensions stand in a file that is mapped into memory (what is written there survives us); and the guardian, a process
of its own, waits for our end and resumes what is left (``midflight.process.guardian``). Should both be killed,
``midflight recover``, or the next engine that works on the process, does the same.

A file is ``PID-START.stopped`` in the run folder: magic, our pid and start time, when the stop began (GetTickCount64),
number of rows, rows of (thread, suspensions before ours); all little endian.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from midflight.errors import ProcessError
from midflight.machine.ownership import make_closed_folder
from midflight.machine.places import run_folder
from midflight.process.win32 import FAILED, THREAD_STOP, api

_MAGIC = b"MFSTOP2\0"
_HEADER = struct.Struct("<8sQQ")
_SINCE_AT = _HEADER.size
_COUNT_AT = _SINCE_AT + 8
_ROWS_AT = _COUNT_AT + 8
_ROW = struct.Struct("<II")
_CAPACITY = 8192
_SIZE = _ROWS_AT + _CAPACITY * _ROW.size
SUFFIX = ".stopped"


class Suspensions:
    """The record of one process while we work on it."""

    def __init__(self, pid: int, start_time: int, owner: tuple[int, int]) -> None:
        folder = run_folder()
        try:
            make_closed_folder(folder)
        except OSError as error:
            raise ProcessError(
                f"the run folder {folder} cannot be used ({error.strerror}): nothing was stopped"
            ) from None
        self._path = folder / f"{pid}-{start_time}{SUFFIX}"
        if self._path.exists():
            # Left by an engine that was killed, and its guardian too: we hold the lock of the process now.
            release(self._path)
        self._file = open(self._path, "w+b")  # noqa: SIM115 (kept open with its mapping)
        self._file.write(_HEADER.pack(_MAGIC, *owner).ljust(_SIZE, b"\0"))
        self._file.flush()
        self._view = mmap.mmap(self._file.fileno(), _SIZE)
        self._rows: list[int] = []

    def about_to(self, tids: Sequence[int]) -> None:
        """Note threads that are about to be suspended, which nobody has suspended yet as far as we know."""
        if len(self._rows) + len(tids) > _CAPACITY:
            raise ProcessError(f"a process with more than {_CAPACITY} threads cannot be stopped: restart it instead")
        at = _ROWS_AT + len(self._rows) * _ROW.size
        for tid in tids:
            _ROW.pack_into(self._view, at, tid, 0)
            at += _ROW.size
        if not self._rows:
            struct.pack_into("<Q", self._view, _SINCE_AT, api().GetTickCount64())
        self._rows += tids
        struct.pack_into("<Q", self._view, _COUNT_AT, len(self._rows))

    def was_suspended(self, tid: int, times: int) -> None:
        """A thread that we suspended had been suspended so many times before."""
        _ROW.pack_into(self._view, _ROWS_AT + self._rows.index(tid) * _ROW.size, tid, times)

    def all_resumed(self) -> None:
        """None is held any more."""
        struct.pack_into("<Q", self._view, _COUNT_AT, 0)
        self._rows.clear()

    def close(self) -> None:
        """Remove the record."""
        self._view.close()
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def left(owner: tuple[int, int] | None = None, pid: int | None = None) -> list[Path]:
    """Records that an owner left, or that are about a process."""
    found = []
    for path in run_folder().glob(f"*{SUFFIX}"):
        try:
            head = path.read_bytes()[:_ROWS_AT]
        except OSError:
            continue
        if len(head) == _ROWS_AT and head.startswith(_MAGIC):
            whose = struct.unpack_from("<QQ", head, 8)
            about = path.name.partition("-")[0]
            if (owner is None or whose == owner) and (pid is None or about == str(pid)):
                found.append(path)
    return found


def longest(owner: tuple[int, int]) -> float:
    """For how long the oldest stop of an owner has lasted by now, in seconds; 0 when it holds nobody."""
    ages = [0.0]
    for path in left(owner=owner):
        with contextlib.suppress(OSError):
            since, count = struct.unpack_from("<QQ", path.read_bytes()[:_ROWS_AT].ljust(_ROWS_AT, b"\0"), _SINCE_AT)
            if count:
                ages.append((api().GetTickCount64() - since) / 1000)
    return max(ages)


def release(path: Path) -> int:
    """Resume what a record says is still held, and remove it; how many threads were."""
    try:
        data = path.read_bytes()
        pid = int(path.name.partition("-")[0])
    except (OSError, ValueError):
        return 0
    (count,) = struct.unpack_from("<Q", data, _COUNT_AT) if len(data) == _SIZE else (0,)
    resumed = 0
    for index in range(min(count, _CAPACITY)):
        tid, before = _ROW.unpack_from(data, _ROWS_AT + index * _ROW.size)
        resumed += _resume(pid, tid, before)
    with contextlib.suppress(OSError):
        path.unlink()
    return resumed


def _resume(pid: int, tid: int, before: int) -> bool:
    """Bring the suspensions of a thread down to what they were before ours."""
    win = api()
    handle = win.OpenThread(THREAD_STOP | 0x0800, False, tid)
    if not handle:
        return False
    try:
        if win.GetProcessIdOfThread(handle) != pid:
            return False
        # The count is told by suspending once more; that is taken back first.
        held = win.SuspendThread(handle)
        if held == FAILED:
            return False
        win.ResumeThread(handle)
        for _ in range(held - before):
            win.ResumeThread(handle)
        return bool(held > before)
    finally:
        win.CloseHandle(handle)


def owner_of_this() -> tuple[int, int]:
    """This process, as owners are named."""
    from midflight.process.windows import start_time_of

    return os.getpid(), start_time_of(api().GetCurrentProcess())
