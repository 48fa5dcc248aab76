"""Live processes of 64-bit Windows: Toolhelp and VirtualQueryEx for looking, suspension for stopping, threads of our
own for calls. Standard library alone (ctypes); everything by documented functions, but NtGetNextThread, for which
Toolhelp stands in.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from types import TracebackType

from midflight.errors import ProcessError, ProcessGone
from midflight.process import guardian, suspended
from midflight.process import win32 as w
from midflight.process.faults import point
from midflight.process.model import AddressTaken, ImageFormat, Mapping, Protection, Thread
from midflight.process.win32 import api
from midflight.process.winstop import WindowsStop, next_threads

GRANULARITY = 1 << 16
"""Where an allocation may begin (SYSTEM_INFO, dwAllocationGranularity: 64 KiB on every Windows)."""
_HIGHEST = 0x7FFF_FFFF_0000
_PROTECTION: dict[Protection, int] = {"r": w.PAGE_READONLY, "rx": w.PAGE_EXECUTE_READ, "rw": w.PAGE_READWRITE}
_PAGE = 4096
_DYNAMIC_CODE_POLICY = 2  # ProcessDynamicCodePolicy


class WindowsProcess:
    """One process by pid; see :class:`midflight.process.model.Process` for the contract. Also a context manager."""

    images: ImageFormat = "pe"
    granularity = GRANULARITY

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._reading = w.open_process(pid, w.PROCESS_READ)
        self._changing = 0
        self.start_time = start_time_of(self._reading)

    def __repr__(self) -> str:
        return f"WindowsProcess({self.pid})"

    # -- looking ---------------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise ProcessGone when the process ended. (Our handle keeps its number from being given to another.)"""
        if api().WaitForSingleObject(self._handle(), 0) == 0:
            raise ProcessGone(f"process {self.pid} ended; nothing left to do")

    def ending(self) -> tuple[int, int] | None:
        """See :class:`midflight.process.live.Held`."""
        code = ctypes.c_uint32()
        if api().WaitForSingleObject(self._handle(), 0) or not api().GetExitCodeProcess(
            self._handle(), ctypes.byref(code)
        ):
            return None
        return 0, code.value

    def _handle(self) -> int:
        if not self._reading:
            self._reading = w.open_process(self.pid, w.PROCESS_READ)
            if start_time_of(self._reading) != self.start_time:
                self.close()
                raise ProcessGone(f"process {self.pid} ended and its number was given to another; look again")
        return self._reading

    def _changer(self) -> int:
        if not self._changing:
            self.check_alive()
            self._changing = w.open_process(self.pid, w.PROCESS_CHANGE)
        return self._changing

    def _query(self, address: int) -> w.MemoryInformation | None:
        """The region at an address; None above the last one."""
        information = w.MemoryInformation()
        size = ctypes.sizeof(information)
        for _ in range(3):
            if api().VirtualQueryEx(self._handle(), address, ctypes.byref(information), size):
                return information
            if w.last_error() == w.INVALID_PARAMETER:
                return None
        self.check_alive()
        raise ProcessError(f"the memory of process {self.pid} cannot be listed: {w.describe(w.last_error())}")

    def modules(self) -> list[tuple[int, int, str]]:
        """(address, size, path) of what the loader has loaded."""
        self.check_alive()
        win = api()
        found = w.entries(w.SNAP_MODULES, self.pid, w.ModuleEntry, win.Module32FirstW, win.Module32NextW)
        return sorted((int(m.base), int(m.image_size), str(m.path)) for m in found)

    def maps(self) -> list[Mapping]:
        """The address space, in address order. ``offset`` of a part of an image is its RVA."""
        modules = self.modules()
        result: list[Mapping] = []
        address = 0
        index = 0
        while address < _HIGHEST:
            region = self._query(address)
            if region is None:
                break
            end = region.base + region.size
            if region.state != w.MEM_FREE:
                while index < len(modules) and modules[index][0] + modules[index][1] <= region.base:
                    index += 1
                module = modules[index] if index < len(modules) and modules[index][0] <= region.base else None
                result.append(_mapping(region, module))
            if end <= address:
                break
            address = end
        return result

    def code(self) -> list[Mapping]:
        """One mapping a loaded image, from its first to its last byte: cheap, for looking at a whole host."""
        return [
            Mapping(base, base + size, True, False, True, True, 0, *_identity(path), path, base)
            for base, size, path in self.modules()
        ]

    def region_end(self, address: int) -> int:
        """The end of the region that holds an address; the address itself where nothing is."""
        region = self._query(address)
        return address if region is None or region.state == w.MEM_FREE else int(region.base + region.size)

    def touched(self, mapping: Mapping) -> Iterable[tuple[int, int]]:
        """See :class:`~midflight.process.model.Process`: what a program has not committed is no mapping here."""
        return ((mapping.start, mapping.end),)

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        buffer = ctypes.create_string_buffer(size)
        if not api().ReadProcessMemory(self._handle(), address, buffer, size, None):
            number = w.last_error()
            self.check_alive()
            raise ProcessError(
                f"process {self.pid} has no readable memory of {size} bytes at {address:#x}: {w.describe(number)}"
            )
        return buffer.raw

    def module_path(self, mapping: Mapping) -> str:
        """The path of the file behind a mapping."""
        if not mapping.inode:
            raise ProcessError(f"no file is behind the mapping at {mapping.start:#x} of process {self.pid}")
        return mapping.path

    def threads(self) -> list[int]:
        """Thread ids, now."""
        win = api()
        found = w.entries(w.SNAP_THREADS, 0, w.ThreadEntry, win.Thread32First, win.Thread32Next)
        return [int(t.tid) for t in found if t.pid == self.pid]

    def thread_handles(self, access: int) -> list[tuple[int, int]]:
        """(thread, handle) of all threads; the caller closes them. A thread that ends meanwhile may be missing."""
        found = next_threads(self._handle(), access)
        if found is not None:
            return found
        handles = ((tid, api().OpenThread(access, False, tid)) for tid in self.threads())
        return [(tid, int(handle)) for tid, handle in handles if handle]

    # -- judging ---------------------------------------------------------------------------------------------------

    def untouchable(self) -> str | None:
        """Why this process must not be touched, in words; None: it may be."""
        if self.pid == os.getpid():
            return "it is this program itself"
        win = api()
        flag = ctypes.c_int32()
        try:
            handle = self._changer()
        except ProcessGone:
            return "it ended"
        except ProcessError as error:
            return str(error)
        if win.IsWow64Process(handle, ctypes.byref(flag)) and flag.value:
            return "it is not a 64-bit x86-64 program"
        if win.CheckRemoteDebuggerPresent(handle, ctypes.byref(flag)) and flag.value:
            return "it is being debugged; detach the debugger first"
        policy = ctypes.c_uint32()
        if win.GetProcessMitigationPolicy(handle, _DYNAMIC_CODE_POLICY, ctypes.byref(policy), 4) and policy.value & 1:
            return "it forbids new code to itself (arbitrary code guard): restart it with a fixed build"
        return None

    # -- changing --------------------------------------------------------------------------------------------------

    def write(self, address: int, data: bytes) -> None:
        """Write whatever the page protection is; that is what it was afterwards. Code of an image stays executable
        meanwhile, since threads may be in the same page; code of ours, which nobody has entered yet, does not."""
        handle, win = self._changer(), api()
        region = self._query(address)
        if region is None or region.state != w.MEM_COMMIT:
            raise ProcessError(f"process {self.pid} has no memory at {address:#x}; look at its maps")
        if region.base + region.size < address + len(data):
            split = int(region.base + region.size - address)
            self.write(address, data[:split])
            self.write(address + split, data[split:])
            return
        executable = region.protect & w.EXECUTABLE
        closed = not region.protect & w.WRITABLE
        old = ctypes.c_uint32()
        if closed:
            wanted = w.PAGE_EXECUTE_READWRITE if executable and region.type == w.MEM_IMAGE else w.PAGE_READWRITE
            self._check(win.VirtualProtectEx(handle, address, len(data), wanted, ctypes.byref(old)), "opening", address)
        point("write.open")
        try:
            written = win.WriteProcessMemory(handle, address, data, len(data), None)
            number = w.last_error()
        finally:
            if closed:
                point("write.closing")
                back = win.VirtualProtectEx(handle, address, len(data), region.protect, ctypes.byref(old))
                self._check(back, "closing", address)
        if not written:
            self.check_alive()
            raise ProcessError(f"cannot write memory of process {self.pid} at {address:#x}: {w.describe(number)}")
        if executable:
            win.FlushInstructionCache(handle, address, len(data))

    def _check(self, result: int, what: str, address: int) -> None:
        if not result:
            number = w.last_error()
            self.check_alive()
            raise ProcessError(f"{what} memory at {address:#x} of process {self.pid} failed: {w.describe(number)}")

    def map_memory(self, address: int, parts: Sequence[tuple[int, Protection]]) -> None:
        """See the protocol. The range is reserved first, then each part is committed with its final protection."""
        total = sum(size for size, _ in parts)
        if not total or address % GRANULARITY or any(size <= 0 or size % _PAGE for size, _ in parts):
            raise ProcessError(f"memory at {address:#x} of process {self.pid}: addresses and sizes must be whole pages")
        handle, win = self._changer(), api()
        if win.VirtualAllocEx(handle, address, total, w.MEM_RESERVE, w.PAGE_NOACCESS) != address:
            if w.last_error() in (w.INVALID_ADDRESS, w.INVALID_PARAMETER):
                raise AddressTaken(f"process {self.pid} has something mapped at {address:#x} already")
            self._check(0, "reserving", address)
        point("map.reserved")
        # It will be needed soon, and takes a moment to start.
        guardian.start()
        at = address
        for size, protection in parts:
            if not win.VirtualAllocEx(handle, at, size, w.MEM_COMMIT, _PROTECTION[protection]):
                number = w.last_error()
                win.VirtualFreeEx(handle, address, 0, w.MEM_RELEASE)
                self.check_alive()
                raise ProcessError(
                    f"mapping {protection} memory at {at:#x} in process {self.pid} failed: {w.describe(number)}"
                )
            point("map.part")
            at += size

    def unmap_memory(self, address: int, size: int) -> None:
        """Give memory back: always a whole allocation."""
        self._check(api().VirtualFreeEx(self._changer(), address, 0, w.MEM_RELEASE), "freeing", address)

    def call(
        self, function: int, arguments: Sequence[int], safe: Callable[[Thread], bool], timeout: float
    ) -> int:  # fmt: skip
        """See the protocol: in a thread of its own, which waits for locks like any other, so ``safe`` is not asked; one
        argument at most, and the lower 32 bits of the result."""
        if len(arguments) > 1:
            raise ProcessError(f"a function with {len(arguments)} arguments cannot be called from outside; one at most")
        win = api()
        argument = arguments[0] if arguments else 0
        thread = win.CreateRemoteThread(self._changer(), None, 0, function, argument, 0, None)
        if not thread:
            self._check(0, "starting a thread for the function in", function)
        point("call.started")
        try:
            if win.WaitForSingleObject(thread, round(timeout * 1000)) != 0:
                self.check_alive()
                raise ProcessError(
                    f"the function at {function:#x} in process {self.pid} did not return within {timeout:g} s: "
                    "its loader may be busy; try again later"
                )
            result = ctypes.c_uint32()
            self._check(win.GetExitCodeThread(thread, ctypes.byref(result)), "reading the result of", function)
        finally:
            win.CloseHandle(thread)
        self.check_alive()
        return result.value

    def stop(self, timeout: float) -> WindowsStop:
        """Stop all threads, those that appear meanwhile included, and take their snapshots (a context manager)."""
        self._changer()
        return WindowsStop(self, timeout)

    def protect(self, address: int, size: int, protection: Protection) -> None:
        """Set the protection of whole pages."""
        old = ctypes.c_uint32()
        result = api().VirtualProtectEx(self._changer(), address, size, _PROTECTION[protection], ctypes.byref(old))
        self._check(result, "protecting", address)

    def release_left(self) -> int:
        """Resume threads that a killed engine holds still, whose guardian was killed, too; how many."""
        return sum(suspended.release(path) for path in suspended.left(pid=self.pid))

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the handles; the object may be used again."""
        for handle in (self._reading, self._changing):
            if handle:
                api().CloseHandle(handle)
        self._reading = self._changing = 0

    def __enter__(self) -> WindowsProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_reading", 0) or getattr(self, "_changing", 0):
            self.close()


@lru_cache(maxsize=4096)
def _identity(path: str) -> tuple[tuple[int, int], int]:
    """(device, inode) of a file, as Windows numbers them; never 0, also for one that cannot be looked at."""
    try:
        status = os.stat(path)
        return (0, status.st_dev & 0xFFFFFFFF), status.st_ino or 1
    except OSError:
        return (0, 0), zlib.crc32(path.encode("utf-8", "replace")) | 1


def _mapping(region: w.MemoryInformation, module: tuple[int, int, str] | None) -> Mapping:
    usable = region.state == w.MEM_COMMIT and not region.protect & (w.PAGE_GUARD | w.PAGE_NOACCESS)
    protect = region.protect if usable else 0
    device, inode, path = (0, 0), 0, ""
    if region.type == w.MEM_IMAGE and module is not None:
        path = module[2]
        device, inode = _identity(path)
    return Mapping(
        region.base,
        region.base + region.size,
        bool(protect & w.READABLE),
        bool(protect & w.WRITABLE),
        bool(protect & w.EXECUTABLE),
        region.type in (w.MEM_PRIVATE, w.MEM_IMAGE),
        region.base - module[0] if module is not None and inode else 0,
        device,
        inode,
        path,
        region.allocation,
    )


def start_time_of(handle: int) -> int:
    """When a process was created, in 100 ns since 1601 (FILETIME): with its pid that names it for ever."""
    times = [ctypes.c_uint64() for _ in range(4)]
    if not api().GetProcessTimes(handle, *(ctypes.byref(t) for t in times)):
        raise ProcessError(f"the start time of a process cannot be read: {w.describe(w.last_error())}")
    return int(times[0].value)


def process_names() -> dict[int, str]:
    """The names of all programs that run, by pid."""
    win = api()
    found = w.entries(w.SNAP_PROCESSES, 0, w.ProcessEntry, win.Process32FirstW, win.Process32NextW)
    return {int(p.pid): str(p.name) for p in found}


def processes() -> Iterator[WindowsProcess]:
    """All processes that we may look at, but not ourselves."""
    for pid in process_names():
        if pid in (0, 4, os.getpid()):  # the idle process, the kernel's own
            continue
        try:
            yield WindowsProcess(pid)
        except ProcessError:
            continue
