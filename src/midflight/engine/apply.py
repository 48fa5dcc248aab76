"""One apply in one process: plan, prepare, stop, check, write, go, verify - or back to the bytes that were there.

Inside the stop there is only the stack check, reads of the bytes to be replaced, and small writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from midflight.engine import journal, system
from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import State, Write
from midflight.engine.modules import Files
from midflight.engine.plan import JUMP_SHORT, Hotpatch, Inapplicable, Plan, plan
from midflight.engine.prepare import Prepared, prepare
from midflight.engine.recover import recover_process
from midflight.engine.stackcheck import Range, StackCheck
from midflight.engine.transaction import Context, Limits, Outcome, give_up, left_over, settle, trampolines, until_idle
from midflight.errors import EngineError, MidflightError, ProcessGone
from midflight.process.faults import point
from midflight.process.model import Process, Stopped


def _ranges(prepared: Sequence[Prepared]) -> list[Range]:
    """Code that nobody may be in when the entries are written."""
    found = []
    for item in prepared:
        record = item.ledger.record
        for function in record.functions:
            # A thread that stands at the first byte goes on with whatever is there then: old code or jump.
            found += [Range(w.address + 1, w.address + len(w.after), function.name) for w in function.writes]
        found += trampolines(record.restores)
        if item.plan.target.policy == "strict":
            for function in record.functions:
                found += [Range(a, a + s, function.name) for a, s in function.old]
            for replaced in item.plan.replaces:
                found += [Range(f.new[0], f.new[0] + f.new[1], f.name) for f in replaced.record.functions]
    return found


def _verify(process: Process, writes: Sequence[Write]) -> None:
    """Prove, in the stop, the very bytes that are about to be replaced."""
    for write in writes:
        now = process.read(write.address, len(write.undo))
        if now != write.undo:
            raise EngineError(
                f"process {process.pid}: the bytes at {write.address:#x} changed to {now.hex(' ')} meanwhile: nothing "
                "was written (run `midflight check`)"
            )


class _Commit:
    """The writes of one transaction, made in the stop, undone in the same stop if one of them fails."""

    def __init__(self, process: Process, prepared: Sequence[Prepared]) -> None:
        self.process = process
        self.prepared = prepared
        self.writes = tuple(w for item in prepared for w in item.ledger.record.writes())
        self.replaced = tuple(r for item in prepared for r in item.plan.replaces)

    def __call__(self, _: Stopped) -> None:
        _verify(self.process, self.writes)
        for item in self.prepared:
            ledgers_of.set_state(self.process, item.ledger, State.COMMITTING)
        point("committing")
        done: list[Write] = []
        try:
            for write in self.writes:
                self.process.write(write.address, write.after)
                done.append(write)
                point("entry-written")
        except BaseException:
            for write in reversed(done):
                self.process.write(write.address, write.undo)
            for item in self.prepared:
                ledgers_of.set_state(self.process, item.ledger, State.PREPARED if item.fresh else State.RETIRED)
            raise
        self._finish()

    def running(self) -> None:
        """The same while the threads run, for entries of kind hotpatch alone: the long jump goes into padding that
        nobody executes; then each entry becomes a jump there by one aligned write of two bytes (Microsoft's own
        protocol for images built with /hotpatch). What fails half-way is for the caller to roll back, in a stop: a
        thread may be on its way through the padding."""
        _verify(self.process, self.writes)
        for item in self.prepared:
            ledgers_of.set_state(self.process, item.ledger, State.COMMITTING)
        point("committing")
        entries = [write for write in self.writes if len(write.after) == JUMP_SHORT]
        for write in (write for write in self.writes if len(write.after) != JUMP_SHORT):
            self.process.write(write.address, write.after)
            point("padding-written")
            if self.process.read(write.address, len(write.after)) != write.after:
                raise EngineError(f"process {self.process.pid}: the padding at {write.address:#x} was not written")
        for write in entries:
            self.process.write(write.address, write.after)
            point("entry-written")
        self._finish()

    def _finish(self) -> None:
        for item in self.prepared:
            ledgers_of.set_state(self.process, item.ledger, State.APPLIED)
            point("applied")
        for replaced in self.replaced:
            ledgers_of.set_state(self.process, replaced, State.RETIRED)
            point("replaced")


def needs_no_stop(plan: Plan) -> bool:
    """Whether a plan may be carried out while the threads run: a reviewer let old and new run side by side, every
    entry is of kind hotpatch, and none of them leads anywhere yet, so that nobody is in its padding."""
    return (
        plan.target.policy == "entry"
        and bool(plan.functions)
        and all(f.function.entry.kind == "hotpatch" for f in plan.functions)
        and all(
            site.now in (f.function.entry.before, f.function.entry.pad_before)
            for f in plan.functions
            for site in f.sites
        )
        and not plan.restores
        and not plan.replaces
    )


def _prepare_all(context: Context, plans: Sequence[Plan], hotpatch: Hotpatch, done: list[Prepared]) -> None:
    """Prepare every plan; what is ``done`` is there for the caller to undo, whatever happens."""
    process, limits = context.process, context.limits
    order = max((item.order for item in context.ledgers()), default=0)
    unwinder = context.unwinder()
    for number, one in enumerate(plans, 1):
        registers = unwinder.wanted(one.target)
        addresses = system.addresses(context.modules, one.target.imports, limits.call)
        done.append(prepare(process, one, hotpatch, addresses, unwinder if registers else None, order + number))
        point("prepared")
        ledger = done[-1].ledger
        if registers and not ledger.flags & ledgers_of.FLAG_UNWIND:
            ledger = unwinder.register(ledger)
            done[-1] = Prepared(one, ledger, done[-1].fresh)
            point("registered")


def _undo_prepared(context: Context, done: Sequence[Prepared]) -> None:
    """Take back what failed: give back what was never entered, and roll back what was committed all the same."""
    states = {ledger.base: ledger.state for ledger in context.ledgers()}
    entered = [item for item in done if states.get(item.ledger.base) in (State.COMMITTING, State.APPLIED)]
    if entered:
        _rollback(context, entered)
    for item in done:
        if item.fresh and states.get(item.ledger.base) is State.PREPARED:
            give_up(context, item.ledger)


def _rollback(context: Context, prepared: Sequence[Prepared]) -> None:
    """Undo a committed transaction: what it found is put back, replaced hotpatches are in force again."""
    process = context.process
    writes = [w for item in prepared for w in item.ledger.record.writes()]

    def act(_: Stopped) -> None:
        for item in prepared:
            ledgers_of.set_state(process, item.ledger, State.COMMITTING)
        for item in prepared:
            for replaced in item.plan.replaces:
                ledgers_of.set_state(process, replaced, State.APPLIED)
        for write in reversed(writes):
            if process.read(write.address, len(write.after)) == write.after:
                process.write(write.address, write.undo)
        for item in prepared:
            ledgers_of.set_state(process, item.ledger, State.RETIRED)

    until_idle(context, StackCheck(trampolines(writes), context.modules.frames_at), act, context.limits)


def apply(process: Process, hotpatch: Hotpatch, files: Files, limits: Limits, dry_run: bool = False) -> Outcome:
    """Put a hotpatch into one process, in all instances of all its images, all or nothing.

    Never raises for what can go wrong with a process: the outcome says it.
    """
    outcome = Outcome(process.pid, process.start_time, "failed")
    try:
        with journal.lock(process.pid, process.start_time):
            _apply(process, hotpatch, files, limits, dry_run, outcome)
    except Inapplicable as error:
        settle(outcome, process, error, "already" if "in force already" in str(error) else "skipped")
    except MidflightError as error:
        settle(outcome, process, error)
    return outcome


def _apply(process: Process, hotpatch: Hotpatch, files: Files, limits: Limits, dry_run: bool, outcome: Outcome) -> None:
    context = Context(process, files, limits)
    existing = context.ledgers()
    reason = process.untouchable()
    if any(context.modules.with_build_id(t.build_id) for t in hotpatch.manifest.targets) and reason:
        raise EngineError(f"process {process.pid} cannot be patched: {reason}")
    if not dry_run and any(left_over(process, i, existing) for i in existing):
        outcome.notes.append(recover_process(context).reason)
        existing = context.ledgers()
    plans = plan(context.modules, hotpatch, existing)
    outcome.functions = tuple(f.function.name for p in plans for f in p.functions)
    outcome.images = tuple(sorted({p.module.path for p in plans}))
    if dry_run:
        outcome.outcome = "would-apply"
        return
    prepared: list[Prepared] = []
    try:
        _prepare_all(context, plans, hotpatch, prepared)
        for item in prepared:
            context.call_hook(item.ledger, "before_apply")
        commit = _Commit(process, prepared)
        seconds = 0.0
        if all(needs_no_stop(item.plan) for item in prepared):
            commit.running()
        else:
            check = StackCheck(_ranges(prepared), context.modules.frames_at)
            system.wait_until_clear(process, context.modules, check, limits.busy)
            seconds, outcome.attempts = until_idle(context, check, commit, limits)
    except ProcessGone:
        raise
    except BaseException:
        _undo_prepared(context, prepared)
        raise
    _after(context, prepared, seconds, outcome)


def _after(context: Context, prepared: Sequence[Prepared], seconds: float, outcome: Outcome) -> None:
    """Note the figures, verify from outside, run the hooks; anything unexpected goes back."""
    process = context.process
    outcome.stopped = seconds
    outcome.memory = sum(item.ledger.size for item in prepared)
    now = time.time_ns()
    try:
        for item in prepared:
            ledgers_of.note_apply(process, item.ledger, now, round(seconds * 1e9))
            for write in item.ledger.record.writes():
                if process.read(write.address, len(write.after)) != write.after:
                    raise EngineError(f"process {process.pid}: the entry at {write.address:#x} was not written")
        point("verified")
        for item in prepared:
            context.call_hook(item.ledger, "after_apply")
    except ProcessGone:
        raise
    except MidflightError as error:
        try:
            _rollback(context, prepared)
        except MidflightError as worse:
            raise EngineError(f"{error}; and it could not be taken out again: {worse}") from error
        raise EngineError(f"{error}; the hotpatch was taken out again") from error
    outcome.outcome = "applied"
    outcome.reason = ""
