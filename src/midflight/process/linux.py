"""Live processes of Linux on x86-64: /proc for looking, ptrace for stopping and working inside."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from midflight.errors import ProcessError, ProcessGone
from midflight.process import gadgets, inject
from midflight.process import maps as proc
from midflight.process import ptrace as pt
from midflight.process.apart import apart
from midflight.process.faults import point
from midflight.process.model import AddressTaken, ImageFormat, Mapping, Protection, Stack, Thread
from midflight.process.stop import Stop

_PAGE = 4096
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_PROTECTION: dict[Protection, int] = {
    "r": _PROT_READ,
    "rx": _PROT_READ | _PROT_EXEC,
    "rw": _PROT_READ | _PROT_WRITE,
}
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE, _MAP_NORESERVE = 0x02, 0x10, 0x20, 0x100000, 0x4000
_SYS_MMAP, _SYS_MUNMAP = 9, 11
_CAP_SYS_ADMIN = 1 << 21
_ATTACH_PATIENCE = 1.0
ENDED = "it ended"
"""How every reason of :meth:`LinuxProcess.untouchable` begins that says that there is nothing left to do."""
_CALL_ROOM = 48 << 10
_PAGE_IS_THERE = bytes(1 if value & 0xC0 else 0 for value in range(256))
_RUN = re.compile(rb"\x01+")
_ELF64_X86_64 = (2, 62)  # ELFCLASS64, EM_X86_64


T = TypeVar("T")


class LinuxProcess:
    """One process by pid; see :class:`midflight.process.model.Process` for the contract. Also a context manager."""

    images: ImageFormat = "elf"
    granularity = _PAGE

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_time = proc.read_stat(pid).start_time
        self._memory_fd = -1

    def __repr__(self) -> str:
        return f"LinuxProcess({self.pid})"

    # -- looking ---------------------------------------------------------------------------------------------------

    def check_same(self) -> None:
        """Raise ProcessGone when the pid has passed to another process since this object was made."""
        if proc.read_stat(self.pid).start_time != self.start_time:
            raise ProcessGone(f"process {self.pid} ended and its number was given to another; look again")

    def view(self) -> int:
        """The number under which /proc shows the address space: that of another thread when the main one has ended."""
        if proc.read_stat(self.pid).state in "ZX":
            return next(self._other_threads(), self.pid)
        return self.pid

    def _other_threads(self) -> Iterator[int]:
        """The threads that live, without the main one."""
        for tid in self.threads():
            try:
                if tid != self.pid and proc.read_stat(self.pid, tid).state not in "ZX":
                    yield tid
            except ProcessGone:
                continue

    def maps(self) -> list[Mapping]:
        """The address space, in address order; that of a kernel thread is empty."""
        return proc.parse_maps(self._maps_text())

    def code(self) -> list[Mapping]:
        """The mappings of executable code that have a file behind them."""
        return proc.parse_code(self._maps_text())

    def _maps_text(self) -> bytes:
        text = proc.read_file(f"/proc/{self.pid}/maps")
        others = self._other_threads()
        while not text:
            tid = next(others, None)
            if tid is None:
                if proc.read_stat(self.pid).kernel_thread:
                    return b""
                raise ProcessGone(f"process {self.pid} ended; nothing left to do")
            with contextlib.suppress(ProcessGone):
                text = proc.read_file(f"/proc/{tid}/maps")
        return text

    def threads(self) -> list[int]:
        """Thread ids, now."""
        return proc.list_threads(self.pid)

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, whatever the page protection is."""
        data = self.read_available(address, size)
        if len(data) != size:
            raise ProcessError(
                f"process {self.pid} has no readable memory at {address + len(data):#x}; look at its maps"
            )
        return data

    def touched(self, mapping: Mapping) -> Iterable[tuple[int, int]]:
        """See :class:`~midflight.process.model.Process`: pages of anonymous memory that are neither present nor swapped
        out were never written (Documentation/admin-guide/mm/pagemap.rst: bits 63, 62)."""
        if mapping.inode:
            return ((mapping.start, mapping.end),)
        first, count = mapping.start // _PAGE, (mapping.end - mapping.start) // _PAGE
        try:
            with open(f"/proc/{self.view()}/pagemap", "rb", buffering=0) as file:
                file.seek(first * 8)
                data = file.read(count * 8)
        except OSError:
            return ((mapping.start, mapping.end),)
        if len(data) != count * 8:
            return ((mapping.start, mapping.end),)
        # The highest byte of each entry; 0xC0 are the two bits.
        used = data[7::8].translate(_PAGE_IS_THERE)
        return ((mapping.start + m.start() * _PAGE, mapping.start + m.end() * _PAGE) for m in _RUN.finditer(used))

    def read_available(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes: as far as there is memory."""
        fd = self._memory()
        parts = []
        while size > 0:
            try:
                part = os.pread(fd, size, address)
            except OSError as error:
                if error.errno in (errno.EIO, errno.EFAULT, errno.EINVAL, errno.EOVERFLOW):
                    break
                raise self._memory_error(error, address, "read") from None
            except OverflowError:
                break
            if not part:
                self._alive_or_raise()
                break
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write whatever the page protection is; private pages are copied first, files stay as they are."""
        fd = self._memory()
        done = 0
        while done < len(data):
            try:
                count = os.pwrite(fd, data[done:] if done else data, address + done)
            except (OSError, OverflowError) as error:
                raise self._memory_error(error, address + done, "write") from None
            if not count:
                self._alive_or_raise()
                raise ProcessError(f"process {self.pid} has no memory at {address + done:#x}; look at its maps")
            done += count

    def _memory(self) -> int:
        if self._memory_fd < 0:
            path = f"/proc/{self.view()}/mem"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except (FileNotFoundError, ProcessLookupError):
                raise ProcessGone(f"process {self.pid} ended; nothing left to do") from None
            except OSError as error:
                raise ProcessError(
                    f"the memory of process {self.pid} cannot be opened: {error.strerror}; run as root or as its owner"
                ) from None
            self._memory_fd = fd
            self.check_same()
        return self._memory_fd

    def _memory_error(self, error: Exception, address: int, what: str) -> ProcessError:
        if isinstance(error, ProcessLookupError):
            return ProcessGone(f"process {self.pid} ended; nothing left to do")
        return ProcessError(f"cannot {what} memory of process {self.pid} at {address:#x}: {error}; look at its maps")

    def _alive_or_raise(self) -> None:
        """An empty answer of /proc/PID/mem means that the address space is gone: the process ended or called exec."""
        self.check_same()
        self.maps()
        raise ProcessGone(f"process {self.pid} became another program; look at it again")

    def module_path(self, mapping: Mapping) -> str:
        """A path in our namespace that opens the very file behind a mapping (proc(5): map_files, needs privilege)."""
        if not mapping.inode:
            raise ProcessError(f"no file is behind the mapping at {mapping.start:#x} of process {self.pid}")
        name = f"map_files/{mapping.start:x}-{mapping.end:x}"
        reason = _unopenable(f"/proc/{self.pid}/{name}")
        if reason is None:
            return f"/proc/{self.pid}/{name}"
        view = self.view()
        if view != self.pid:
            reason = _unopenable(f"/proc/{view}/{name}")
            if reason is None:
                return f"/proc/{view}/{name}"
        for other in (f"/proc/{view}/root{mapping.path}", f"/proc/{view}/exe"):
            try:
                found = os.stat(other)
            except OSError:
                continue
            if found.st_ino == mapping.inode and (os.major(found.st_dev), os.minor(found.st_dev)) == mapping.device:
                return other
        self.maps()  # raises ProcessGone when it is that
        raise ProcessError(
            f"the file behind {mapping.path!r} of process {self.pid} cannot be opened ({reason}); run as root"
        )

    # -- judging ---------------------------------------------------------------------------------------------------

    def untouchable(self) -> str | None:
        """Why this process must not be touched, in words; None: it may be."""
        try:
            self.check_same()
            stat = proc.read_stat(self.pid)
            status = proc.read_status(self.pid)
            return (
                self._not_alive(stat)
                or self._traced(status)
                or self._not_permitted()
                or self._foreign()
                or self._special(status)
            )
        except ProcessGone:
            return ENDED
        except ProcessError as error:
            return str(error)

    def refusal(self, what: str, reason: str) -> ProcessError:
        """The error to raise for a ``reason`` of :meth:`untouchable`."""
        if reason.startswith(ENDED):
            return ProcessGone(f"process {self.pid} ended; nothing left to do")
        return ProcessError(f"process {self.pid} {what}: {reason}")

    def _not_alive(self, stat: proc.Stat) -> str | None:
        if stat.state in "ZX" and len(proc.list_threads(self.pid)) <= 1:
            return f"{ENDED} (a zombie that its parent has not looked at)"
        if stat.kernel_thread:
            return "it is a thread of the kernel"
        if self.pid == os.getpid():
            return "it is this program itself"
        return None

    def _traced(self, status: dict[str, str]) -> str | None:
        tracer = int(status.get("TracerPid", "0"))
        if tracer:
            try:
                name = proc.read_stat(tracer).comm
            except ProcessError:
                name = "?"
            return f"it is traced by process {tracer} ({name}); detach that first"
        if int(proc.read_status(os.getpid()).get("TracerPid", "0")) == self.pid:
            return "it is tracing this program"
        return None

    def _not_permitted(self) -> str | None:
        try:
            self._memory()
        except ProcessGone:
            raise
        except ProcessError as error:
            return str(error)
        return None

    def _foreign(self) -> str | None:
        try:
            program = f"/proc/{self.view()}/exe"
            with open(program, "rb", buffering=0) as file:
                head = file.read(20)
            path = os.readlink(program)
        except (FileNotFoundError, ProcessLookupError):
            return ENDED  # it has given up its memory already, or is about to be a zombie
        except OSError as error:
            return f"its program file cannot be read: {error.strerror}"
        if head[:4] != b"\x7fELF" or (head[4], int.from_bytes(head[18:20], "little")) != _ELF64_X86_64:
            return "it is not a 64-bit x86-64 program"
        # Its code is mapped, but what runs is a translation that would not change with it.
        if "/valgrind/" in path:
            return "it runs under valgrind"
        return None

    def _special(self, status: dict[str, str]) -> str | None:
        partner = shares_memory_with(self.pid)
        if partner is not None:
            return f"it shares its memory with process {partner} (vfork?); wait until that is over"
        if "shstk" in status.get("x86_Thread_features", ""):
            return "it uses a hardware shadow stack, which a call from outside cannot satisfy"
        if status.get("Seccomp", "0") != "0":
            own = proc.read_status(os.getpid())
            if not int(own.get("CapEff", "0"), 16) & _CAP_SYS_ADMIN:
                return "it is confined by seccomp, and suspending that needs CAP_SYS_ADMIN; run as root"
            if own.get("Seccomp", "0") != "0":
                return (
                    "it is confined by seccomp, and so are we, which keeps us from suspending that; run without a "
                    "filter (SystemCallFilter= and the like of a unit, the profile of a container)"
                )
        return None

    def confined(self) -> bool:
        """Whether some thread is under seccomp; its filter must then be suspended for an injected call."""
        for tid in self.threads():
            try:
                text = proc.read_file(f"/proc/{self.pid}/task/{tid}/status")
            except ProcessGone:
                continue
            if b"\nSeccomp:\t0" not in text:
                return True
        return False

    # -- changing --------------------------------------------------------------------------------------------------

    def protect(self, address: int, size: int, protection: Protection) -> None:
        """See the protocol: no page is ever opened here, so there is nothing that could have been left open."""
        raise ProcessError(f"the pages at {address:#x} of process {self.pid} are not ours to protect")

    def release_left(self) -> int:
        """Nothing: the kernel lets go of what a tracer held when it dies."""
        return 0

    def stop(self, timeout: float) -> Stop:
        """Stop all threads, those that appear meanwhile included, and take their snapshots (a context manager)."""
        return Stop(self, timeout)

    def _tools(self, call: bool = False) -> gadgets.Gadgets:
        reason = self.untouchable()
        if reason is not None:
            raise self.refusal("must not be touched", reason)
        tools = gadgets.find(self.maps(), self.read)
        if tools.restorer is None or tools.syscall_ret is None:
            raise ProcessError(
                f"process {self.pid} has no rt_sigreturn or system call code to borrow; restart it instead"
            )
        if call and tools.store is None:
            raise ProcessError(
                f"process {self.pid} has no code to catch a result with; no C function can be called in it"
            )
        return tools

    def map_memory(self, address: int, parts: Sequence[tuple[int, Protection]]) -> None:
        """See the protocol. The range is reserved first, then each part is mapped with its final protection."""
        total = sum(size for size, _ in parts)
        if not total or address % _PAGE or any(size <= 0 or size % _PAGE for size, _ in parts):
            raise ProcessError(f"memory at {address:#x} of process {self.pid}: addresses and sizes must be whole pages")
        self._guarded(lambda: self._map(address, parts, total))

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do what needs a thread of the target, such that it survives us in any case."""
        return apart(work) if self.confined() else work()

    def _map(self, address: int, parts: Sequence[tuple[int, Protection]], total: int) -> None:
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS
        tools = self._tools()
        with inject.hijack(self, tools, 0, _ATTACH_PATIENCE) as thread:
            reserved = thread.syscall(
                _SYS_MMAP, address, total, 0, flags | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE, -1, 0
            )
            if reserved == -errno.EEXIST:
                raise AddressTaken(f"process {self.pid} has something mapped at {address:#x} already")
            if reserved > 0 and reserved != address:  # before Linux 4.17 the address is a mere hint
                thread.syscall(_SYS_MUNMAP, reserved, total)
                raise AddressTaken(f"process {self.pid} has something mapped at {address:#x} already")
            self._check(reserved, "reserving memory", address)
            point("map.reserved")
            at = address
            for size, protection in parts:
                result = thread.syscall(_SYS_MMAP, at, size, _PROTECTION[protection], flags | _MAP_FIXED, -1, 0)
                if result != at:
                    thread.syscall(_SYS_MUNMAP, address, total)
                    self._check(result, f"mapping {protection} memory", at)
                point("map.part")
                at += size

    def unmap_memory(self, address: int, size: int) -> None:
        """Give memory back."""
        self._guarded(lambda: self._unmap(address, size))

    def _unmap(self, address: int, size: int) -> None:
        with inject.hijack(self, self._tools(), 0, _ATTACH_PATIENCE) as thread:
            self._check(thread.syscall(_SYS_MUNMAP, address, size), "unmapping memory", address)

    def _check(self, result: int, what: str, address: int) -> None:
        if -4096 < result < 0:
            raise ProcessError(
                f"{what} at {address:#x} in process {self.pid} failed: {os.strerror(-result)}; "
                "look at its limits (ulimit -v, cgroup memory, SELinux)"
            )

    def call(
        self,
        function: int,
        arguments: Sequence[int],
        safe: Callable[[Thread], bool],
        timeout: float,
    ) -> int:
        """See the protocol. Only integer and pointer arguments, six at most."""
        if len(arguments) > 6:
            raise ProcessError(f"a function with {len(arguments)} arguments cannot be called from outside; six at most")
        return self._guarded(lambda: self._call(function, arguments, safe, timeout))

    def _call(self, function: int, arguments: Sequence[int], safe: Callable[[Thread], bool], timeout: float) -> int:
        deadline = time.monotonic() + timeout
        tools = self._tools(call=True)
        with inject.hijack(self, tools, _CALL_ROOM, timeout, lambda taken: safe(self._snapshot(taken))) as thread:
            try:
                return thread.call(function, arguments, deadline)
            except inject.Unsuitable:
                thread.let_go()
                raise ProcessError(
                    f"the function at {function:#x} in process {self.pid} did not return within {timeout:g} s; "
                    f"thread {thread.tid} goes on with it and returns to its own work afterwards"
                ) from None

    def _snapshot(self, taken: inject.Hijack) -> Thread:
        low = taken.registers[pt.RSP] - 128
        mapping = next((m for m in self.maps() if m.start <= low < m.end), None)
        thread = Thread(taken.tid, pt.to_dwarf(taken.registers))
        if mapping is None:
            thread.complete = False
        else:
            thread.stacks.append(Stack(low, self.read(low, mapping.end - low)))
        return thread

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the file descriptor; the object may be used again."""
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def __enter__(self) -> LinuxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_memory_fd", -1)
        if fd >= 0:
            os.close(fd)


def _unopenable(path: str) -> str | None:
    """Why a file cannot be opened; None: it can."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror
    return None


def shares_memory_with(pid: int) -> int | None:
    """The parent or child that has the same address space (vfork, clone with CLONE_VM), None: none has."""
    relatives = [proc.read_stat(pid).parent, *proc.list_children(pid)]
    for other in relatives:
        if other > 0 and pt.same_memory(pid, other):
            return other
    return None


def processes() -> Iterator[LinuxProcess]:
    """All processes that are visible and run a program: no kernel threads, not ourselves."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        try:
            if proc.read_stat(int(name)).kernel_thread:
                continue
            yield LinuxProcess(int(name))
        except ProcessError:
            continue
