"""The service manager of Linux: what it wants to hear (sd_notify(3), by hand: one datagram a message), its journal, and
the unit."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from midflight.agent.notices import Level, Notice, Tell
from midflight.machine import units

UNIT = "midflight-agent.service"
DROP_IN = "baselines.conf"
EARLY = "midflight-baselines.service"
JOURNAL = Path("/run/systemd/journal/socket")
_COMMAND = "@COMMAND@"
_PRIORITY: dict[Level, int] = {"information": 6, "warning": 4, "error": 3}  # syslog(3)


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


def under_journal() -> bool:
    """Whether standard error goes to the journal (systemd.exec(5), JOURNAL_STREAM: the socket's device and inode)."""
    try:
        state = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{state.st_dev}:{state.st_ino}"


def to_journal(otherwise: Tell, path: Path = JOURNAL) -> Tell:
    """Entries of the journal, in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): the line, its priority, and the
    kind of event in MIDFLIGHT_EVENT.

    Args:
        otherwise: takes what the journal does not (it is being restarted).
    """
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def tell(notice: Notice) -> None:
        fields: dict[str, object] = {
            "MESSAGE": notice.line,
            "PRIORITY": _PRIORITY[notice.level],
            "SYSLOG_IDENTIFIER": UNIT.removesuffix(".service"),
            "MIDFLIGHT_EVENT": notice.kind,
        }
        try:
            out.sendto(
                "".join(f"{name}={value}\n" for name, value in fields.items()).encode(errors="replace"), str(path)
            )
        except OSError:
            otherwise(notice)

    return tell


def unit(command: Sequence[str], name: str = UNIT) -> str:
    """The unit of this name, with the command that it runs."""
    return (files("midflight.agent") / name).read_text().replace(_COMMAND, units.escaped(command))


def install(command: Sequence[str], swap: Sequence[str], start: bool, baselines: bool = False) -> Path:
    """Write the unit, or bring one that is there up to date (:func:`midflight.machine.units.install`).

    Args:
        swap: the command that puts baselines in place.
        baselines: let the service put baselines in place (by a drop-in), and have it done when the machine starts (by
            a unit of its own). Where that was installed before, it is kept up to date.

    Raises:
        InputError: it cannot be written, or systemd does not take it.
    """
    drop_in = f"{UNIT}.d/{DROP_IN}"
    texts = {UNIT: unit(command)}
    if baselines or (units.FOLDER / drop_in).exists():
        texts[drop_in] = (files("midflight.agent") / DROP_IN).read_text()
        units.install({EARLY: unit(swap, EARLY)}, start=False)
    return units.install(texts, start)


def uninstall() -> Path:
    """Stop the service and remove what ``install`` wrote. Returns the path of the unit.

    Raises:
        InputError: it is not there, or cannot be removed.
    """
    path = units.uninstall(UNIT, [DROP_IN])
    if (units.FOLDER / EARLY).exists():
        units.uninstall(EARLY)
    return path
