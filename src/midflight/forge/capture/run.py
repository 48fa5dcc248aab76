"""Running the user's build command: in a process group of its own, with its output in a log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

from midflight.errors import ForgeError

Progress = Callable[[str], None]

_TELLING = re.compile(
    r"(?i)(\berror:|fatal error|undefined reference|multiple definition|ld returned|no rule to make target|: not found"
    r"|command not found|no such file or directory|permission denied|cannot find -l|cmake error|\*\*\* )"
)
_LINES = 14

_forbidden: ContextVar[bool] = ContextVar("builds are forbidden", default=False)


class NotBuilt(ForgeError):
    """A build would be needed, and :func:`no_builds` is in force."""


@contextlib.contextmanager
def no_builds() -> Iterator[None]:
    """Let nothing be built inside of this: what is cached is taken, anything else raises :class:`NotBuilt`."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def may_build(what: str) -> None:
    """Raises:
    NotBuilt: :func:`no_builds` is in force; ``what`` would be needed.
    """
    if _forbidden.get():
        raise NotBuilt(f"{what} for this yet")


def run_build(
    command: str,
    tree: Path,
    environment: Mapping[str, str],
    log: Path,
    tell: Callable[[float], None],
    enter: Sequence[str] = (),
) -> None:
    """Run ``sh -c command`` in ``tree``; ``tell`` is called with the elapsed seconds about once a second.

    ``enter`` are words to put before the command, see :mod:`midflight.forge.matching.place`.

    Whatever ends it early (an interrupt, an error), its whole process group is killed before this returns.

    Raises:
        NotBuilt: no build is wanted.
        ForgeError: the command failed; the message has the telling lines of its output.
    """
    may_build(f"'{command}' has not been run")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*enter, "/bin/sh", "-c", command],
            cwd=tree,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with _terminable():
                while True:
                    try:
                        status = process.wait(timeout=1.0)
                        break
                    except subprocess.TimeoutExpired:
                        tell(time.monotonic() - began)
        finally:
            _end(process)
    if status:
        how = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
        raise ForgeError(f"the build command '{command}' {how}; it said:\n{telling_lines(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group of a build that has not ended by itself."""
    if process.poll() is not None:
        return
    for number, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the build as Ctrl-C does, so that it is killed and cleaned up after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def telling_lines(log: Path) -> str:
    """The lines of a build's output that say why it failed: from the first complaint on, otherwise the last ones."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (4 << 20)))
        lines = file.read().decode(errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if _TELLING.search(line) and "warning:" not in line), None)
    if first is None or first >= len(lines) - _LINES:
        shown = lines[-_LINES:]
    else:
        shown = [*lines[max(0, first - 1) : first + _LINES - 3], "...", lines[-1]]
    return "\n".join("  " + line[:300] for line in shown) or "  (nothing)"
