"""What a machine of Windows is, through ctypes and the registry. Loads on every system; works on Windows alone."""

from __future__ import annotations

import ctypes
import time
from ctypes import c_uint32, c_uint64
from typing import Any

_SESSION = r"SYSTEM\CurrentControlSet\Control\Session Manager"
_UPDATES = r"SOFTWARE\Microsoft\Windows\CurrentVersion"
_REBOOT_KEYS = (
    rf"{_UPDATES}\Component Based Servicing\RebootPending",
    rf"{_UPDATES}\WindowsUpdate\Auto Update\RebootRequired",
)
_READ_64 = 0x20019 | 0x100  # KEY_READ, KEY_WOW64_64KEY


class _Memory(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = [
        ("length", c_uint32),
        ("load", c_uint32),
        ("total", c_uint64),
        ("free", c_uint64),
        *((name, c_uint64) for name in ("page_total", "page_free", "virtual_total", "virtual_free", "extended")),
    ]


def memory() -> tuple[int, int | None]:
    """Total and available memory in MiB (GlobalMemoryStatusEx)."""
    found = _Memory(ctypes.sizeof(_Memory))
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 (unknown on other systems)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(found)):
        return 0, None
    return found.total >> 20, found.free >> 20


def machine_guid() -> str:
    """What names this installation of Windows; empty: nothing does."""
    return str(_value(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid") or "")


def reboot_pending() -> bool:
    """Whether an update waits for a restart, or files are replaced at one (MoveFileEx, DELAY_UNTIL_REBOOT)."""
    return any(_there(key) for key in _REBOOT_KEYS) or bool(_value(_SESSION, "PendingFileRenameOperations"))


def timezone() -> str:
    """The IANA name of the time zone, as ICU says, which Windows has since version 1903; else one of the same offset,
    without daylight saving time."""
    try:
        icu: Any = getattr(ctypes, "WinDLL")("icu")  # noqa: B009
        room, error = (ctypes.c_uint16 * 128)(), ctypes.c_int32()
        size = icu.ucal_getDefaultTimeZone(room, len(room), ctypes.byref(error))
        if error.value <= 0 < size < len(room):
            return "".join(map(chr, room[:size]))
    except (OSError, AttributeError):
        pass
    hours = round(time.timezone / 3600)  # the signs of these names are the other way round, as those of time.timezone
    return f"Etc/GMT{hours:+d}" if hours else "UTC"


def _value(key: str, name: str) -> object:
    winreg: Any = __import__("winreg")
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key, 0, _READ_64) as opened:
            return winreg.QueryValueEx(opened, name)[0]
    except OSError:
        return None


def _there(key: str) -> bool:
    winreg: Any = __import__("winreg")
    try:
        winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key, 0, _READ_64).Close()
    except OSError:
        return False
    return True
