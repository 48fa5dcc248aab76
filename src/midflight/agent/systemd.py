"""The service manager of Linux: what it wants to hear (sd_notify(3), by hand: one datagram a message), and the unit."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from midflight.errors import InputError

UNIT = "midflight-agent.service"
DROP_IN = "baselines.conf"
FOLDER = Path("/etc/systemd/system")
_COMMAND = "@COMMAND@"


class Systemd:
    """Tells systemd how we are; does nothing when it did not start us. A ``ServiceManager`` of the agent."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        # Twice within the time after which we would be taken for dead.
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6 if ours else 0.0
        self._next = 0.0
        self._said = ""

    def _say(self, text: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode(), self._address)

    def ready(self, status: str) -> None:
        """See :class:`midflight.agent.agent.ServiceManager`."""
        self._say(f"READY=1\nSTATUS={status}")
        self._said = status

    def alive(self, status: str) -> None:
        """See :class:`midflight.agent.agent.ServiceManager`."""
        now = time.monotonic()
        if self._every and now >= self._next:
            self._next = now + self._every
            self._say("WATCHDOG=1")
        if status != self._said and self._socket is not None:
            self._said = status
            self._say(f"STATUS={status}")

    def stopping(self) -> None:
        """See :class:`midflight.agent.agent.ServiceManager`."""
        self._say("STOPPING=1")


def unit(command: Sequence[str]) -> str:
    """The unit that runs this command."""
    text = (files("midflight.agent") / UNIT).read_text()
    # systemd.service(5): % and $ are its own
    return text.replace(_COMMAND, shlex.join(command).replace("%", "%%").replace("$", "$$"))


def install(command: Sequence[str], start: bool, baselines: bool = False) -> Path:
    """Write the unit; where systemd runs, let it know, enable it, and start it if wanted. Returns the path of the unit.

    Args:
        baselines: write the drop-in too that lets the service put baselines in place.

    Raises:
        InputError: it is there already, it cannot be written, or systemd does not take it.
    """
    path = FOLDER / UNIT
    if path.exists():
        raise InputError(f"{path} is there already: remove it with midflight agent uninstall")
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(unit(command))
        if baselines:
            drop_in = FOLDER / f"{UNIT}.d" / DROP_IN
            drop_in.parent.mkdir(exist_ok=True)
            drop_in.write_text((files("midflight.agent") / DROP_IN).read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; run as root") from None
    if runs():
        _systemctl("daemon-reload")
        _systemctl("enable", *(["--now"] if start else []), UNIT)
    return path


def uninstall() -> Path:
    """Stop the service and remove its unit.

    Raises:
        InputError: it is not there, or cannot be removed.
    """
    path = FOLDER / UNIT
    if not path.exists():
        raise InputError(f"there is no {path}: nothing to remove")
    if runs():
        _systemctl("disable", "--now", UNIT)
    try:
        path.unlink()
        drop_in = FOLDER / f"{UNIT}.d" / DROP_IN
        drop_in.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or somebody else has drop-ins in it
            drop_in.parent.rmdir()
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}; run as root") from None
    if runs():
        _systemctl("daemon-reload")
    return path


def runs() -> bool:
    """Whether systemd is the init of this machine (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _systemctl(*words: str) -> None:
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InputError(f"systemctl cannot be run: {error.strerror}") from None
    if done.returncode:
        raise InputError(f"systemctl {' '.join(words)} failed: {done.stderr.strip() or done.returncode}")
