"""The few functions and structures of the Win32 API that we use, for ctypes (Microsoft's API reference, winnt.h).

Loads on every system; :func:`api` can be called on Windows alone.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, c_wchar
from functools import cache
from typing import Any

from midflight.errors import ProcessError, ProcessGone

PROCESS_READ = 0x0010 | 0x0400 | 0x00100000  # VM_READ, QUERY_INFORMATION, SYNCHRONIZE
PROCESS_TERMINATE = 0x0001
PROCESS_CHANGE = PROCESS_READ | 0x0002 | 0x0008 | 0x0020 | 0x0800  # CREATE_THREAD, VM_OPERATION, VM_WRITE, SUSPEND
THREAD_STOP = 0x0002 | 0x0008 | 0x0040 | 0x00100000  # SUSPEND_RESUME, GET_CONTEXT, QUERY_INFORMATION, SYNCHRONIZE
MEM_COMMIT, MEM_RESERVE, MEM_FREE, MEM_RELEASE = 0x1000, 0x2000, 0x10000, 0x8000
MEM_IMAGE, MEM_PRIVATE = 0x1000000, 0x20000
PAGE_NOACCESS, PAGE_READONLY, PAGE_READWRITE = 0x01, 0x02, 0x04
PAGE_EXECUTE_READ, PAGE_EXECUTE_READWRITE = 0x20, 0x40
PAGE_GUARD = 0x100
READABLE = 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80
WRITABLE = 0x04 | 0x08 | 0x40 | 0x80
EXECUTABLE = 0x10 | 0x20 | 0x40 | 0x80
SNAP_PROCESSES, SNAP_THREADS, SNAP_MODULES = 0x2, 0x4, 0x8
CONTEXT_CONTROL_INTEGER = 0x100000 | 0x1 | 0x2
ACCESS_DENIED, INVALID_PARAMETER, BAD_LENGTH, PARTIAL_COPY, INVALID_ADDRESS = 5, 87, 24, 299, 487
FAILED = 0xFFFFFFFF
NO_MORE_ENTRIES = 0x8000001A
INVALID_HANDLE = (1 << 64) - 1


class Context(ctypes.Structure):
    """CONTEXT of x64 (winnt.h): what we read of it; must be aligned to 16 bytes."""

    _fields_ = [
        ("home", c_uint64 * 6),
        ("flags", c_uint32),
        ("mxcsr", c_uint32),
        ("segments", c_uint16 * 6),
        ("eflags", c_uint32),
        ("debug", c_uint64 * 6),
        ("general", c_uint64 * 16),
        ("rip", c_uint64),
        ("rest", c_uint8 * (1232 - 0x100)),
    ]


GENERAL_TO_DWARF = (0, 2, 1, 3, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
"""Index in ``Context.general`` (rax rcx rdx rbx rsp rbp rsi rdi r8 ...) by DWARF number (rax rdx rcx rbx rsi ...)."""


class MemoryInformation(ctypes.Structure):
    """MEMORY_BASIC_INFORMATION of 64-bit Windows."""

    _fields_ = [
        ("base", c_uint64),
        ("allocation", c_uint64),
        ("allocation_protect", c_uint32),
        ("partition", c_uint16),
        ("size", c_uint64),
        ("state", c_uint32),
        ("protect", c_uint32),
        ("type", c_uint32),
    ]


class ThreadEntry(ctypes.Structure):
    """THREADENTRY32."""

    _fields_ = [
        ("size", c_uint32),
        ("usage", c_uint32),
        ("tid", c_uint32),
        ("pid", c_uint32),
        ("base_priority", c_int32),
        ("delta_priority", c_int32),
        ("flags", c_uint32),
    ]


class ModuleEntry(ctypes.Structure):
    """MODULEENTRY32W."""

    _fields_ = [
        ("size", c_uint32),
        ("module_id", c_uint32),
        ("pid", c_uint32),
        ("global_usage", c_uint32),
        ("process_usage", c_uint32),
        ("base", c_uint64),
        ("image_size", c_uint32),
        ("handle", c_void_p),
        ("name", c_wchar * 256),
        ("path", c_wchar * 260),
    ]


class ProcessEntry(ctypes.Structure):
    """PROCESSENTRY32W."""

    _fields_ = [
        ("size", c_uint32),
        ("usage", c_uint32),
        ("pid", c_uint32),
        ("heap", c_uint64),
        ("module", c_uint32),
        ("threads", c_uint32),
        ("parent", c_uint32),
        ("priority", c_int32),
        ("flags", c_uint32),
        ("name", c_wchar * 260),
    ]


class ThreadInformation(ctypes.Structure):
    """THREAD_BASIC_INFORMATION."""

    _fields_ = [
        ("exit_status", c_int32),
        ("teb", c_uint64),
        ("pid", c_uint64),
        ("tid", c_uint64),
        ("affinity", c_uint64),
        ("priority", c_int32),
        ("base_priority", c_int32),
    ]


class Privileges(ctypes.Structure):
    """TOKEN_PRIVILEGES with one privilege."""

    _pack_ = 4
    _fields_ = [("count", c_uint32), ("luid", c_uint64), ("attributes", c_uint32)]


_BOOL, _HANDLE, _ADDRESS, _COUNT, _DWORD = c_int32, c_void_p, c_uint64, c_size_t, c_uint32
_KERNEL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "OpenProcess": (_HANDLE, (_DWORD, _BOOL, _DWORD)),
    "OpenThread": (_HANDLE, (_DWORD, _BOOL, _DWORD)),
    "CloseHandle": (_BOOL, (_HANDLE,)),
    "GetProcessTimes": (_BOOL, (_HANDLE, _HANDLE, _HANDLE, _HANDLE, _HANDLE)),
    "WaitForSingleObject": (_DWORD, (_HANDLE, _DWORD)),
    "TerminateProcess": (_BOOL, (_HANDLE, _DWORD)),
    "GetTickCount64": (_COUNT, ()),
    "GetExitCodeThread": (_BOOL, (_HANDLE, _HANDLE)),
    "GetExitCodeProcess": (_BOOL, (_HANDLE, _HANDLE)),
    "GetThreadId": (_DWORD, (_HANDLE,)),
    "GetProcessIdOfThread": (_DWORD, (_HANDLE,)),
    "GetCurrentProcess": (_HANDLE, ()),
    "ReadProcessMemory": (_BOOL, (_HANDLE, _ADDRESS, _HANDLE, _COUNT, _HANDLE)),
    "WriteProcessMemory": (_BOOL, (_HANDLE, _ADDRESS, _HANDLE, _COUNT, _HANDLE)),
    "FlushInstructionCache": (_BOOL, (_HANDLE, _ADDRESS, _COUNT)),
    "VirtualQueryEx": (_COUNT, (_HANDLE, _ADDRESS, _HANDLE, _COUNT)),
    "VirtualProtectEx": (_BOOL, (_HANDLE, _ADDRESS, _COUNT, _DWORD, _HANDLE)),
    "VirtualAllocEx": (_ADDRESS, (_HANDLE, _ADDRESS, _COUNT, _DWORD, _DWORD)),
    "VirtualFreeEx": (_BOOL, (_HANDLE, _ADDRESS, _COUNT, _DWORD)),
    "SuspendThread": (_DWORD, (_HANDLE,)),
    "ResumeThread": (_DWORD, (_HANDLE,)),
    "GetThreadContext": (_BOOL, (_HANDLE, _HANDLE)),
    "CreateRemoteThread": (_HANDLE, (_HANDLE, _HANDLE, _COUNT, _ADDRESS, _ADDRESS, _DWORD, _HANDLE)),
    "CreateToolhelp32Snapshot": (_HANDLE, (_DWORD, _DWORD)),
    "Thread32First": (_BOOL, (_HANDLE, _HANDLE)),
    "Thread32Next": (_BOOL, (_HANDLE, _HANDLE)),
    "Module32FirstW": (_BOOL, (_HANDLE, _HANDLE)),
    "Module32NextW": (_BOOL, (_HANDLE, _HANDLE)),
    "Process32FirstW": (_BOOL, (_HANDLE, _HANDLE)),
    "Process32NextW": (_BOOL, (_HANDLE, _HANDLE)),
    "IsWow64Process": (_BOOL, (_HANDLE, _HANDLE)),
    "CheckRemoteDebuggerPresent": (_BOOL, (_HANDLE, _HANDLE)),
    "GetProcessMitigationPolicy": (_BOOL, (_HANDLE, _DWORD, _HANDLE, _COUNT)),
}
_NT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "NtQueryInformationThread": (c_uint32, (_HANDLE, _DWORD, _HANDLE, _DWORD, _HANDLE)),
    "NtGetNextThread": (c_uint32, (_HANDLE, _HANDLE, _DWORD, _DWORD, _DWORD, _HANDLE)),
}
_SECURITY: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "OpenProcessToken": (_BOOL, (_HANDLE, _DWORD, _HANDLE)),
    "LookupPrivilegeValueW": (_BOOL, (c_void_p, ctypes.c_wchar_p, _HANDLE)),
    "AdjustTokenPrivileges": (_BOOL, (_HANDLE, _BOOL, _HANDLE, _DWORD, _HANDLE, _HANDLE)),
}


class Api:
    """The functions by their names, as attributes."""

    def __init__(self) -> None:
        for library, functions in (("kernel32", _KERNEL), ("ntdll", _NT), ("advapi32", _SECURITY)):
            loaded = getattr(ctypes, "WinDLL")(library, use_last_error=True)  # noqa: B009 (unknown on other systems)
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, list(arguments)
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no function {name} is declared")


@cache
def api() -> Api:
    """The functions, loaded once; the privilege to look at everybody's processes is asked for on the way."""
    loaded = Api()
    _be_privileged(loaded)
    return loaded


def _be_privileged(win: Api) -> None:
    """Use SeDebugPrivilege where this user has it (administrators do); others can change their own processes alone."""
    token = c_void_p()
    if not win.OpenProcessToken(win.GetCurrentProcess(), 0x20, ctypes.byref(token)):
        return
    wanted = Privileges(1, 0, 2)
    luid = c_uint64()
    if win.LookupPrivilegeValueW(None, "SeDebugPrivilege", ctypes.byref(luid)):
        wanted.luid = luid.value
        win.AdjustTokenPrivileges(token, False, ctypes.byref(wanted), 0, None, None)
    win.CloseHandle(token)


def last_error() -> int:
    """The error number of the last call."""
    return int(getattr(ctypes, "get_last_error")())  # noqa: B009


def describe(number: int) -> str:
    """An error number in words."""
    text = str(getattr(ctypes, "FormatError")(number)).strip().rstrip(".")  # noqa: B009
    return f"{text[:1].lower()}{text[1:]} (error {number})"


def open_process(pid: int, access: int) -> int:
    """A handle of a process that has not ended.

    Raises:
        ProcessGone: there is none with that number.
        ProcessError: we may not.
    """
    win = api()
    handle = win.OpenProcess(access, False, pid)
    if not handle:
        number = last_error()
        if number == INVALID_PARAMETER:
            raise ProcessGone(f"process {pid} ended; nothing left to do")
        if number == ACCESS_DENIED:
            raise ProcessError(f"process {pid} may not be opened by this user: run as an administrator")
        raise ProcessError(f"process {pid} cannot be opened: {describe(number)}")
    if win.WaitForSingleObject(handle, 0) == 0:
        win.CloseHandle(handle)
        raise ProcessGone(f"process {pid} ended; nothing left to do")
    return int(handle)


def entries(kind: int, pid: int, entry: Any, first: Any, following: Any) -> list[Any]:
    """All entries of a Toolhelp snapshot, each read by ``entry`` (a structure) into a copy of its own.

    Raises:
        ProcessError: there is no snapshot to be had.
    """
    win = api()
    for _ in range(20):
        handle = win.CreateToolhelp32Snapshot(kind, pid)
        # A process that loads or unloads a module at this moment makes it fail; the documented answer is to try again.
        if handle not in (None, INVALID_HANDLE) or last_error() not in (BAD_LENGTH, PARTIAL_COPY):
            break
    if handle in (None, INVALID_HANDLE):
        number = last_error()
        if number == INVALID_PARAMETER and pid:
            raise ProcessGone(f"process {pid} ended; nothing left to do")
        what = f"process {pid} may not be looked at" if pid else "the processes of this machine cannot be listed"
        raise ProcessError(f"{what}: {describe(number)}")
    found = []
    try:
        one = entry(ctypes.sizeof(entry))
        more = first(handle, ctypes.byref(one))
        while more:
            found.append(entry.from_buffer_copy(one))
            more = following(handle, ctypes.byref(one))
    finally:
        win.CloseHandle(handle)
    return found
