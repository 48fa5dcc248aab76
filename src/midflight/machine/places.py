"""The folders of Midflight on this machine: machine-wide for an administrator, of their own for everybody else.

            Linux, root                     Windows, administrators            overridden by
config      /etc/midflight                  %ProgramData%\\Midflight\\config     MIDFLIGHT_CONFIG
state       /var/lib/midflight              %ProgramData%\\Midflight\\state      MIDFLIGHT_STATE
hotpatches  /var/lib/midflight/hotpatches   %ProgramData%\\Midflight\\hotpatches
log         (the journal of the system)     %ProgramData%\\Midflight\\log
run         /run/midflight                  %ProgramData%\\Midflight\\run        MIDFLIGHT_RUN

Other users have them below the folders of the XDG base directory specification, or %LOCALAPPDATA%\\Midflight. None of
these functions makes a folder; see :mod:`midflight.machine.ownership`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_LOCAL_APPDATA, _COMMON_APPDATA = 0x1C, 0x23  # shlobj.h: CSIDL_


def is_administrator() -> bool:
    """Whether this user may change the machine: root, or an administrator of Windows (shell32, IsUserAnAdmin)."""
    if sys.platform != "win32":
        return os.geteuid() == 0
    shell: Any = ctypes.WinDLL("shell32")
    return bool(shell.IsUserAnAdmin())


def machine_folder() -> Path:
    """Of Windows: the one folder that all others are in. Asked of the system (shell32, SHGetFolderPath), since
    environment variables are whatever the one who started us wanted them to be."""
    return Path(_shell_folder(_COMMON_APPDATA if is_administrator() else _LOCAL_APPDATA)) / "Midflight"


def _shell_folder(number: int) -> str:
    shell: Any = getattr(ctypes, "WinDLL")("shell32")  # noqa: B009 (unknown on other systems)
    room = ctypes.create_unicode_buffer(260)
    if shell.SHGetFolderPathW(None, number, None, 0, room):
        return r"C:\ProgramData" if number == _COMMON_APPDATA else str(Path.home() / "AppData" / "Local")
    return room.value


def config_folder() -> Path:
    """Keys that are trusted, the key that signs, the agent's settings."""
    given = os.environ.get("MIDFLIGHT_CONFIG")
    if given:
        return Path(given).absolute()
    if sys.platform == "win32":
        return machine_folder() / "config"
    if is_administrator():
        return Path("/etc/midflight")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "midflight"


def state_folder() -> Path:
    """What the agent remembers."""
    given = os.environ.get("MIDFLIGHT_STATE")
    if given:
        return Path(given).absolute()
    if sys.platform == "win32":
        return machine_folder() / "state"
    if is_administrator():
        return Path("/var/lib/midflight")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "midflight"


def hotpatch_folder() -> Path:
    """The hotpatches that the agent keeps in force when no other folder is named."""
    if sys.platform == "win32" and not os.environ.get("MIDFLIGHT_STATE"):
        return machine_folder() / "hotpatches"
    return state_folder() / "hotpatches"


def log_folder() -> Path | None:
    """Where the agent writes a log of its own; None where the system keeps it."""
    return machine_folder() / "log" if sys.platform == "win32" else None


def run_folder() -> Path:
    """What must outlive an engine, but not the machine: announcements, locks, which threads are held still."""
    given = os.environ.get("MIDFLIGHT_RUN")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return machine_folder() / "run"
    if is_administrator():
        return Path("/run/midflight")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/midflight-{os.geteuid()}") / "midflight"
