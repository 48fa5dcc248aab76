"""The guardian: ``python -m midflight.process.guardian PID START`` waits for the end of an engine on Windows, and
resumes the threads that it held still when it was killed. One is started by an engine before its first stop, and ends
with it.

An engine whose stop does not end is ended by it: Windows may keep GetThreadContext waiting for a thread without a limit
(one that a driver holds, say), and no target is to stand still for that.
"""

from __future__ import annotations

import subprocess
import sys

from midflight.errors import MidflightError, ProcessError
from midflight.process import suspended
from midflight.process.win32 import PROCESS_READ, PROCESS_TERMINATE, api, open_process

_DETACHED = 0x00000008 | 0x00000200  # DETACHED_PROCESS, CREATE_NEW_PROCESS_GROUP: no Ctrl-C of ours reaches it
LONGEST_STOP = 10.0
"""Seconds after which a stop is one that does not end: ten times as long as one may take to find all threads still."""
STUCK = 71
"""The exit status of an engine that was ended for that (EX_OSERR of sysexits.h)."""
_LOOK_EVERY = 1000
_started: subprocess.Popen[bytes] | None = None
_watching = False


def start() -> None:
    """Start the guardian of this process, unless it runs; does not wait until it watches.

    Raises:
        ProcessError: it cannot be started.
    """
    global _started, _watching
    if _started is not None and _started.poll() is None:
        return
    owner = suspended.owner_of_this()
    command = [sys.executable, "-m", "midflight.process.guardian", str(owner[0]), str(owner[1])]
    flags = _DETACHED if sys.platform == "win32" else 0
    _watching = False
    try:
        _started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, creationflags=flags
        )
    except OSError as error:
        raise ProcessError(f"the guardian cannot be started ({error}): nothing was stopped") from error


def watch_over_us() -> None:
    """Start the guardian, if need be, and wait until it watches.

    Raises:
        ProcessError: it does not start; then nothing may be stopped.
    """
    global _watching
    start()
    if not _watching:
        assert _started is not None and _started.stdout is not None
        if _started.stdout.readline().strip() != b"watching":
            raise ProcessError("the guardian did not start: nothing was stopped (run it by hand to see why)")
        _watching = True


def main() -> int:
    """Wait for the process named, and let go what it left."""
    owner = int(sys.argv[1]), int(sys.argv[2])
    try:
        handle = open_process(owner[0], PROCESS_READ | PROCESS_TERMINATE)
    except MidflightError:
        handle = 0
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    while handle and api().WaitForSingleObject(handle, _LOOK_EVERY) != 0:
        if suspended.longest(owner) > LONGEST_STOP:
            api().TerminateProcess(handle, STUCK)
    for path in suspended.left(owner=owner):
        suspended.release(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
