"""When the changed functions run: again and again, at most once, or with a lock held; as far as the image tells.

What is proven to be behind a running program is refused (MF114). Where it only may be, that is said: whether code runs
"before the first accept" cannot be proven, as a loop that waits for events looks like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from midflight.forge.model import Finding
from midflight.forge.refusals import finding
from midflight.forge.review import reviewnames
from midflight.forge.review.callgraph import Call, CallGraph, Node

#: Calls in which a program waits for events or for work (POSIX, Linux, libevent, libev, glib, libuv).
_WAITS = """
accept accept4 epoll_wait epoll_pwait epoll_pwait2 poll ppoll __poll_chk select pselect pause sigwait sigwaitinfo
sigtimedwait sigsuspend read recv recvfrom recvmsg __read_chk __recv_chk __recvfrom_chk mq_receive msgrcv wait waitpid
wait3 wait4 nanosleep clock_nanosleep usleep sleep event_base_loop event_base_dispatch event_dispatch ev_run
g_main_loop_run g_main_context_iteration uv_run pthread_cond_wait pthread_cond_timedwait sem_wait getc fgets getline
io_getevents io_uring_enter sd_event_run sd_event_loop
"""
_CALLERS_SHOWN = 2


@dataclass(frozen=True)
class Moments:
    """The questions that need the whole image."""

    graph: CallGraph

    @cached_property
    def waiting(self) -> frozenset[int]:
        """Functions in which a thread may wait, directly or in what they call."""
        callers: dict[int, list[int]] = {}
        found = set()
        for node in self.graph.nodes.values():
            for call in node.calls:
                if call.target is not None:
                    callers.setdefault(call.target, []).append(node.vaddr)
                elif _waits(call):
                    found.add(node.vaddr)
        work = list(found)
        while work:
            for caller in callers.get(work.pop(), ()):
                if caller not in found:
                    found.add(caller)
                    work.append(caller)
        return frozenset(found)

    def event_loops(self, node: Node) -> list[tuple[int, int]]:
        """Loops of a function in which it waits."""
        waits = [
            call.at for call in node.calls if (call.target is None and _waits(call)) or call.target in self.waiting
        ]
        return [loop for loop in node.loops if any(loop[0] <= at <= loop[1] for at in waits)]

    @cached_property
    def again(self) -> frozenset[int]:
        """What can run at any time: by pointer or name from anywhere, or from a loop that waits."""
        graph = self.graph
        starts = set(graph.taken)
        for node in graph.nodes.values():
            loops = self.event_loops(node)
            for call in node.calls if loops else ():
                if call.target is not None and any(first <= call.at <= last for first, last in loops):
                    starts.add(call.target)
        return frozenset(graph.reached(starts))

    def unknown(self, node: Node) -> str | None:
        """Why it cannot be told that a function will run again; None when it can."""
        graph = self.graph
        if node.vaddr in self.again or node.vaddr == graph.main:
            return None
        if graph.main is not None and node.vaddr in graph.reached([graph.main]):
            return "only main leads to it, outside of every loop that is seen to wait for events"
        if node.vaddr in graph.reached(graph.starters):
            return "only constructors are seen to lead to it"
        return "nothing in the image is seen to call it"

    def held(self, node: Node) -> Iterator[tuple[str, str]]:
        """Callers that hold a lock when they call this function, and that lock's function: between the two, in order of
        address, nothing gives one back."""
        for caller, call in self.graph.callers(node.vaddr):
            lock = None
            for other in caller.calls:
                if other.at >= call.at:
                    break
                if reviewnames.unlocks(other.name):
                    lock = None
                elif reviewnames.locks(other.name):
                    lock = other.name
            later = any(reviewnames.unlocks(other.name) for other in caller.calls if other.at > call.at)
            if lock is not None and later:
                yield caller.name, lock.partition("@")[0]


@lru_cache(maxsize=4096)
def _is_wait(name: str) -> bool:
    return name in _WAITS.split()


def _waits(call: Call) -> bool:
    return _is_wait(call.name.partition("@")[0])


def moments(graph: CallGraph, functions: Mapping[tuple[Path, str], tuple[str, Path | None]]) -> list[Finding]:
    """Notes for changed functions: (object, name for the finding) to (symbol in the image, source file)."""
    asked = Moments(graph)
    found = []
    for (path, name), (symbol, source) in functions.items():
        node = graph.find(symbol, source)
        if node is None:
            continue
        what = asked.unknown(node)
        if what is not None:
            found.append(finding("MF175", path, name, what=what))
        holders = sorted(set(asked.held(node)))
        for caller, lock in holders[:_CALLERS_SHOWN]:
            found.append(finding("MF173", path, name, caller=caller, lock=lock))
    return found
