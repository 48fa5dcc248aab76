"""Decides whether a thread may run a call of C code for us, by proof.

Two strengths, both demanding a stack that unwinds to its outermost frame with nobody of the loader or the unwinder on
it:

light    for code that takes no lock but the unwinder's and allocates nothing: the thread executes outside libc, or
sleeps blocked  for any other code: the thread sleeps in a system call that no allocator makes, with no allocator on
its stack

A thread with an interrupted malloc, dlopen or throw below a signal handler shows those frames, and is not chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from midflight.engine.modules import Module, Modules
from midflight.image.unwind import walk
from midflight.process.model import Thread

# Functions that block without a lock of libc's (POSIX.1-2017 XSH 2.9.5.2 cancellation points, less those of stdio).
# fmt: off
_BLOCKING = (
    "accept", "accept4", "clock_nanosleep", "connect", "epoll_pwait", "epoll_pwait2", "epoll_wait", "mq_receive",
    "mq_timedreceive", "msgrcv", "nanosleep", "pause", "poll", "ppoll", "pselect", "pthread_barrier_wait",
    "pthread_cond_clockwait", "pthread_cond_timedwait", "pthread_cond_wait", "pthread_join",
    "pthread_timedjoin_np", "read", "readv", "recv", "recvfrom", "recvmmsg", "recvmsg", "select", "sem_clockwait",
    "sem_timedwait", "sem_wait", "semop", "semtimedop", "sigsuspend", "sigtimedwait", "sigwait", "sigwaitinfo",
    "sleep", "usleep", "wait", "wait4", "waitid", "waitpid",
)
# fmt: on
# What must not be half-way done on the stack of a thread that is to allocate: the allocator, and fork, which locks it.
# fmt: off
_ALLOCATING = (
    "malloc", "free", "calloc", "realloc", "reallocarray", "memalign", "aligned_alloc", "posix_memalign", "valloc",
    "pvalloc", "malloc_trim", "mallopt", "mallinfo", "mallinfo2", "malloc_info", "malloc_stats", "malloc_usable_size",
    "cfree", "fork",
)
# fmt: on
_LIBC = ("libc.so.6", "libpthread.so.0")
# A blocking function is at most this deep: pthread_cond_wait sleeps in two helpers of its own.
_DEEPEST_SLEEP = 3


def _named(module: Module | None, names: Sequence[str]) -> bool:
    return module is not None and module.path.removesuffix(" (deleted)").rsplit("/", 1)[-1] in names


class SafePoint:
    """The proof for one process; ``light`` and ``blocked`` are predicates over a stopped thread."""

    def __init__(self, modules: Modules, loader: Callable[[Module], bool], unwinder: Callable[[Module], bool]) -> None:
        self._modules = modules
        self._loader = loader
        self._unwinder = unwinder
        self._known: dict[tuple[int, tuple[str, ...]], frozenset[int]] = {}

    def _clean(self, thread: Thread) -> tuple[list[int], list[Module | None]] | None:
        """Code addresses and modules of all frames, innermost first; None when not complete, or somebody may hold a
        lock."""
        if not thread.complete:
            return None
        stack = walk(thread.registers, self._modules.frames_at, thread.word)
        if not stack.complete:
            return None
        places = [frame.at for frame in stack.frames]
        modules = [self._modules.at(at) for at in places]
        if any(m is not None and (self._loader(m) or self._unwinder(m)) for m in modules):
            return None
        return places, modules

    def light(self, thread: Thread) -> bool:
        """Whether the thread may run code that only takes the unwinder's lock."""
        clean = self._clean(thread)
        if clean is None:
            return False
        pcs, modules = clean
        return not _named(modules[0], _LIBC) or self._sleeps(pcs, modules)

    def blocked(self, thread: Thread) -> bool:
        """Whether the thread may run code that allocates and takes common locks."""
        clean = self._clean(thread)
        return clean is not None and self._sleeps(*clean)

    def _sleeps(self, places: list[int], modules: list[Module | None]) -> bool:
        functions = [self._function_start(at) for at in places]
        if any(self._allocates(m, start) for m, start in zip(modules, functions, strict=True) if m is not None):
            return False
        for module, start in list(zip(modules, functions, strict=True))[:_DEEPEST_SLEEP]:
            if module is None or not _named(module, _LIBC):
                return False
            if start in self._addresses(module, _BLOCKING):
                return True
        return False

    def _allocates(self, module: Module, function: int) -> bool:
        allocating = self._addresses(module, _ALLOCATING)
        if not allocating:
            return False
        # A library that brings its own malloc is an allocator as a whole: its inner functions have no names.
        elf = self._modules.image(module)
        own = elf.kind == "shared" and not elf.is_pie and not _named(module, _LIBC)
        return own or function in allocating

    def _function_start(self, at: int) -> int:
        """Link-time address of the function that ``at`` is in."""
        found = self._modules.frames_at(at)
        frame = found.extent(at - found.bias) if found else None
        return frame.start if frame else -1

    def _addresses(self, module: Module, names: tuple[str, ...]) -> frozenset[int]:
        key = (module.bias, names)
        if key not in self._known:
            elf = self._modules.image(module)
            symbols = (elf.dynamic_symbol(name) for name in names)
            self._known[key] = frozenset(s.value for s in symbols if s is not None and s.defined)
        return self._known[key]
