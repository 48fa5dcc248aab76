"""Out again, when somebody says so. Memory is given back when nothing can refer to it any more; otherwise it stays,
retired, to be used again by the same hotpatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from midflight.engine import journal
from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import Ledger
from midflight.engine.modules import Files
from midflight.engine.plan import writes_in_force
from midflight.engine.recover import recover_process
from midflight.engine.transaction import Context, Limits, Outcome, left_over, settle
from midflight.engine.withdraw import withdraw
from midflight.errors import EngineError, MidflightError
from midflight.process.model import Process


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
    except MidflightError as error:
        settle(outcome, process, error)
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
    outcome.stopped, outcome.attempts = withdraw(context, ledgers)
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
