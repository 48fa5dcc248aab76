"""Steady real requests to a daemon inside a network namespace: each is checked, none may fail."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from pathlib import Path

from demo.fleet import daemon

_CLONE_NEWNET = 0x40000000  # linux/sched.h


def enter_network(path: Path) -> None:
    """Let the calling thread have the network of a namespace from now on (setns(2) works on threads)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(handle)


def get(page: str, timeout: float = 10.0) -> str:
    """The body that webd answers with, in the network of the calling thread."""
    with socket.create_connection(("127.0.0.1", daemon.PORT), timeout) as peer:
        peer.sendall(f"GET {page} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while part := peer.recv(65536):
            data += part
    head, _, body = data.decode().partition("\r\n\r\n")
    if not head.startswith("HTTP/1.0 "):
        raise ConnectionError(f"no answer to {page}: {data!r}")
    return body.strip()


class Load:
    """Requests one after the other, from a thread of its own, until ``stop``."""

    def __init__(self, network: Path) -> None:
        self._network = network
        self._over = threading.Event()
        self.requests = 0
        self.failed: list[str] = []
        self.slowest = 0.0
        """Seconds."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            enter_network(self._network)
            while not self._over.wait(0.004):
                began = time.monotonic()
                try:
                    answer = get(daemon.HARMLESS)
                    if answer != daemon.GREETING:
                        self.failed.append(f"answered {answer!r}")
                except OSError as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                self.requests += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
        except Exception as error:
            self.failed.append(f"the load itself ended: {error}")

    def stop(self) -> None:
        """No more requests."""
        self._over.set()
        self._thread.join(30)
