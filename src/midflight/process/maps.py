"""What /proc tells of a process, parsed (proc(5)): address space, status, threads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from midflight.errors import ProcessError, ProcessGone
from midflight.process.model import Mapping

PF_KTHREAD = 0x00200000  # include/linux/sched.h
PF_EXITING = 0x00000004
_FIELD = re.compile(r"^(\w+):[ \t]*(.*?)[ \t]*$", re.MULTILINE)


def read_file(path: str, short: bool = False) -> bytes:
    """A whole file of /proc; :class:`ProcessGone` when its process is gone.

    Args:
        short: the kernel gives all of it in one go (single_open of seq_file.h), and it is less than a page.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"process {_pid_of(path)} ended; nothing left to do") from None
    except OSError as error:
        raise ProcessError(f"cannot open {path}: {error.strerror}; run as root or as the owner") from None
    try:
        if short:
            return os.read(fd, 4096)
        chunks = []
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)
    except ProcessLookupError:
        raise ProcessGone(f"process {_pid_of(path)} ended; nothing left to do") from None
    except OSError as error:
        raise ProcessError(f"cannot read {path}: {error.strerror}; run as root or as the owner") from None
    finally:
        os.close(fd)


def _pid_of(path: str) -> str:
    return path.split("/")[2]


def parse_maps(text: bytes) -> list[Mapping]:
    """The lines of /proc/PID/maps, in address order."""
    return [_mapping(line) for line in text.decode("utf-8", "surrogateescape").split("\n") if line]


def parse_code(text: bytes) -> list[Mapping]:
    """Those lines alone that map executable code of a file: a few of the hundreds that a large process has."""
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    executable = (line for line in lines if line.partition(" ")[2][2:3] == "x")
    return [mapping for line in executable if (mapping := _mapping(line)).inode]


@lru_cache(maxsize=4096)
def _mapping(line: str) -> Mapping:
    """One line. Of one process the same lines are read again and again while it is worked on."""
    fields = line.split(None, 5)
    start, _, end = fields[0].partition("-")
    flags = fields[1]
    major, _, minor = fields[3].partition(":")
    return Mapping(
        int(start, 16),
        int(end, 16),
        flags[0] == "r",
        flags[1] == "w",
        flags[2] == "x",
        flags[3] == "p",
        int(fields[2], 16),
        (int(major, 16), int(minor, 16)),
        int(fields[4]),
        fields[5].replace("\\012", "\n") if len(fields) > 5 else "",
    )


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that we use."""

    comm: str
    state: str
    parent: int
    flags: int
    start_time: int

    @property
    def kernel_thread(self) -> bool:
        """A thread of the kernel: it has no program."""
        return bool(self.flags & PF_KTHREAD)

    @property
    def exiting(self) -> bool:
        """On its way out: ptrace(2) refuses to attach, as if it were not permitted."""
        return bool(self.flags & PF_EXITING) or self.state in "ZX"


def read_stat(pid: int, tid: int | None = None) -> Stat:
    """Read /proc/PID/stat, or that of one thread."""
    path = f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"
    text = read_file(path, short=True).decode("utf-8", "replace")
    comm_end = text.rindex(")")  # the name may hold spaces and parentheses
    fields = text[comm_end + 2 :].split(None, 20)
    return Stat(text[text.index("(") + 1 : comm_end], fields[0], int(fields[1]), int(fields[6]), int(fields[19]))


def read_status(pid: int) -> dict[str, str]:
    """Read /proc/PID/status by field name."""
    return dict(_FIELD.findall(read_file(f"/proc/{pid}/status").decode("utf-8", "replace")))


def list_threads(pid: int) -> list[int]:
    """Thread ids, now."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"process {pid} ended; nothing left to do") from None


def list_children(pid: int) -> list[int]:
    """The direct children of all threads of a process (CONFIG_PROC_CHILDREN), or by looking at every process."""
    children: list[int] = []
    try:
        for tid in list_threads(pid):
            try:
                children += map(int, read_file(f"/proc/{pid}/task/{tid}/children").split())
            except ProcessGone:
                if not os.path.exists("/proc/self/task/self/children") and not os.path.exists(
                    f"/proc/self/task/{os.getpid()}/children"
                ):
                    raise
        return children
    except ProcessGone:
        pass
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if read_stat(int(name)).parent == pid:
                    children.append(int(name))
            except ProcessError:
                continue
    return children
