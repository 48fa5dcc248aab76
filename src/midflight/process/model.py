"""What the engine may know and do of a live process: the one Protocol between it and an operating system.

Every method raises :class:`~midflight.errors.ProcessError` (one line: what, which process, what to do), and
:class:`~midflight.errors.ProcessGone` when the process ended. Addresses and sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from midflight.errors import ProcessError

Protection = Literal["r", "rx", "rw"]
ImageFormat = Literal["elf", "pe"]


class AddressTaken(ProcessError):
    """Something is mapped already where memory was to be mapped; the caller tries elsewhere."""


class NoSafeThread(ProcessError):
    """No thread was at a safe point in time; nothing was called."""


# Register numbers of a Thread: DWARF numbering of the System V AMD64 ABI (figure 3.36): rax rdx rcx rbx rsi rdi rbp rsp
# r8 ... r15, and 16 the return address column, here the instruction pointer.
RSP = 7
RIP = 16


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of the address space. ``device`` and ``inode`` are 0 for anonymous memory."""

    start: int
    end: int
    readable: bool
    writable: bool
    executable: bool
    private: bool
    offset: int
    device: tuple[int, int]
    inode: int
    path: str
    allocation: int = 0
    """Windows: where the allocation or image begins that this is a part of."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A snapshot of live stack memory: ``data`` begins at ``start``."""

    start: int
    data: bytes


@dataclass(slots=True)
class Thread:
    """One stopped thread: registers by DWARF number, and its live stack (red zone to the end of its mapping).

    ``stacks`` has one snapshot, or several when the thread runs a signal handler on an alternate stack: then also the
    interrupted one. ``complete`` is False when some part could not be read (the caller must then assume the worst).
    """

    tid: int
    registers: tuple[int, ...]
    stacks: list[Stack] = field(default_factory=list)
    complete: bool = True

    def word(self, address: int) -> int:
        """Eight bytes of the snapshot. Raises LookupError outside of it."""
        for stack in self.stacks:
            offset = address - stack.start
            if 0 <= offset <= len(stack.data) - 8:
                return int.from_bytes(stack.data[offset : offset + 8], "little")
        raise LookupError(f"{address:#x} is not on the stack")


class Stopped(Protocol):
    """All threads stand still between ``__enter__`` and ``resume`` (or ``__exit__``, whichever comes first)."""

    @property
    def threads(self) -> Sequence[Thread]:
        """All threads, with their snapshots."""

    def step_out(self, exits: dict[int, tuple[int, int]], timeout: float) -> bool:
        """Let the threads named in ``exits`` (tid: (return address, stack pointer above which it counts)) run until
        each stands at its return address in that frame; all others stay stopped. True when all got there, and their
        snapshots in ``threads`` are fresh."""

    def resume(self) -> float:
        """Let everything run again; signals that came meanwhile are delivered. Returns the seconds stopped."""


class Process(Protocol):
    """A live process, not attached; cheap to make."""

    pid: int
    start_time: int
    """When the process began, in the kernel's own unit: pid and start_time name a process for ever."""
    images: ImageFormat
    """The format of what it runs."""
    granularity: int
    """Memory can be mapped at multiples of this, in bytes."""

    def maps(self) -> list[Mapping]:
        """The address space, in address order."""

    def code(self) -> list[Mapping]:
        """The mappings of executable code that have a file behind them: cheap, for looking at a whole host."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""

    def touched(self, mapping: Mapping) -> Iterable[tuple[int, int]]:
        """The parts of a mapping, as (start, end) in order, that may hold something; where the system does not tell
        what was never written, the whole."""

    def write(self, address: int, data: bytes) -> None:
        """Write whatever the page protection is (private copy-on-write pages only)."""

    def module_path(self, mapping: Mapping) -> str:
        """A path in our own namespace that opens the very file behind a mapping (deleted or replaced files too)."""

    def threads(self) -> list[int]:
        """Thread ids, now."""

    def untouchable(self) -> str | None:
        """Why this process must not be touched (traced by another, dying, zombie, kernel thread, foreign
        architecture, shares its memory with another process, not permitted …), in words; None: may be touched."""

    def map_memory(self, address: int, parts: Sequence[tuple[int, Protection]]) -> None:
        """Map anonymous private memory at exactly ``address``: consecutive parts of (size, protection), page-multiples.
        Never replaces anything: raises :class:`AddressTaken` when something is there already. On any failure nothing
        stays mapped."""

    def unmap_memory(self, address: int, size: int) -> None:
        """Give memory back."""

    def call(
        self,
        function: int,
        arguments: Sequence[int],
        safe: Callable[[Thread], bool],
        timeout: float,
    ) -> int:
        """Call C code in one thread for which ``safe(thread)`` says yes, all registers (vector state included) and the
        red zone kept; returns its integer result. Raises when no thread was safe within ``timeout``, and when the call
        did not return within it. Where a thread of our own can be started in the process (Windows), that makes the
        call, and ``safe`` is not asked."""

    def protect(self, address: int, size: int, protection: Protection) -> None:
        """Set the protection of whole pages. Where writing does not open pages (Linux), nobody needs it."""

    def release_left(self) -> int:
        """Let go of threads that a killed engine holds still, where the kernel has not done it; how many."""

    def stop(self, timeout: float) -> AbstractContextManager[Stopped]:
        """Stop all threads, those that appear meanwhile included, and take their snapshots."""

    def close(self) -> None:
        """Give back what is held open (files, handles); the object may be used again."""
