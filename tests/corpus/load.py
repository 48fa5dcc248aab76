"""Load on a server while it is patched: requests on the loopback interface, paced, each answer looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

CLIENTS = 2
PACE = 0.004
"""Seconds from one request of a client to the next: plenty for a patch to meet some of them, little for the machine."""


class Load:
    """Clients that ask for as long as the context lasts; then ``requests`` and ``failures`` tell how it went."""

    def __init__(self, request: Callable[[], None]) -> None:
        self._request = request
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        self.requests = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._end.is_set():
            started = time.monotonic()
            failure = None
            try:
                self._request()
            except Exception as error:  # whatever it is, this request failed
                failure = f"{type(error).__name__}: {error}"
            with self._lock:
                self.requests += 1
                if failure is not None:
                    self.failures.append(failure)
            self._end.wait(max(0.0, PACE - (time.monotonic() - started)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
