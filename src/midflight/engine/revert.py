"""Out again: revert of what is in force, and recovery of what a killed engine left, from ledger and journal alone.

A revert never needs an idle function: entries are restored first, and threads inside new code leave it when they
return.
Memory is given back when nothing can refer to it any more; otherwise it stays, retired, to be used again by the same
hotpatch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from midflight.engine import journal
from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import Ledger, State
from midflight.engine.modules import Files
from midflight.engine.plan import lost, writes_in_force
from midflight.engine.references import referred_to
from midflight.engine.stackcheck import Range, StackCheck
from midflight.engine.transaction import Context, Limits, Outcome, give_back, left_over, trampolines, until_idle
from midflight.errors import EngineError, MidflightError, ProcessGone
from midflight.process.faults import point
from midflight.process.model import Process, Stopped

_PAUSES = (0.001, 0.004, 0.016)


def _code(ledgers: Sequence[Ledger]) -> list[Range]:
    return [
        Range(s.address, s.address + s.size, ledger.record.name)
        for ledger in ledgers
        for s in ledger.record.segments
        if s.kind in ("code", "island")
    ]


def _check_order(pid: int, chosen: Sequence[Ledger], everything: Sequence[Ledger]) -> None:
    """Refuse to take away what a later hotpatch stands on."""
    bases = {ledger.base for ledger in chosen}
    top = writes_in_force(everything)
    for ledger in chosen:
        for write in ledger.record.writes():
            above, _ = top.get(write.address, (ledger, write))
            if above.base not in bases:
                raise EngineError(
                    f"process {pid}: {above.record.name} {above.record.sequence} was applied over "
                    f"{ledger.record.name} {ledger.record.sequence}: revert it first"
                )


class _Withdraw:
    """The writes of a revert, in the stop. Later hotpatches go first, each in the reverse order of its writes."""

    def __init__(self, context: Context, ledgers: Sequence[Ledger]) -> None:
        self.process = context.process
        self.ledgers = sorted(ledgers, key=lambda item: -item.order)
        self.idle: set[int] = set()
        self._checks = {item.base: StackCheck(_code([item]), context.modules.frames_at) for item in ledgers}

    def __call__(self, stopped: Stopped) -> None:
        for ledger in self.ledgers:
            self._prove(ledger)
        for ledger in self.ledgers:
            ledgers_of.set_state(self.process, ledger, State.REVERTING)
            point("reverting")
            for write in reversed(ledger.record.writes()):
                self.process.write(write.address, write.before)
                point("entry-restored")
            ledgers_of.set_state(self.process, ledger, State.RETIRED)
            point("retired")
        self.idle = {base for base, check in self._checks.items() if not check.busy(stopped.threads)}

    def _prove(self, ledger: Ledger) -> None:
        allowed = {ledger.state}
        for write in ledger.record.writes():
            expected = {write.after}
            if State.REVERTING in allowed:
                expected.add(write.before)
            # What a later hotpatch of the same revert restores is this one's own jump.
            later = [i for i in self.ledgers if i.order > ledger.order]
            expected |= {w.after for i in later for w in i.record.writes() if w.address == write.address}
            now = self.process.read(write.address, len(write.after))
            if now not in expected:
                raise EngineError(
                    f"process {self.process.pid}: the bytes at {write.address:#x} are {now.hex(' ')}, not what the "
                    f"ledger of {ledger.record.name} says: nothing was reverted (run `midflight check`)"
                )


def _withdraw(context: Context, ledgers: Sequence[Ledger]) -> tuple[float, int]:
    """Restore the entries of these ledgers, then give back what memory can be given back."""
    act = _Withdraw(context, ledgers)
    writes = [w for ledger in ledgers for w in ledger.record.writes()]
    check = StackCheck(trampolines(writes), context.modules.frames_at)
    seconds, attempts = until_idle(context, check, act, context.limits)
    now = time.time_ns()
    for ledger in act.ledgers:
        ledgers_of.note_revert(context.process, ledger, now, round(seconds * 1e9))
    for ledger in act.ledgers:
        context.call_hook(ledger, "after_revert")
    for ledger in act.ledgers:
        _give_back_soon(context, ledger, ledger.base in act.idle)
    return seconds, attempts


def _give_back_soon(context: Context, ledger: Ledger, idle: bool) -> bool:
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
    code = _code([ledger])
    region = StackCheck(code, context.modules.frames_at)
    for wait in _PAUSES:
        if idle:
            own = [(ledger.base, ledger.base + ledger.size)]
            return not referred_to(context.process, code, own) and give_back(context, ledger)
        time.sleep(wait)
        with context.process.stop(context.limits.stop) as stopped:
            idle = not region.busy(stopped.threads)
            stopped.resume()
    return False


def revert(
    process: Process, files: Files, limits: Limits, chosen: Callable[[Ledger], bool], dry_run: bool = False
) -> Outcome:
    """Take the hotpatches in force that ``chosen`` says out of one process.

    Never raises for what can go wrong with a process: the outcome says it.
    """
    outcome = Outcome(process.pid, process.start_time, "failed")
    try:
        with journal.lock(process.pid, process.start_time):
            _revert(process, files, limits, chosen, dry_run, outcome)
    except ProcessGone as error:
        outcome.outcome, outcome.reason = "skipped", str(error)
    except MidflightError as error:
        outcome.reason = str(error)
    return outcome


def _revert(
    process: Process, files: Files, limits: Limits, chosen: Callable[[Ledger], bool], dry_run: bool, outcome: Outcome
) -> None:
    everything = ledgers_of.find(process)
    if not any(chosen(ledger) for ledger in everything):
        outcome.outcome, outcome.reason = "nothing", "the hotpatch is not in this process"
        return
    reason = process.untouchable()
    if reason:
        raise EngineError(reason)
    context = Context(process, files, limits)
    if not dry_run and any(left_over(process, i, everything) for i in everything):
        outcome.notes.append(recover_process(context).reason)
        everything = context.ledgers()
    ledgers = [ledger for ledger in everything if ledger.in_force and chosen(ledger)]
    if not ledgers:
        outcome.outcome, outcome.reason = "nothing", "the hotpatch is not in force in this process"
        return
    _check_order(process.pid, ledgers, everything)
    outcome.functions = tuple(f.name for ledger in ledgers for f in ledger.record.functions)
    outcome.images = tuple(sorted({ledger.record.image_name for ledger in ledgers}))
    if dry_run:
        outcome.outcome = "would-revert"
        return
    for ledger in ledgers:
        context.call_hook(ledger, "before_revert")
    outcome.stopped, outcome.attempts = _withdraw(context, ledgers)
    outcome.outcome = "reverted"
    left = {ledger.base for ledger in context.ledgers()}
    kept = [ledger for ledger in ledgers if ledger.base in left]
    outcome.memory = sum(ledger.size for ledger in kept)
    for ledger in kept:
        why = (
            "the program may hold addresses in them; the same hotpatch uses them again"
            if ledger.record.escapes
            else "something is still in them; `midflight recover` gives them back"
        )
        outcome.notes.append(f"{ledger.size // 1024} KiB of {ledger.record.name} stay mapped, unused: {why}")


# --- recovery ------------------------------------------------------------------------------------------------------


def recover(process: Process, files: Files, limits: Limits) -> Outcome:
    """Finish or undo what a killed engine left in one process.

    Never raises for what can go wrong with a process: the outcome says it.
    """
    outcome = Outcome(process.pid, process.start_time, "failed")
    try:
        with journal.lock(process.pid, process.start_time):
            reason = process.untouchable()
            if reason and (ledgers_of.find(process) or _announced(process)):
                raise EngineError(reason)
            if reason:
                outcome.outcome, outcome.reason = "nothing", reason
                return outcome
            return recover_process(Context(process, files, limits))
    except ProcessGone as error:
        outcome.outcome, outcome.reason = "skipped", str(error)
    except MidflightError as error:
        outcome.reason = str(error)
    return outcome


def _announced(process: Process) -> list[journal.Announcement]:
    return [a for a in journal.announced() if (a.pid, a.start_time) == (process.pid, process.start_time)]


def recover_process(context: Context) -> Outcome:
    """The same, for one who holds the process's lock already.

    Raises:
        MidflightError: something is not as any of our steps would have left it; nothing was done about that.
    """
    process = context.process
    outcome = Outcome(process.pid, process.start_time, "nothing", "nothing was left to do")
    said = [*_recover_journal(context), *(_recover_ledger(context, ledger) for ledger in context.ledgers())]
    said = [text for text in said if text]
    if said:
        outcome.outcome, outcome.reason = "recovered", "; ".join(said)
    return outcome


def _recover_journal(context: Context) -> list[str]:
    said = []
    process = context.process
    for announcement in _announced(process):
        maps = process.maps()
        ledgers = {ledger.base for ledger in context.ledgers()}
        if not any(address in ledgers for address, _ in announcement.regions):
            for address, parts in announcement.regions:
                if announcement.matches(maps, address):
                    process.unmap_memory(address, sum(size for size, _ in parts))
                    point("orphan-unmapped")
                    said.append(f"unmapped {sum(size for size, _ in parts) // 1024} KiB that were being prepared")
        journal.withdraw(announcement)
    return said


def _recover_ledger(context: Context, ledger: Ledger) -> str:
    name = f"{ledger.record.name} {ledger.record.sequence}"
    if ledger.state is State.PREPARED:
        give_back(context, ledger)
        return f"took away {name}, which was prepared and never in force"
    if ledger.state is State.COMMITTING:
        return _recover_commit(context, ledger, name)
    if ledger.state is State.REVERTING:
        _withdraw(context, [ledger])
        return f"finished the revert of {name}"
    if ledger.state is State.APPLIED:
        if lost(context.process, ledger, context.ledgers()):
            ledgers_of.set_state(context.process, ledger, State.RETIRED)
            return f"{name} is out of force: its image was unloaded"
        replaced = [i for i in context.ledgers() if i.base in ledger.record.replaces and i.in_force]
        for old in replaced:
            ledgers_of.set_state(context.process, old, State.RETIRED)
        return f"finished the replacement by {name}" if replaced else ""
    return _reclaim(context, ledger, name)


def _recover_commit(context: Context, ledger: Ledger, name: str) -> str:
    process, writes = context.process, ledger.record.writes()
    now = [process.read(w.address, len(w.after)) for w in writes]
    strange = [w for w, found in zip(writes, now, strict=True) if found not in (w.undo, w.after)]
    if strange:
        raise EngineError(
            f"process {process.pid}: the bytes at {strange[0].address:#x} are neither old nor new: {name} is left as "
            "it is (run `midflight check`)"
        )
    replaced = [i for i in context.ledgers() if i.base in ledger.record.replaces]
    if all(found == w.after for w, found in zip(writes, now, strict=True)):
        ledgers_of.set_state(process, ledger, State.APPLIED)
        point("applied")
        for old in replaced:
            ledgers_of.set_state(process, old, State.RETIRED)
        return f"completed {name}"
    idle: list[bool] = []
    region = StackCheck(_code([ledger]), context.modules.frames_at)

    def act(stopped: Stopped) -> None:
        for write in reversed(writes):
            process.write(write.address, write.undo)
            point("entry-restored")
        for old in replaced:
            ledgers_of.set_state(process, old, State.APPLIED)
        ledgers_of.set_state(process, ledger, State.RETIRED)
        idle.append(not region.busy(stopped.threads))

    until_idle(context, StackCheck(trampolines(writes), context.modules.frames_at), act, context.limits)
    _give_back_soon(context, ledger, idle[-1])
    return f"undid {name}, which was half-way in"


def _reclaim(context: Context, ledger: Ledger, name: str) -> str:
    if _give_back_soon(context, ledger, False):
        return f"gave back the {ledger.size // 1024} KiB of {name}"
    return ""
