"""What every transaction in a process shares: its context and limits, the stop in which nobody is in the way, and
giving memory back. One transaction is all or nothing; what became of it is an outcome, never an exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from midflight.engine import ledger as ledgers_of
from midflight.engine import system, unwinding
from midflight.engine.ledger import Ledger, State, Write
from midflight.engine.modules import Files, Modules
from midflight.engine.plan import lost
from midflight.engine.prepare import discard
from midflight.engine.references import referred_to
from midflight.engine.safepoint import SafePoint
from midflight.engine.stackcheck import Busy, Range, StackCheck
from midflight.errors import EngineError, MidflightError, ProcessGone
from midflight.process.faults import point
from midflight.process.model import Process, Stopped

_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.05
_STEP_OUT_AFTER = 2
_FIRST_STEP, _LONGEST_STEP = 0.002, 0.05
_PAUSES = (0.001, 0.004, 0.016)
PAYLOAD = ("code", "rodata", "data")
"""Segments of the payload itself; the others are ours: jumps to far places, calls of the system."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to try, in seconds: to find the process not busy, to stop it, and for a call in the target."""

    busy: float = 5.0
    stop: float = 1.0
    call: float = 2.0


@dataclass(slots=True)
class Outcome:
    """What became of one process; ``reason`` is for people, and says what to do next where something is to be done."""

    pid: int
    start_time: int
    outcome: str
    """applied, already, would-apply, skipped, failed, reverted, kept, nothing"""
    reason: str = ""
    functions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    stopped: float = 0.0
    """Seconds that no thread could run, of the stop in which it was done."""
    attempts: int = 0
    memory: int = 0
    """Bytes mapped."""
    notes: list[str] = field(default_factory=list)


def settle(outcome: Outcome, process: Process, error: MidflightError, otherwise: str = "failed") -> None:
    """Note why a transaction was not carried out. A process that ends under our hands shows it in many ways (its files
    cannot be opened, it maps nothing any more): one that is not there any more was skipped, whatever went wrong."""
    outcome.outcome, outcome.reason = "skipped" if isinstance(error, ProcessGone) else otherwise, str(error)
    try:
        process.maps()
    except ProcessGone:
        if not isinstance(error, ProcessGone):
            outcome.outcome, outcome.reason = "skipped", f"process {process.pid} ended ({error})"
    except MidflightError:
        pass


class BusyError(EngineError):
    """Threads were in the way until the time was up."""


class Context:
    """What all steps of a transaction in one process share."""

    def __init__(self, process: Process, files: Files, limits: Limits) -> None:
        self.process = process
        self.limits = limits
        self.maps = process.maps()
        self.modules: Modules = system.modules_of(process, self.maps, files)
        self.safe = SafePoint(
            self.modules,
            lambda module: unwinding.is_loader(self.modules, module),
            lambda module: unwinding.is_unwinder(self.modules, module),
        )

    def unwinder(self) -> system.Unwinder:
        """How payloads become known to the unwinder of the process."""
        return system.Unwinder(self.modules, self.safe, self.limits.call)

    def ledgers(self) -> list[Ledger]:
        """The ledgers of the process, now; their code can be unwound from then on."""
        found = ledgers_of.find(self.process)
        for ledger in found:
            base = min((s.address for s in ledger.record.segments if s.kind in PAYLOAD), default=0)
            for segment in ledger.record.segments:
                if segment.kind == "code" and ledger.record.unwind is not None:
                    end = segment.address + segment.size
                    self.modules.add_payload(segment.address, end, ledger.record.unwind, base)
        return found

    def call_hook(self, ledger: Ledger, name: str) -> None:
        """Run an author's hook in the target.

        Raises:
            EngineError: it returned other than 0.
        """
        address = dict(ledger.record.hooks).get(name)
        if address is None:
            return
        point(f"hook-{name}")
        result = self.process.call(address, (), self.safe.blocked, self.limits.call) & 0xFFFFFFFF
        if result:
            raise EngineError(f"process {self.process.pid}: the hook {name} of {ledger.record.name} returned {result}")


def trampolines(writes: Sequence[Write]) -> list[Range]:
    """Code that nobody may be in when trampolines are taken away: a short entry leads through its padding."""
    return [Range(w.address, w.address + len(w.after), f"the trampoline at {w.address:#x}") for w in writes]


def until_idle(
    context: Context, check: StackCheck, act: Callable[[Stopped], None], limits: Limits
) -> tuple[float, int]:
    """Stop the process, and ``act`` in a stop in which nobody is in the way. Returns (seconds stopped, stops needed).

    Busy threads are given time; after some tries they are led to their return addresses within a bound.

    Raises:
        BusyError: threads were in the way until the time was up.
    """
    deadline = time.monotonic() + limits.busy
    wait, step = _FIRST_WAIT, _FIRST_STEP
    attempts = 0
    while True:
        attempts += 1
        with context.process.stop(limits.stop) as stopped:
            point("stopped")
            busy = check.busy(stopped.threads)
            if busy and attempts > _STEP_OUT_AFTER and all(b.exit for b in busy):
                exits = {b.tid: b.exit for b in busy if b.exit}
                if stopped.step_out(exits, step):
                    busy = check.busy(stopped.threads)
                step = min(step * 2, _LONGEST_STEP)
            if not busy:
                act(stopped)
                point("acted")
                return stopped.resume(), attempts
        if time.monotonic() >= deadline:
            raise BusyError(_why_busy(context.process.pid, busy, limits.busy))
        # Irregular, so that a periodic program does not meet us at the same place for ever.
        time.sleep(wait * (0.5 + time.perf_counter_ns() % 1000 / 1000))
        wait = min(wait * 2, _LONGEST_WAIT)


def _why_busy(pid: int, busy: Sequence[Busy], tried: float) -> str:
    more = f" (and {len(busy) - 1} more threads)" if len(busy) > 1 else ""
    return (
        f"process {pid} was busy for {tried:g} s: {busy[0]}{more}; try again when it is idle, give more time "
        "(--timeout), or restart it with a fixed build"
    )


def left_over(process: Process, ledger: Ledger, everything: Sequence[Ledger]) -> bool:
    """Whether a ledger is in a state that only a killed engine (or an unloaded library) leaves."""
    if ledger.state is State.APPLIED:
        return lost(process, ledger, everything)
    return ledger.state is not State.RETIRED


def code_of(ledgers: Sequence[Ledger]) -> list[Range]:
    """The code in the memory of these hotpatches."""
    return [
        Range(s.address, s.address + s.size, ledger.record.name)
        for ledger in ledgers
        for s in ledger.record.segments
        if s.kind in ("code", "island", "calls")
    ]


def give_back(context: Context, ledger: Ledger) -> bool:
    """Give back memory that nothing leads to and nobody is in; what the unwinder keeps a record of stays, as
    retired."""
    ledger = ledgers_of.set_state(context.process, ledger, State.RETIRED)
    if ledger.flags & ledgers_of.FLAG_UNWIND:
        try:
            context.unwinder().deregister(ledger)
        except MidflightError:
            return False
    discard(context.process, ledger)
    return True


def give_up(context: Context, ledger: Ledger) -> bool:
    """Give back what was prepared and never in force; whether the memory is gone.

    Where hooks may have run, one may be running still, or have left an address of the payload in the program.
    """
    if ledger.record.hooks:
        ledgers_of.set_state(context.process, ledger, State.RETIRED)
        return False
    return give_back(context, ledger)


def give_back_soon(context: Context, ledger: Ledger, idle: bool) -> bool:
    """Give back the memory of a retired hotpatch, if threads leave it soon and nothing can refer to it.

    The hotpatch is out of force in any case: a process that cannot be changed just now (it waits for a vfork child,
    say) keeps the memory, for ``recover`` to give back.
    """
    try:
        return _give_back(context, ledger, idle)
    except ProcessGone:
        raise
    except MidflightError:
        return False


def _give_back(context: Context, ledger: Ledger, idle: bool) -> bool:
    if ledger.record.escapes:
        return False
    code = code_of([ledger])
    region = StackCheck(code, context.modules.frames_at)
    for wait in _PAUSES:
        if idle:
            own = [(ledger.base, ledger.base + ledger.size)]
            table = ledger.record.unwind[0] if context.process.images == "pe" and ledger.record.unwind else None
            # No address of our own calls is ever given to the program; the system keeps where a thread began.
            calls = [(s.address, s.address + s.size) for s in ledger.record.segments if s.kind == "calls"]
            payload = [r for r in code if (r.start, r.end) not in calls]
            return not referred_to(context.process, payload, own, table) and give_back(context, ledger)
        time.sleep(wait)
        with context.process.stop(context.limits.stop) as stopped:
            idle = not region.busy(stopped.threads)
            stopped.resume()
    return False
