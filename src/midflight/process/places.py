"""Where the engine keeps what must outlive it: announcements, locks, and which threads it holds still.

For an administrator, machine-wide; for everybody else, in a folder of their own. ``MIDFLIGHT_RUN`` overrides it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

# Owner, administrators and the system alone (Security Descriptor Definition Language): whoever can write here tells an
# administrator's engine what to undo.
_CLOSED = "D:P(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;OICI;FA;;;OW)"


def run_folder() -> Path:
    """The folder; it may not exist yet."""
    given = os.environ.get("MIDFLIGHT_RUN")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return machine_folder() / "run"
    if os.geteuid() == 0:
        return Path("/run/midflight")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/midflight-{os.geteuid()}") / "midflight"


def is_administrator() -> bool:
    """Whether this user is an administrator of a Windows machine (shell32, IsUserAnAdmin)."""
    shell: Any = getattr(ctypes, "WinDLL")("shell32")  # noqa: B009
    return bool(shell.IsUserAnAdmin())


def machine_folder() -> Path:
    """Of Windows: Midflight's folder below %ProgramData% for administrators, below %LOCALAPPDATA% for others."""
    if is_administrator():
        return Path(os.environ.get("PROGRAMDATA") or r"C:\ProgramData") / "Midflight"
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "Midflight"


def make_closed_folder(path: Path) -> None:
    """Make a folder of Windows that others cannot write to, with its parents.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    advapi: Any = getattr(ctypes, "WinDLL")("advapi32", use_last_error=True)  # noqa: B009
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009
    descriptor = ctypes.c_void_p()
    if not advapi.ConvertStringSecurityDescriptorToSecurityDescriptorW(
        ctypes.c_wchar_p(_CLOSED), 1, ctypes.byref(descriptor), None
    ):
        raise OSError(getattr(ctypes, "get_last_error")(), "the access rights cannot be set", str(path))  # noqa: B009
    try:
        attributes = (ctypes.c_uint64 * 3)(24, descriptor.value or 0, 0)  # SECURITY_ATTRIBUTES
        if not kernel.CreateDirectoryW(ctypes.c_wchar_p(str(path)), ctypes.byref(attributes)) and not path.is_dir():
            raise OSError(getattr(ctypes, "get_last_error")(), "the folder cannot be made", str(path))  # noqa: B009
    finally:
        kernel.LocalFree(descriptor)
