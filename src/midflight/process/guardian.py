"""The guardian: ``python -m midflight.process.guardian PID`` waits for the end of an engine on Windows, and resumes the
threads that it held still when it was killed. One is started by an engine before its first stop, and ends with it.
"""

from __future__ import annotations

import subprocess
import sys

from midflight.errors import MidflightError, ProcessError
from midflight.process import suspended
from midflight.process.win32 import FOREVER, PROCESS_READ, api, open_process

_DETACHED = 0x00000008 | 0x00000200  # DETACHED_PROCESS, CREATE_NEW_PROCESS_GROUP: no Ctrl-C of ours reaches it
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
        handle = open_process(owner[0], PROCESS_READ)
    except MidflightError:
        handle = 0
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    if handle:
        api().WaitForSingleObject(handle, FOREVER)
    for path in suspended.left(owner=owner):
        suspended.release(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
