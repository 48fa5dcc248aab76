"""Finishes or undoes what a killed engine left, from ledger and journal alone."""

from __future__ import annotations

from midflight.engine import journal, system
from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import Ledger, State
from midflight.engine.modules import Files
from midflight.engine.plan import lost
from midflight.engine.stackcheck import StackCheck
from midflight.engine.transaction import (
    Context,
    Limits,
    Outcome,
    code_of,
    give_back_soon,
    give_up,
    settle,
    trampolines,
    until_idle,
)
from midflight.engine.withdraw import withdraw
from midflight.errors import EngineError, MidflightError
from midflight.process.faults import point
from midflight.process.model import Process, Stopped


def recover(process: Process, files: Files, limits: Limits) -> Outcome:
    """Finish or undo what a killed engine left in one process.

    Never raises for what can go wrong with a process: the outcome says it.
    """
    outcome = Outcome(process.pid, process.start_time, "failed")
    try:
        with journal.lock(process.pid, process.start_time):
            released = process.release_left()
            reason = process.untouchable()
            if reason and (ledgers_of.find(process) or _announced(process)):
                raise EngineError(reason)
            if reason:
                outcome.outcome, outcome.reason = "nothing", reason
                return outcome
            outcome = recover_process(Context(process, files, limits))
            if released:
                said = f"let {released} threads go that were held still"
                outcome.reason = said if outcome.outcome == "nothing" else f"{said}; {outcome.reason}"
                outcome.outcome = "recovered"
            return outcome
    except MidflightError as error:
        settle(outcome, process, error)
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
    system.close_left(context.modules, context.ledgers())
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
        give_up(context, ledger)
        return f"took away {name}, which was prepared and never in force"
    if ledger.state is State.COMMITTING:
        return _recover_commit(context, ledger, name)
    if ledger.state is State.REVERTING:
        withdraw(context, [ledger])
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
    region = StackCheck(code_of([ledger]), context.modules.frames_at)

    def act(stopped: Stopped) -> None:
        for write in reversed(writes):
            process.write(write.address, write.undo)
            point("entry-restored")
        for old in replaced:
            ledgers_of.set_state(process, old, State.APPLIED)
        ledgers_of.set_state(process, ledger, State.RETIRED)
        idle.append(not region.busy(stopped.threads))

    until_idle(context, StackCheck(trampolines(writes), context.modules.frames_at), act, context.limits)
    give_back_soon(context, ledger, idle[-1])
    return f"undid {name}, which was half-way in"


def _reclaim(context: Context, ledger: Ledger, name: str) -> str:
    if give_back_soon(context, ledger, False):
        return f"gave back the {ledger.size // 1024} KiB of {name}"
    return ""
