"""Takes hotpatches out of force, in one stop: the entries get back what stood there, the latest hotpatch first.

It never needs an idle function: entries are restored first, and threads inside new code leave it when they return.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from midflight.engine import ledger as ledgers_of
from midflight.engine.ledger import Ledger, State
from midflight.engine.stackcheck import StackCheck
from midflight.engine.transaction import Context, code_of, give_back_soon, trampolines, until_idle
from midflight.errors import EngineError
from midflight.process.faults import point
from midflight.process.model import Stopped


class _Withdraw:
    """The writes of a revert, in the stop. Later hotpatches go first, each in the reverse order of its writes."""

    def __init__(self, context: Context, ledgers: Sequence[Ledger]) -> None:
        self.process = context.process
        self.ledgers = sorted(ledgers, key=lambda item: -item.order)
        self.idle: set[int] = set()
        self._checks = {item.base: StackCheck(code_of([item]), context.modules.frames_at) for item in ledgers}

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


def withdraw(context: Context, ledgers: Sequence[Ledger]) -> tuple[float, int]:
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
        give_back_soon(context, ledger, ledger.base in act.idle)
    return seconds, attempts
