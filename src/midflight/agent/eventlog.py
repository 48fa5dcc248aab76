"""The event log of Windows, through ctypes (RegisterEventSource, ReportEvent). Loads on every system; works on
Windows alone.

The texts need no library of messages of ours: ``EventCreate.exe``, which is part of Windows, has a message "%1" for
each number up to 1000, and is named as the source's library when the service is installed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint16, c_uint32, c_void_p, c_wchar_p
from typing import Any

from midflight.agent.notices import Kind, Level, Notice, Tell

SOURCE = "Midflight"
KEY = rf"SYSTEM\CurrentControlSet\Services\EventLog\Application\{SOURCE}"
MESSAGES = r"%SystemRoot%\System32\EventCreate.exe"
NUMBERS: dict[Kind, int] = {
    "started": 100,
    "stopped": 101,
    "orders": 110,
    "problem": 120,
    "applied": 200,
    "reverted": 210,
    "failed": 220,
    "crashed": 230,
    "barred": 240,
    "unbarred": 241,
}
"""The number of each kind of event; they do not change from version to version."""
_TYPES: dict[Level, int] = {"error": 0x1, "warning": 0x2, "information": 0x4}  # EVENTLOG_ERROR_TYPE and so on
_LONGEST = 31_000
"""Characters of one text (ReportEvent takes 31,839)."""


def to_event_log() -> Tell:
    """Events of the source "Midflight" in the log "Application". Where the log takes none (it is full, or the service
    that keeps it does not run), they are lost there; the log file has them too."""
    advapi: Any = getattr(ctypes, "WinDLL")("advapi32", use_last_error=True)  # noqa: B009 (unknown on other systems)
    advapi.RegisterEventSourceW.restype = c_void_p
    advapi.RegisterEventSourceW.argtypes = [c_wchar_p, c_wchar_p]
    advapi.ReportEventW.restype = c_int32
    advapi.ReportEventW.argtypes = [
        c_void_p, c_uint16, c_uint16, c_uint32, c_void_p, c_uint16, c_uint32, c_void_p, c_void_p,
    ]  # fmt: skip
    source = advapi.RegisterEventSourceW(None, SOURCE)

    def tell(notice: Notice) -> None:
        if source:
            texts = (c_wchar_p * 1)(notice.text[:_LONGEST])
            advapi.ReportEventW(source, _TYPES[notice.level], 0, NUMBERS[notice.kind], None, 1, 0, texts, None)

    return tell


def register_source() -> None:
    """Tell the event log which texts belong to our numbers (registry).

    Raises:
        OSError: we may not.
    """
    winreg: Any = __import__("winreg")
    with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, KEY, 0, winreg.KEY_WRITE) as key:
        winreg.SetValueEx(key, "EventMessageFile", 0, winreg.REG_EXPAND_SZ, MESSAGES)
        winreg.SetValueEx(key, "TypesSupported", 0, winreg.REG_DWORD, 0x7)


def unregister_source() -> None:
    """Undo that; events that are in the log stay there."""
    winreg: Any = __import__("winreg")
    try:
        winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, KEY)
    except FileNotFoundError:
        return
