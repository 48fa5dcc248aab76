"""Process events of the Linux kernel: the process events connector (connector/process events over netlink).

Source: include/uapi/linux/cn_proc.h, connector.h, netlink.h; drivers/connector/cn_proc.c. Needs CAP_NET_ADMIN, and
the first user, process and network namespaces: in others the kernel takes the request and never answers, which is why
the answer is waited for. A socket stays in the network namespace in which it was made, so that a process of another one
can have it too, by a thread that enters the first (setns(2), CAP_SYS_ADMIN). Stable since Linux 2.6.15; where BPF,
fanotify or tracefs would tell as much they need more privileges, a mounted file system, or a compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from midflight.errors import ProcessError
from midflight.process.events import Event
from midflight.process.maps import read_stat

_NETLINK_CONNECTOR = 11
_CN_IDX_PROC, _CN_VAL_PROC = 1, 1
_LISTEN, _IGNORE = 1, 2
_NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_CONNECTOR = struct.Struct("=IIIIHH")  # cn_msg: idx, val, seq, ack, length, flags
_EVENT = struct.Struct("=IIQ")  # proc_event: what, cpu, timestamp in ns (ktime_get_ns: CLOCK_MONOTONIC)
_EVENT_AT = _HEADER.size + _CONNECTOR.size
_DATA_AT = _EVENT_AT + _EVENT.size
_NONE, _FORK, _EXEC, _EXIT = 0, 0x1, 0x2, 0x80000000
_FORKED = struct.Struct("=IIII")  # parent pid, parent tgid, child pid, child tgid
_ENDED = struct.Struct("=IIII")  # pid, tgid, exit code, exit signal
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_CLONE_NEWNET = 0x40000000
_KTHREADD = 2
"""The parent of all threads of the kernel (in the first process namespace), which live in the first namespaces."""
_BUFFER = 8 << 20
_ANSWER_WITHIN = 1.0
_TOGETHER = 0.001
"""Seconds to wait for more. Nothing is lost by it: before that, no new process has its libraries."""
_MOST = 4096
"""Messages taken in one go, so that the caller gets to work under any load."""


def _swap(word: int) -> int:
    """A 32-bit word of the host, as the filter's big-endian loads see it."""
    return int.from_bytes(struct.pack("=I", word), "big")


def _filter() -> bytes:
    """A classic BPF program (linux/filter.h) that lets through, of all events, those of whole processes that we use:
    a busy machine starts and ends threads all the time, and each would wake us up."""
    load, equal, equal_x, to_x = 0x20, 0x15, 0x1D, (0x07, 0, 0, 0)
    program = (
        (load, 0, 0, _EVENT_AT),
        (equal, 12, 0, _swap(_EXEC)),
        (equal, 11, 0, _swap(_NONE)),
        (equal, 6, 0, _swap(_FORK)),
        (equal, 1, 0, _swap(_EXIT)),
        (0x06, 0, 0, 0),  # drop
        (load, 0, 0, _DATA_AT),  # an exit: of a whole process, if its thread and process ids are equal
        to_x,
        (load, 0, 0, _DATA_AT + 4),
        (equal_x, 4, 5, 0),
        (load, 0, 0, _DATA_AT + 8),  # a fork: of a process, if those of the child are
        to_x,
        (load, 0, 0, _DATA_AT + 12),
        (equal_x, 0, 1, 0),
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
        (0x06, 0, 0, 0),  # drop
    )
    return b"".join(struct.pack("=HBBI", *line) for line in program)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)


def _socket_of_first_network() -> socket.socket:
    """A socket of the first network namespace where a thread of the kernel shows that this is not ours.

    Raises:
        OSError: that namespace cannot be entered, or the kernel has no such sockets.
    """
    path = f"/proc/{_KTHREADD}/ns/net"
    try:
        elsewhere = read_stat(_KTHREADD).kernel_thread and not os.path.samefile(path, "/proc/self/ns/net")
    except (ProcessError, OSError):
        elsewhere = False
    if not elsewhere:
        return _socket()

    def enter() -> socket.socket:
        with open(path, "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, f"{os.strerror(number)} to enter the first network namespace")
        return _socket()

    # Namespaces belong to threads; this one ends here.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


class Connector:
    """The events of this machine; see :class:`midflight.process.events.ProcessEvents`.

    Raises:
        ProcessError: the kernel does not tell them to us.
    """

    source = "the kernel's process events"
    tells_how_processes_end = True

    def __init__(self) -> None:
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._socket = _socket_of_first_network()
        except OSError as error:
            self._close_pipe()
            raise ProcessError(f"the kernel's process events cannot be had ({error.strerror})") from None
        try:
            self._subscribe()
        except (OSError, ProcessError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ProcessError(f"the kernel's process events cannot be had ({reason})") from None
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)

    def _subscribe(self) -> None:
        program = _filter()
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        code = ctypes.create_string_buffer(program)
        argument = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        self._socket.bind((0, _CN_IDX_PROC))
        self._socket.setblocking(False)
        self._say(_LISTEN)
        deadline = time.monotonic() + _ANSWER_WITHIN
        while True:
            ready, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ProcessError("it does not answer: not in the first namespaces of this machine?")
            data = self._socket.recv(4096)
            if len(data) >= _DATA_AT + 4 and _EVENT.unpack_from(data, _EVENT_AT)[0] == _NONE:
                number = struct.unpack_from("=I", data, _DATA_AT)[0]
                if number:
                    raise ProcessError(os.strerror(number))
                return

    def _say(self, operation: int) -> None:
        body = _CONNECTOR.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, 4, 0) + struct.pack("=I", operation)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _NLMSG_DONE, 0, 0, 0) + body)

    def wait(self, timeout: float) -> Sequence[Event]:
        """See the protocol."""
        try:
            ready = self._poll.poll(max(0, -(-timeout * 1000 // 1)))
        except InterruptedError:
            return ()
        events: list[Event] = []
        for handle, _ in ready:
            if handle == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                # A fork, an exec and an exit come within a moment: one waking is enough for them.
                time.sleep(_TOGETHER)
                self._receive(events)
        return events

    def _receive(self, events: list[Event]) -> None:
        for _ in range(_MOST):
            try:
                data, sender = self._socket.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: more happened than the buffer holds.
                events.append(Event("missed"))
                if error.errno != errno.ENOBUFS:
                    return
                continue
            if sender[0] == 0 and len(data) >= _DATA_AT:  # from the kernel, and nobody else
                event = _parse(data)
                if event is not None:
                    events.append(event)

    def wake(self) -> None:
        """See the protocol."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    def close(self) -> None:
        """See the protocol."""
        with contextlib.suppress(OSError):
            self._say(_IGNORE)
        self._socket.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        for handle in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(handle)


def _parse(data: bytes) -> Event | None:
    what, _, stamp = _EVENT.unpack_from(data, _EVENT_AT)
    at = stamp / 1e9
    if what == _EXEC and len(data) >= _DATA_AT + 8:
        return Event("started", struct.unpack_from("=II", data, _DATA_AT)[1], at)
    if what == _FORK and len(data) >= _DATA_AT + _FORKED.size:
        _, parent, thread, child = _FORKED.unpack_from(data, _DATA_AT)
        return Event("forked", child, at, parent=parent) if thread == child else None
    if what == _EXIT and len(data) >= _DATA_AT + _ENDED.size:
        thread, pid, code, _ = _ENDED.unpack_from(data, _DATA_AT)
        return Event("ended", pid, at, signal=code & 0x7F, status=code >> 8 & 0xFF) if thread == pid else None
    return None
