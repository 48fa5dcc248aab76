"""How a process of Linux ended that is not our child: told to whoever held it open before (pidfd_open(2)).

Source: include/uapi/linux/pidfd.h, ``PIDFD_GET_INFO`` with ``PIDFD_INFO_EXIT`` since Linux 6.15, which needs no
privilege and knows no namespaces. An older kernel tells it only as long as nobody has collected the process (proc(5),
``exit_code`` of /proc/PID/stat): too short to rely on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import struct
from functools import cache

from midflight.errors import ProcessError, ProcessGone
from midflight.process.maps import read_file, read_stat

_INFO = struct.Struct("=Q52xi")  # struct pidfd_info, version 0: mask, ..., exit code as of wait(2)
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
_INFO_EXIT = 1 << 3


class PidFd:
    """A process held open; its number may pass to another one meanwhile.

    Raises:
        ProcessGone: it ended.
        ProcessError: it cannot be held.
    """

    def __init__(self, pid: int, start_time: int) -> None:
        self.pid, self._start_time = pid, start_time
        _make_room()
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ProcessGone(f"process {pid} ended; nothing left to do") from None
        except OSError as error:
            raise ProcessError(f"process {pid} cannot be held open: {error.strerror}") from None
        if read_stat(pid).start_time != start_time:
            self.close()
            raise ProcessGone(f"process {pid} ended and its number was given to another; look again")

    def ending(self) -> tuple[int, int] | None:
        """The signal that ended it and its exit status; None: it lives, or the kernel does not say."""
        code = self._uncollected()
        return _ending(self._handle) if code is None else _parts(code)

    def _uncollected(self) -> int | None:
        """What its parent has not asked for yet."""
        with contextlib.suppress(ProcessError, ValueError, IndexError):
            stat = read_stat(self.pid)
            if stat.state == "Z" and stat.start_time == self._start_time:
                return int(read_file(f"/proc/{self.pid}/stat").split()[-1])
        return None

    def close(self) -> None:
        """Let it go."""
        os.close(self._handle)


@cache
def _make_room() -> None:
    """One handle for each process that carries something of ours: there may be thousands."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parts(code: int) -> tuple[int, int]:
    return code & 0x7F, code >> 8 & 0xFF


def _ending(handle: int) -> tuple[int, int] | None:
    room = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(handle, _GET_INFO, room)
    except OSError:
        return None
    mask, code = _INFO.unpack(room)
    return _parts(code) if mask & _INFO_EXIT else None


@cache
def tells() -> bool:
    """Whether this kernel says how a process ended that was held: tried with one of our own."""
    child = os.fork()
    if not child:
        os._exit(7)
    try:
        handle = os.pidfd_open(child)
    except OSError:
        os.waitpid(child, 0)
        return False
    try:
        os.waitpid(child, 0)
        return _ending(handle) == (0, 7)
    finally:
        os.close(handle)
