"""Decides whether a thread may run a call of C code for us, by proof, and finds what to call.

Two strengths, both demanding a stack that unwinds to its outermost frame with nobody of the loader or the unwinder on
it:

light    for code that takes no lock but the unwinder's and allocates nothing: the thread executes outside libc, or is
blocked blocked  for any other code: the thread sleeps inside a libc function that is known to hold no lock while it
does

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
_LIBC = ("libc.so.6", "libpthread.so.0")
# What may stand below a thread's own code: _start's or clone's callees in libc.
_OUTERMOST_LIBC = 2


def _named(module: Module | None, names: Sequence[str]) -> bool:
    return module is not None and module.path.removesuffix(" (deleted)").rsplit("/", 1)[-1] in names


class SafePoint:
    """The proof for one process; ``light`` and ``blocked`` are predicates over a stopped thread."""

    def __init__(self, modules: Modules, loader: Callable[[Module], bool], unwinder: Callable[[Module], bool]) -> None:
        self._modules = modules
        self._loader = loader
        self._unwinder = unwinder
        self._blocking: dict[int, frozenset[int]] = {}

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

    def _sleeps(self, pcs: list[int], modules: list[Module | None]) -> bool:
        inner = 0
        while inner < len(modules) and _named(modules[inner], _LIBC):
            inner += 1
        if not inner or inner == len(modules):
            return False
        outer = len(modules)
        # The very last frame is _start of the program; clone3 in libc for other threads.
        if not _named(modules[outer - 1], _LIBC):
            outer -= 1
        floor = outer
        while floor > inner and _named(modules[floor - 1], _LIBC):
            floor -= 1
        if outer - floor > _OUTERMOST_LIBC or any(_named(m, _LIBC) for m in modules[inner:floor]):
            return False
        entered = modules[inner - 1]
        assert entered is not None
        return self._function_start(pcs[inner - 1]) in self._blocking_of(entered)

    def _function_start(self, at: int) -> int:
        found = self._modules.frames_at(at)
        frame = found.table.find(at - found.bias) if found else None
        return frame.start if frame else -1

    def _blocking_of(self, module: Module) -> frozenset[int]:
        if module.bias not in self._blocking:
            elf = self._modules.image(module)
            symbols = (elf.dynamic_symbol(name) for name in _BLOCKING)
            self._blocking[module.bias] = frozenset(s.value for s in symbols if s is not None and s.defined)
        return self._blocking[module.bias]
